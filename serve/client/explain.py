"""An explanation from a reply's JSON: the router's own value, whose ``lines()`` fit a terminal.

Knows the wire format; knows no connection, and of the router only what an explanation is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from router.explanation import Comparison as RouteComparison
from router.explanation import Explanation as RouteExplanation
from router.explanation import RelevanceMap
from router.explanation import Switch as RouteSwitch

__all__ = ["RelevanceMap", "RouteComparison", "RouteExplanation", "RouteSwitch"]


def parse_explanation(body: Mapping[str, Any] | None) -> RouteExplanation | None:
    """Return the explanation in a reply's ``routing.explain``."""
    if body is None:
        return None
    return RouteExplanation(
        scale=body["scale"],
        values=_by_action(body["values"]),
        costs=_by_action(body["costs"]),
        price=float(body["price"]),
        base=_by_action(body["base"]),
        contributions={
            action_key(name): dict(groups) for name, groups in body["contributions"].items()
        },
        coarser=body["coarser"] and RouteComparison(**body["coarser"]),
        finer=body["finer"] and RouteComparison(**body["finer"]),
        below=body["below"] and RouteSwitch(**body["below"]),
        at_or_above=body["at_or_above"] and RouteSwitch(**body["at_or_above"]),
        sentence=str(body["sentence"]),
        relevance=tuple(
            RelevanceMap(int(each["side"]), tuple(each["values"]))
            for each in body.get("relevance") or ()  # an older service sends none
        ),
        pictures=tuple(
            told for each in body.get("pictures") or () if (told := parse_explanation(each))
        ),
    )


def action_key(name: str) -> int | str:
    """Return an action as JSON names it, a scale as its number."""
    return int(name) if name.isdecimal() else name


def _by_action(numbers: Mapping[str, float]) -> dict[int | str, float]:
    return {action_key(name): float(number) for name, number in numbers.items()}
