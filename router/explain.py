"""Why a request got its action: what each feature group added, and which price would change it.

Knows values, costs, a price and TreeSHAP contributions; knows nothing of LightGBM, pictures or
HTTP. Everything here is pure.
Notation: K options, which are the scales ascending or scales and foci; F features, v[k] value and
c[k] cost of an option.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from router.actions import ActionSpace, Reading
from router.explanation import Comparison, Explanation, RelevanceMap, Switch, sentence
from router.features.schema import FeatureSchema
from router.policy import Policy
from router.policy.offer import Offer

GROUP_NAMES = {
    "picture": "picture detail",
    "relevance_area": "relevant-region size",
    "relevance_cells": "relevant-region purity",
    "relevance_detail": "relevant-region detail",
    "question": "question",
    "statistics": "image statistics",
}

_UNFAMILIAR = (
    "the question is unlike those it was fitted on, so the finest scale allowed is taken, "
    "whatever is predicted."
)


@dataclass(frozen=True)
class Option:
    """One way the picture could have been read.

    Attributes:
        key: a scale by its number, a focus by its name.
        reading: what would have been read.
        cost: of that, relative.
    """

    key: int | str
    reading: Reading
    cost: float


def explain_request(
    schema: FeatureSchema,
    space: ActionSpace,
    policy: Policy,
    offer: Offer,
    values: Sequence[Sequence[float]],
    contributions: np.ndarray,
    pins: Sequence[int | None],
    picks: Sequence[int],
    cap: int | None,
    unfamiliar: bool = False,
) -> Explanation:
    """Return the explanation of a request's decision: of one picture, or of each of several.

    Args:
        schema: of the features.
        space, offer: the A actions, and which of them the policy chose from.
        policy: that decided.
        values: (n, A) predicted quality, for n pictures.
        contributions: (n, A, F+1), see `explain`.
        pins: (n,) the scales that the caller fixed, None where nothing.
        picks: (n,) the actions that were decided on.
        cap: on the visual tokens of all pictures together.
        unfamiliar: the policy takes the finest only because of the question.
    """
    spent = [offer.tokens[pick] for pick in picks]
    open_ = offer.places
    options = [
        Option(space.actions[k].key, space.reading(k, offer.plan), offer.costs[k]) for k in open_
    ]
    told = []
    for number, (pin, pick) in enumerate(zip(pins, picks, strict=True)):
        # What one picture may read, the others as they are.
        left = math.inf if cap is None else cap - sum(spent) + spent[number]
        told.append(
            explain(
                schema, [values[number][k] for k in open_], policy,
                [offer.tokens[k] <= left for k in open_], contributions[number][open_], pin,
                open_.index(pick) if pin is None else None, options, unfamiliar,
            )
        )  # fmt: skip
    return explain_together(told, spent)


def explain(
    schema: FeatureSchema,
    values: Sequence[float],
    policy: Policy,
    allowed: Sequence[bool] | None,
    contributions: np.ndarray,
    pinned: int | None = None,
    chosen: int | None = None,
    options: Sequence[Option] | None = None,
    unfamiliar: bool = False,
) -> Explanation:
    """Return the explanation of the decision about one picture.

    Args:
        schema: of the features; its groups are what is told apart.
        values: (K,) predicted quality.
        policy: that decides.
        allowed: (K,) which options the cap leaves; None allows all.
        contributions: (K, F+1) to the log odds of each option, the last one the base.
        pinned: the scale that the caller fixed, if any.
        chosen: index of the option that was decided on; None: what the policy chooses.
        options: (K,); None means the scales of the schema at the policy's costs.
        unfamiliar: the policy takes the finest only because of the question.

    Raises:
        ValueError: contributions of another shape, or no option is allowed.
    """
    shape = (len(schema.scales if options is None else options), len(schema.names) + 1)
    if contributions.shape != shape:
        raise ValueError(f"expected {shape} contributions, got {contributions.shape}")
    if options is None:
        scales = zip(schema.scales, policy.costs, strict=True)
        options = [Option(scale, Reading.uniform(scale), cost) for scale, cost in scales]
    keys, costs = [each.key for each in options], [each.cost for each in options]
    words = {each.key: each.reading.words for each in options}
    if chosen is None:
        chosen = policy.choose(values, allowed, costs)
    by_group = grouped(contributions, schema.groups)
    base = contributions[:, -1].tolist()
    chose = f"The router chose {words[keys[chosen]]}"
    if pinned is not None:
        chose = f"{pinned} was asked for; the router would have chosen {words[keys[chosen]]}"
    if policy.finest_only:
        below, above = None, None
        always = "it always takes the finest scale allowed."
        said = f"{chose}: {_UNFAMILIAR if unfamiliar else always}"
    else:
        turns = switches(values, costs, chosen, allowed)
        below, above = (turn and Switch(turn[0], keys[turn[1]]) for turn in turns)
        said = sentence(chose, policy.price, below, above, words)
    # Neighbours by the tokens they take of this picture; of scales that is their own order.
    order = sorted(range(len(options)), key=lambda k: options[k].reading.visual_tokens)
    place = order.index(chosen)

    def against(neighbour: int) -> Comparison | None:
        if not 0 <= neighbour < len(order):
            return None
        other = order[neighbour]
        here, there = by_group[chosen], by_group[other]
        return Comparison(
            scale=keys[other],
            base=base[chosen] - base[other],
            contributions={name: here[name] - there[name] for name in here},
        )

    return Explanation(
        values=dict(zip(keys, map(float, values), strict=True)),
        costs=dict(zip(keys, costs, strict=True)),
        price=policy.price,
        scale=keys[chosen],
        base=dict(zip(keys, base, strict=True)),
        contributions=dict(zip(keys, by_group, strict=True)),
        coarser=against(place - 1),
        finer=against(place + 1),
        below=below,
        at_or_above=above,
        sentence=said,
    )


def explain_together(each: Sequence[Explanation], tokens: Sequence[int]) -> Explanation:
    """Return the explanation of a request: of one picture its own, else that of the finest.

    Args:
        each: one for each picture, in order.
        tokens: that are read of them.
    """
    if len(each) == 1:
        return each[0]
    told = tuple(
        replace(one, sentence=f"Picture {number} of {len(each)}: {one.sentence}")
        for number, one in enumerate(each, 1)
    )
    return replace(told[tokens.index(max(tokens))], pictures=told)


def relevance_map(relevance: np.ndarray) -> RelevanceMap:
    """Return the relevance (N,) in [0, 1] of a picture's patches, in steps of 1/255."""
    steps = np.rint(255.0 * np.asarray(relevance, dtype=np.float64)).astype(int)
    return RelevanceMap(math.isqrt(len(steps)), tuple(steps.tolist()))


def grouped(contributions: np.ndarray, groups: Sequence[str]) -> list[dict[str, float]]:
    """Return for each option the sum of its contributions (K, F+1) over every group, by name."""
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
    upper one: it changes where the line of a dearer option (downwards) or of a cheaper one
    (upwards) crosses first. Ties go to the cheaper option, so at the lower price itself the choice
    still holds, and at the upper one it does not.

    Args:
        values, costs: (K,).
        chosen: index of the option that is best at the present price.
        allowed: (K,) which options may be chosen; None allows all.
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
