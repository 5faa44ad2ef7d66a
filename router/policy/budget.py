"""Several pictures under one cap: which scale each of them gets.

Knows values, tokens, pins and a cap; knows nothing of features, boosters or requests.
Notation: n pictures, K scales ascending, which are also what each costs of the cap.
"""

from collections.abc import Sequence
from itertools import pairwise

from router.policy.rule import Policy

Pins = Sequence[int | None]


def best_shares(
    policy: Policy,
    values: Sequence[Sequence[float]],
    scales: Sequence[int],
    pins: Pins,
    cap: int | None = None,
) -> tuple[int, ...]:
    """Return the scale of each picture: together the greatest sum of value - price * cost.

    Where the cap leaves every picture its own best scale this is `Policy.choose` for each, ties
    included. Where it does not, tokens go where they add most; of equal sums the one with fewer
    tokens wins, and of those the one that reads an earlier picture finer.

    Args:
        policy: costs and price; one that always takes the finest shares as `even_shares` does.
        values: (n, K) predicted quality.
        scales: (K,) ascending.
        pins: (n,) the scale a picture is fixed to, or None.
        cap: on the tokens of all pictures together.

    Raises:
        ValueError: not even the coarsest scales fit the cap, or a value is NaN.
    """
    if policy.finest_only:
        return even_shares(scales, pins, cap)
    free = tuple(
        scales[policy.choose(row)] if pin is None else pin
        for row, pin in zip(values, pins, strict=True)
    )
    if cap is None or sum(free) <= cap:
        return free
    options = [
        _worth_reading(policy, row, scales) if pin is None else [(pin, 0.0)]
        for row, pin in zip(values, pins, strict=True)
    ]
    return _knapsack(options, cap)


def even_shares(scales: Sequence[int], pins: Pins, cap: int | None = None) -> tuple[int, ...]:
    """Return the scale of each picture: the finest that the cap allows, as equal as can be.

    The coarsest picture is made one step finer for as long as that fits, of equals the first: no
    other choice within the cap reads its coarsest picture finer, nor then its next coarsest.

    Raises:
        ValueError: not even the coarsest scales fit the cap.
    """
    if cap is None:
        return tuple(scales[-1] if pin is None else pin for pin in pins)
    shares = [scales[0] if pin is None else pin for pin in pins]
    left = cap - sum(shares)
    if left < 0:
        raise ValueError(f"{sum(shares)} visual tokens at least do not fit the cap {cap}")
    finer = dict(pairwise(scales))
    while True:
        may_grow = [
            number
            for number, (share, pin) in enumerate(zip(shares, pins, strict=True))
            if pin is None and share in finer and finer[share] - share <= left
        ]
        if not may_grow:
            return tuple(shares)
        coarsest = min(may_grow, key=shares.__getitem__)
        step = finer[shares[coarsest]] - shares[coarsest]
        shares[coarsest] += step
        left -= step


def _worth_reading(
    policy: Policy, values: Sequence[float], scales: Sequence[int]
) -> list[tuple[int, float]]:
    """Return (scale, utility) of the scales that are better than every coarser one."""
    kept: list[tuple[int, float]] = []
    for scale, value, cost in zip(scales, values, policy.costs, strict=True):
        utility = float(value) - policy.price * cost
        if not kept or utility > kept[-1][1]:
            kept.append((scale, utility))
    return kept


def _knapsack(options: Sequence[Sequence[tuple[int, float]]], cap: int) -> tuple[int, ...]:
    """Return one scale for each picture, the greatest sum of utilities within the cap: exact.

    Picture by picture the best sum is kept for every number of tokens that can be spent, unless
    fewer tokens already give as much. With five scales and eight pictures that are at most 495.

    Args:
        options: for each picture its scales with their utilities, both ascending.

    Raises:
        ValueError: not even the coarsest scales fit the cap.
    """
    room = cap - sum(each[0][0] for each in options)  # beyond everybody's coarsest
    if room < 0:
        raise ValueError(f"{cap - room} visual tokens at least do not fit the cap {cap}")
    states: list[tuple[int, float, tuple[int, ...]]] = [(0, 0.0, ())]  # ascending in both numbers
    for each in options:
        best: dict[int, tuple[float, tuple[int, ...]]] = {}
        coarsest = each[0][0]
        for spent, gained, shares in reversed(states):  # of equals the first stays
            for scale, utility in each:
                total = spent + scale - coarsest
                if total > room:
                    break
                known = best.get(total)
                if known is None or gained + utility > known[0]:
                    best[total] = gained + utility, (*shares, scale)
        states = []
        for total in sorted(best):
            gained, shares = best[total]
            if not states or gained > states[-1][1]:
                states.append((total, gained, shares))
    return states[-1][2]
