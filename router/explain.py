"""Why a request got its scale: what each feature group added, and which price would change it.

Knows values, costs, a price and TreeSHAP contributions; knows nothing of LightGBM, pictures or
HTTP. Everything here is pure.
Notation: K scales ascending, F features, v[k] value and c[k] cost of a scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from router.features.schema import FeatureSchema
from router.policy import Policy

GROUP_NAMES = {
    "picture": "picture detail",
    "relevance_area": "relevant-region size",
    "relevance_cells": "relevant-region purity",
    "relevance_detail": "relevant-region detail",
    "question": "question",
    "statistics": "image statistics",
}


@dataclass(frozen=True)
class Switch:
    """A price at which the choice changes, and the scale it changes to."""

    price: float
    scale: int


@dataclass(frozen=True)
class Comparison:
    """What speaks for the chosen scale rather than a neighbour: differences of log odds.

    ``base`` plus the sum of ``contributions`` is the difference of the two scales' log odds.
    """

    scale: int
    base: float
    contributions: dict[str, float]


@dataclass(frozen=True)
class Explanation:
    """What one decision was made of.

    Attributes:
        values: scale -> predicted quality, what the policy weighs against cost.
        costs: scale -> relative cost.
        price: quality that one unit of cost had to buy.
        scale: what the policy chooses among the scales that the cap allows. It was given to the
            request unless the caller had pinned one: then it is what would have been chosen.
        pinned: the scale that the caller fixed, None where the policy decided.
        base: scale -> log odds (before calibration) of an average question.
        contributions: scale -> name of a feature group -> how far the group moved this question's
            log odds from the base (TreeSHAP summed over the group, the mean over pictures); base
            and contributions add up to the log odds.
        coarser, finer: the chosen scale against its neighbours; None at the ends.
        below: the choice changes to this scale at any price just below this one; None where no
            lower price changes it.
        at_or_above: the choice changes to this scale from this price on; None likewise.
        finest_only: the router takes the finest scale allowed, whatever the price.
    """

    values: dict[int, float]
    costs: dict[int, float]
    price: float
    scale: int
    pinned: int | None
    base: dict[int, float]
    contributions: dict[int, dict[str, float]]
    coarser: Comparison | None
    finer: Comparison | None
    below: Switch | None
    at_or_above: Switch | None
    finest_only: bool

    @property
    def sentence(self) -> str:
        """What would have to change for another choice, in one sentence."""
        would = f"The router chose {self.scale}"
        if self.pinned is not None:
            would = f"{self.pinned} was asked for; the router would have chosen {self.scale}"
        if self.finest_only:
            return f"{would}: it always takes the finest scale allowed."
        turns = []
        if self.below is not None:
            turns.append(f"{self.below.scale} if the price were below {self.below.price:.3g}")
        if self.at_or_above is not None:
            turns.append(
                f"{self.at_or_above.scale} if it were {self.at_or_above.price:.3g} or above"
                if turns
                else f"{self.at_or_above.scale} if the price were "
                f"{self.at_or_above.price:.3g} or above"
            )
        if not turns:
            return f"{would} at the price {self.price:.3g}; no other price changes that."
        return f"{would} at the price {self.price:.3g}; it would be {', and '.join(turns)}."


def explain(
    schema: FeatureSchema,
    values: Sequence[float],
    policy: Policy,
    allowed: Sequence[bool] | None,
    contributions: np.ndarray,
    pinned: int | None = None,
) -> Explanation:
    """Return the explanation of one decision.

    Args:
        schema: of the features; its groups are what is told apart.
        values: (K,) predicted quality.
        policy: that decides.
        allowed: (K,) which scales the cap leaves; None allows all.
        contributions: (K, F+1) to the log odds of each scale, the last one the base.
        pinned: the scale that the caller fixed, if any.

    Raises:
        ValueError: contributions of another shape, or no scale is allowed.
    """
    scales, shape = schema.scales, (len(schema.scales), len(schema.names) + 1)
    if contributions.shape != shape:
        raise ValueError(f"expected {shape} contributions, got {contributions.shape}")
    chosen = policy.choose(values, allowed)
    by_group = grouped(contributions, schema.groups)
    base = contributions[:, -1].tolist()
    below = above = None
    if not policy.finest_only:
        below, above = switches(values, policy.costs, chosen, allowed)

    def against(other: int) -> Comparison | None:
        if not 0 <= other < len(scales):
            return None
        here, there = by_group[chosen], by_group[other]
        return Comparison(
            scale=scales[other],
            base=base[chosen] - base[other],
            contributions={name: here[name] - there[name] for name in here},
        )

    return Explanation(
        values=dict(zip(scales, map(float, values), strict=True)),
        costs=dict(zip(scales, policy.costs, strict=True)),
        price=policy.price,
        scale=scales[chosen],
        pinned=pinned,
        base=dict(zip(scales, base, strict=True)),
        contributions=dict(zip(scales, by_group, strict=True)),
        coarser=against(chosen - 1),
        finer=against(chosen + 1),
        below=None if below is None else Switch(below[0], scales[below[1]]),
        at_or_above=None if above is None else Switch(above[0], scales[above[1]]),
        finest_only=policy.finest_only,
    )


def grouped(contributions: np.ndarray, groups: Sequence[str]) -> list[dict[str, float]]:
    """Return for each scale the sum of its contributions (K, F+1) over every group, by name."""
    kinds = list(dict.fromkeys(groups))
    members = np.asarray(groups)[None] == np.asarray(kinds)[:, None]  # (groups, F)
    sums = contributions[:, :-1] @ members.T
    names = [GROUP_NAMES.get(kind, kind.replace("_", " ")) for kind in kinds]
    return [dict(zip(names, row, strict=True)) for row in sums.tolist()]


def switches(
    values: Sequence[float],
    costs: Sequence[float],
    chosen: int,
    allowed: Sequence[bool] | None = None,
) -> tuple[tuple[float, int] | None, tuple[float, int] | None]:
    """Return where `router.policy.choose` leaves ``chosen``: (price, index) downwards and upwards.

    As functions of the price the utilities v - price * c are straight lines, and the choice is the
    upper one: it changes where the line of a dearer scale (downwards) or of a cheaper one
    (upwards) crosses first. Ties go to the cheaper scale, so at the lower price itself the choice
    still holds, and at the upper one it does not.

    Args:
        values, costs: (K,).
        chosen: index of the scale that is best at the present price.
        allowed: (K,) which scales may be chosen; None allows all.
    """
    dearer: list[tuple[float, float, int]] = []
    cheaper: list[tuple[float, float, int]] = []
    for index, (value, cost) in enumerate(zip(values, costs, strict=True)):
        step = cost - costs[chosen]
        if step == 0 or (allowed is not None and not allowed[index]):
            continue
        crossing = (value - values[chosen]) / step
        if step < 0:
            cheaper.append((crossing, cost, index))
        elif crossing > 0:  # no price lies below zero
            dearer.append((crossing, cost, -index))
    below = max(dearer, default=None)  # of lines that cross together the steepest wins
    above = min(cheaper, default=None)
    return (
        None if below is None else (float(below[0]), -below[2]),
        None if above is None else (float(above[0]), above[2]),
    )
