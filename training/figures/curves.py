"""What a policy does at every price: accuracy against tokens, cost and time, with resamples.

A point between two prices is reached by mixing them at random, so what counts is the hull of the
points. Each resample has its own hull. Knows questions and picks; does not know what the policies
are or how a figure looks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from router.policy import candidate_prices, choose_many
from training.figures.comparison import Questions
from training.figures.metrics import Array, hull, paid, picked

Resource = Literal["visual_tokens", "cost", "gpu_ms"]
RESOURCES: tuple[Resource, ...] = ("visual_tokens", "cost", "gpu_ms")
N_PRICES = 128
BAND_POINTS = 48

Hull = tuple[Array, Array]  # (resource, accuracy), both ascending


@dataclass(frozen=True)
class Line:
    """P settings of one policy: ``picks`` (P, n) are the actions it takes, dearest setting first.

    ``first`` (P, n): the actions of the first answers where there may be two.
    """

    name: str
    picks: NDArray[np.int8]
    on: Questions
    price: Array | None = None  # (P,)
    first: NDArray[np.int8] | None = None
    _hulls: dict[Resource, list[Hull]] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def _scores(self) -> NDArray[np.float32]:
        """Return (n, P)."""
        return picked(self.on.scores, self.picks).T.astype(np.float32)

    @cached_property
    def accuracy(self) -> Array:
        """Return (P,) accuracy over the questions."""
        return self._scores.mean(axis=0, dtype=np.float64)

    @cached_property
    def _resampled_accuracy(self) -> Array:
        """Return (R, P)."""
        return self.on.resampler.means(self._scores)

    def mean(self, resource: Resource) -> Array:
        """Return (P,) the mean of a resource over the questions."""
        return self._spent(resource).mean(axis=1)

    def known(self, resource: Resource) -> bool:
        """Return whether the data tell what an action takes of the resource."""
        return resource != "gpu_ms" or self.on.gpu_ms is not None

    def _of(self, resource: Resource) -> Array:
        per_action = {
            "visual_tokens": self.on.tokens, "cost": self.on.costs, "gpu_ms": self.on.gpu_ms,
        }[resource]  # fmt: skip
        if per_action is None:
            raise ValueError(f"these data do not tell {resource}")
        return per_action

    def _spent(self, resource: Resource) -> Array:
        """Return (P, n)."""
        shared = self.on.encode_ms if resource == "gpu_ms" else 0.0
        return paid(self._of(resource), self.picks, self.first, shared)

    def only(self, mask: NDArray[np.bool_], part: Questions) -> Line:
        """Return the same settings on the questions of a mask, which ``part`` holds."""
        first = None if self.first is None else self.first[:, mask]
        return Line(self.name, self.picks[:, mask], part, self.price, first)

    def among_all(self, on: Questions) -> Line:
        """Return the same settings on ``on``, of which this line's questions are `over_scales`."""
        columns = np.array(on.actions.uniform, dtype=np.int8)
        first = None if self.first is None else columns[self.first]
        return Line(self.name, columns[self.picks], on, self.price, first)

    def hull(self, resource: Resource) -> Hull:
        """Return the hull over the questions."""
        return hull(self.mean(resource), self.accuracy)

    def hulls(self, resource: Resource) -> list[Hull]:
        """Return the R hulls of the resamples."""
        if resource not in self._hulls:
            spent = self.on.resampler.means(self._spent(resource).T)
            both = zip(spent, self._resampled_accuracy, strict=True)
            self._hulls[resource] = [hull(x, y) for x, y in both]
        return self._hulls[resource]

    def at(self, resource: Resource, accuracy: float) -> float | None:
        """Return what the hull takes for an accuracy; None if it never has it."""
        x, y = self.hull(resource)
        return None if accuracy > y[-1] + 1e-12 else float(np.interp(accuracy, y, x))

    def at_or_best(self, resource: Resource, accuracy: float) -> float:
        """Return what the hull takes for an accuracy, or for its best where it never has it."""
        x, y = self.hull(resource)
        return float(np.interp(accuracy, y, x))

    def resampled_at(self, resource: Resource, accuracy: Array) -> tuple[Array, NDArray[np.bool_]]:
        """Return (R,) what each resample's hull takes for its accuracy (R,), or for its best, and
        (R,) whether it has that accuracy at all."""
        hulls = self.hulls(resource)
        spent = [np.interp(a, y, x) for a, (x, y) in zip(accuracy, hulls, strict=True)]
        reached = [a <= y[-1] + 1e-12 for a, (_, y) in zip(accuracy, hulls, strict=True)]
        return np.array(spent), np.array(reached)

    def points(self) -> list[dict[str, float]]:
        """Return ``[{price, accuracy, visual_tokens, cost}]``."""
        price = np.full(len(self.picks), np.nan) if self.price is None else self.price
        columns = (price, self.accuracy, self.mean("visual_tokens"), self.mean("cost"))
        keys = ("price", "accuracy", "visual_tokens", "cost")
        rows = zip(*columns, strict=True)
        return [dict(zip(keys, map(float, row), strict=True)) for row in rows]

    def band(self, resource: Resource) -> dict[str, Any]:
        """Return the hull with its 95 % band: ``{at, accuracy, low, high}``, lists of equal length.

        The band begins where at least 97.5 % of the resamples have a point as cheap.
        """
        x, y = self.hull(resource)
        start = max(float(np.percentile([h[0][0] for h in self.hulls(resource)], 97.5)), x[0])
        grid = np.geomspace(max(start, 1e-9), float(self._of(resource).max()), BAND_POINTS)
        curves = np.stack([np.interp(grid, hx, hy) for hx, hy in self.hulls(resource)])
        low, high = np.percentile(curves, (2.5, 97.5), axis=0)
        return {
            "at": grid.tolist(),
            "accuracy": np.interp(grid, x, y).tolist(),
            "low": low.tolist(),
            "high": high.tolist(),
        }


def line_of(name: str, values: Array, on: Questions) -> Line:
    """Return the line of predicted values (n, A) over all prices that matter."""
    price = candidate_prices(values, on.costs, N_PRICES)
    picks = [choose_many(values, on.costs, float(p)).astype(np.int8) for p in price]
    return Line(name, np.stack(picks), on, price)


def fixed_line(on: Questions) -> Line:
    """Return the line of always taking one scale: its hull is random mixing of fixed scales."""
    scales = np.array(on.actions.uniform, dtype=np.int8)
    return Line("fixed_mixture", np.repeat(scales[:, None], len(on.scores), axis=1), on)


def oracle_line(on: Questions) -> Line:
    """Return the line of the budgeted oracle, which chooses by the outcomes themselves."""
    return line_of("oracle", on.scores, on)
