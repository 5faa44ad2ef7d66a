"""An explanation as the client gives it: typed values, and the same as lines for a terminal.

Knows the wire format; knows no connection and not the router.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RouteSwitch:
    """A price at which the router's choice changes, and the scale it changes to."""

    price: float
    scale: int


@dataclass(frozen=True)
class RouteComparison:
    """What speaks for the chosen scale rather than a neighbour: log odds by feature group."""

    scale: int
    base: float
    contributions: dict[str, float]


@dataclass(frozen=True)
class RouteExplanation:
    """Why the router chose ``scale`` (for a pinned request: would have chosen it).

    The choice is the scale with the greatest ``values[s] - price * costs[s]``. For every scale,
    ``base`` plus the sum of its ``contributions`` is the log odds (before calibration) that its
    answer suffices. ``coarser`` and ``finer`` compare with the neighbours. Just ``below`` that
    price a finer scale would be chosen, ``at_or_above`` that price a cheaper one; None where no
    price does it. ``sentence`` says so in words.
    """

    scale: int
    values: dict[int, float]
    costs: dict[int, float]
    price: float
    base: dict[int, float]
    contributions: dict[int, dict[str, float]]
    coarser: RouteComparison | None
    finer: RouteComparison | None
    below: RouteSwitch | None
    at_or_above: RouteSwitch | None
    sentence: str

    def lines(self) -> list[str]:
        """Return the explanation as lines of text, 100 columns at most for usual numbers."""
        told = [f"{'scale':>8} {'value':>7} {'cost':>7} {'value - price x cost':>21}"]
        for scale, value in self.values.items():
            cost = self.costs[scale]
            mark = "*" if scale == self.scale else " "
            told.append(
                f"{mark}{scale:>7} {value:7.3f} {cost:7.3f} {value - self.price * cost:21.3f}"
            )
        told.append(f"{'log odds that it suffices':26} {self._heading()}")
        for group in self.contributions[self.scale]:
            numbers = [column.get(group, 0.0) for column in self._columns().values()]
            told.append(f"  {group:24} " + " ".join(f"{number:+12.2f}" for number in numbers))
        return [*told, self.sentence]

    def _columns(self) -> dict[str, dict[str, float]]:
        columns = {str(self.scale): self.contributions[self.scale]}
        for other in (self.coarser, self.finer):
            if other is not None:
                columns[f"against {other.scale}"] = other.contributions
        return columns

    def _heading(self) -> str:
        return " ".join(f"{name:>12}" for name in self._columns())


def parse_explanation(body: Mapping[str, Any] | None) -> RouteExplanation | None:
    """Return the explanation in a reply's ``routing.explain``."""
    if body is None:
        return None
    return RouteExplanation(
        scale=int(body["scale"]),
        values=_by_scale(body["values"]),
        costs=_by_scale(body["costs"]),
        price=float(body["price"]),
        base=_by_scale(body["base"]),
        contributions={int(scale): dict(groups) for scale, groups in body["contributions"].items()},
        coarser=body["coarser"] and RouteComparison(**body["coarser"]),
        finer=body["finer"] and RouteComparison(**body["finer"]),
        below=body["below"] and RouteSwitch(**body["below"]),
        at_or_above=body["at_or_above"] and RouteSwitch(**body["at_or_above"]),
        sentence=str(body["sentence"]),
    )


def _by_scale(numbers: Mapping[str, float]) -> dict[int, float]:
    return {int(scale): float(number) for scale, number in numbers.items()}
