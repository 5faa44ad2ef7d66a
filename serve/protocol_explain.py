"""The wire of an explanation: what a decision was made of and what would change it.

Knows JSON shapes and `router.explain`; knows nothing of requests or HTTP. Log odds are those of the
boosters, before calibration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

if TYPE_CHECKING:
    from router.explain import Comparison, Explanation, Switch


class RoutingSwitch(BaseModel):
    """A price at which the router's choice changes, and the scale it changes to."""

    price: float
    scale: int


class RoutingComparison(BaseModel):
    """What speaks for the chosen scale rather than a neighbour."""

    scale: int = Field(description="The neighbour.")
    base: float = Field(description="Difference of the two bases.")
    contributions: dict[str, float] = Field(description="Feature group -> difference of log odds.")


class RoutingExplanation(BaseModel):
    """What the decision was made of: argmax over scales of value - price x cost, and why."""

    scale: int = Field(
        description="What the router chose; with a pinned scale, what it would have chosen."
    )
    values: dict[str, float] = Field(description="Scale -> predicted quality.")
    costs: dict[str, float] = Field(description="Scale -> relative cost.")
    price: float = Field(description="Quality that one unit of cost had to buy.")
    base: dict[str, float] = Field(description="Scale -> log odds of an average question.")
    contributions: dict[str, dict[str, float]] = Field(
        description="Scale -> feature group -> what the group added to the log odds (TreeSHAP); "
        "base and groups add up to the log odds of this question."
    )
    coarser: RoutingComparison | None = Field(description="Against the next coarser scale.")
    finer: RoutingComparison | None = Field(description="Against the next finer scale.")
    below: RoutingSwitch | None = Field(
        description="Just below this price the router would choose this finer scale instead."
    )
    at_or_above: RoutingSwitch | None = Field(
        description="From this price on the router would choose this cheaper scale instead."
    )
    sentence: str = Field(description="What would change the choice, in words.")


def wire_explanation(told: Explanation) -> RoutingExplanation:
    """Return the explanation as it is sent; scales become strings, as JSON wants its keys."""
    return RoutingExplanation(
        scale=told.scale,
        values=_by_scale(told.values),
        costs=_by_scale(told.costs),
        price=told.price,
        base=_by_scale(told.base),
        contributions={str(scale): groups for scale, groups in told.contributions.items()},
        coarser=_comparison(told.coarser),
        finer=_comparison(told.finer),
        below=_switch(told.below),
        at_or_above=_switch(told.at_or_above),
        sentence=told.sentence,
    )


def _by_scale(numbers: dict[int, float]) -> dict[str, float]:
    return {str(scale): float(number) for scale, number in numbers.items()}


def _comparison(told: Comparison | None) -> RoutingComparison | None:
    if told is None:
        return None
    return RoutingComparison(scale=told.scale, base=told.base, contributions=told.contributions)


def _switch(told: Switch | None) -> RoutingSwitch | None:
    return None if told is None else RoutingSwitch(price=told.price, scale=told.scale)
