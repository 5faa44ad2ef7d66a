"""Numbers about a routing policy, from plain arrays: pure functions, worked by hand in the tests.

Throughout: ``n`` questions, ``A`` actions, the anchor last; ``scores`` (n, A) in [0, 1] is how
right each action's answer is, ``picks`` (n,) the index of the chosen action. What an action takes
(``tokens``, ``costs``) is (n, A), or (A,) where it is the same for every question. Does not know
routers, files or plots.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from router.policy import choose_many
from training.figures.resampling import Interval as Interval
from training.figures.resampling import clustered_interval as clustered_interval

Array = NDArray[np.float64]
Picks = NDArray[np.intp]
Entry = TypeVar("Entry", bound=np.generic)


def picked(table: NDArray[Entry], picks: NDArray[np.integer]) -> NDArray[Entry]:
    """Return the entry of each question at its pick, in the shape of the picks.

    Args:
        table: (n, A), or (A,) where every question has the same.
        picks: (..., n) indices of actions.
    """
    rows = np.broadcast_to(table, (picks.shape[-1], table.shape[-1]))
    entries: NDArray[Entry] = rows[np.arange(len(rows)), picks]
    return entries


def paid(
    per_action: Array,
    picks: NDArray[np.integer],
    first: NDArray[np.integer] | None = None,
    shared: float = 0.0,
) -> Array:
    """Return what every pick takes of a resource, in the shape of the picks (..., n).

    Args:
        per_action: (n, A) or (A,) of one look.
        first: where an answer by another action came before; it is paid as well.
        shared: the part of a look that two looks pay once (the encode).
    """
    spent = picked(per_action, picks)
    if first is None:
        return spent
    return spent + np.where(first != picks, picked(per_action, first) - shared, 0.0)


def hull(cost: Array, accuracy: Array) -> tuple[Array, Array]:
    """Return (cost, accuracy) of the concave, non-decreasing upper envelope of the points.

    Every point on it is reached by random mixing of two of the given policies.
    """
    points = sorted(zip(cost.tolist(), accuracy.tolist(), strict=True), key=lambda p: (p[0], -p[1]))
    kept: list[tuple[float, float]] = []
    for x, y in points:
        if kept and y <= kept[-1][1]:
            continue
        while len(kept) >= 2:
            (x0, y0), (x1, y1) = kept[-2], kept[-1]
            if (y1 - y0) * (x - x0) <= (y - y0) * (x1 - x0):
                kept.pop()
            else:
                break
        kept.append((x, y))
    return np.array([p[0] for p in kept]), np.array([p[1] for p in kept])


def cost_at_accuracy(cost: Array, accuracy: Array, wanted: float) -> float | None:
    """Return the mean cost at which the hull has the accuracy; None if it never does."""
    x, y = hull(cost, accuracy)
    if wanted > y[-1] + 1e-12:
        return None
    return float(np.interp(wanted, y, x))


def accuracy_at_cost(cost: Array, accuracy: Array, budget: float) -> float | None:
    """Return the hull's accuracy at a mean cost; None below the cheapest point."""
    x, y = hull(cost, accuracy)
    if budget < x[0] - 1e-12:
        return None
    return float(np.interp(budget, x, y))


def any_correct_picks(scores: Array, tokens: Array, threshold: float = 0.5) -> Picks:
    """Return the cheapest right action per row; rows that none gets right: the cheapest of all.

    Charging the unsolvable at the coarsest scale is the convention of the M3 authors.
    """
    right = scores >= threshold
    asked = np.where(right | ~right.any(axis=1, keepdims=True), tokens, np.inf)
    return np.argmin(asked, axis=1)


def strict_picks(scores: Array, tokens: Array, threshold: float = 0.5) -> Picks:
    """Return the cheapest action from which EVERY dearer one is right too; else the cheapest.

    Unlike the any-correct oracle it takes no credit for a lucky cheap answer that dearer ones lose.
    """
    order = _by_tokens(scores, tokens)
    right = np.take_along_axis(scores >= threshold, order, axis=1)
    stable = np.flip(np.cumprod(np.flip(right, axis=1), axis=1), axis=1).astype(bool)
    return picked(order, np.argmax(stable, axis=1))


def _by_tokens(scores: Array, tokens: Array) -> NDArray[np.intp]:
    """Return (n, A): the actions of each row from cheap to dear, equals in their order."""
    return np.argsort(np.broadcast_to(tokens, scores.shape), axis=1, kind="stable")


def luck_corrected(first: Array, second: Array, costs: Array, tokens: Array) -> tuple[float, float]:
    """Return (accuracy, mean tokens) of an oracle that chooses on one repeat, scored on the other.

    ``first`` and ``second`` (n, A) are the scores of two independent repeats of the same questions
    (a paraphrase, an option order, a sampling seed). What an oracle gains by luck in one repeat is
    lost in the other, so only the real gain is left. Both directions are averaged.
    """
    return luck_corrected_over(np.stack([first, second], axis=1), costs, tokens)


def luck_corrected_over(repeats: Array, costs: Array, tokens: Array) -> tuple[float, float]:
    """Return (accuracy, mean tokens) as `luck_corrected` does, over every ordered pair of repeats.

    Args:
        repeats: (n, R, A) scores; NaN rows where a question has fewer repeats than R. Every
            question that has two counts once, whatever the number of its repeats.
    """
    accuracy, spent, pairs = (np.zeros(len(repeats)) for _ in range(3))
    shape = len(repeats), repeats.shape[2]
    costs, tokens = np.broadcast_to(costs, shape), np.broadcast_to(tokens, shape)
    for chosen_on in range(repeats.shape[1]):
        for scored_on in range(repeats.shape[1]):
            both = np.isfinite(repeats[:, [chosen_on, scored_on]]).all(axis=(1, 2))
            if chosen_on == scored_on or not both.any():
                continue
            # Ties between equally right actions go to the cheaper one (choose_many's rule).
            picks = choose_many(repeats[both, chosen_on], costs[both], 0.0)
            accuracy[both] += picked(repeats[both, scored_on], picks)
            spent[both] += picked(tokens[both], picks)
            pairs[both] += 1
    told = pairs > 0
    return float((accuracy[told] / pairs[told]).mean()), float((spent[told] / pairs[told]).mean())


def harm_and_rescue(scores: Array, picks: Picks, threshold: float = 0.5) -> tuple[float, float]:
    """Return (P(finest right, chosen wrong), P(finest wrong, chosen right))."""
    chosen, finest = picked(scores, picks) >= threshold, scores[:, -1] >= threshold
    return float((finest & ~chosen).mean()), float((~finest & chosen).mean())


def regret(
    scores: Array, picks: Picks, tokens: Array, spent: Array, threshold: float = 0.5
) -> dict[str, float]:
    """Return the shares of bad choices and the tokens they wasted, of (n,) that were spent.

    ``under``: wrong though some action was right. ``over``: right, but a cheaper one was right too;
    ``over_tokens`` is the mean (over all questions) of what that wasted. ``unsolvable_tokens``: the
    mean spent above the cheapest action on questions that no action gets right.
    """
    right = scores >= threshold
    chosen, solvable = picked(right, picks), right.any(axis=1)
    least = picked(tokens, any_correct_picks(scores, tokens, threshold))
    over = chosen & (least < picked(tokens, picks))
    return {
        "under": float((solvable & ~chosen).mean()),
        "over": float(over.mean()),
        "over_tokens": float(np.where(over, spent - least, 0.0).mean()),
        "unsolvable_tokens": float(np.where(solvable, 0.0, spent - least).mean()),
    }


def priced_regret(
    scores: Array, picks: Picks, costs: Array, price: float, threshold: float = 0.5
) -> dict[str, float]:
    """Return the mean loss of utility (score - price x cost) against the best action of each row.

    ``total`` is the sum of ``under`` (wrong though some action was right), ``over`` (right, but
    another was worth more) and ``unsolvable`` (spent where no action is right).
    """
    utility = scores - price * costs
    lost = utility.max(axis=1) - picked(utility, picks)
    right = scores >= threshold
    solvable, chosen = right.any(axis=1), picked(right, picks)
    parts = {"under": solvable & ~chosen, "over": chosen, "unsolvable": ~solvable}
    return {
        "price": price,
        "total": float(lost.mean()),
        **{name: float(np.where(part, lost, 0.0).mean()) for name, part in parts.items()},
    }


def unsolvable_share(scores: Array, threshold: float = 0.5) -> float:
    """Return the share of questions that no action answers rightly."""
    return float((~(scores >= threshold).any(axis=1)).mean())


def non_monotone_share(scores: Array, tokens: Array, threshold: float = 0.5) -> float:
    """Return the share of questions that some action gets right and a dearer one wrong."""
    right = np.take_along_axis(scores >= threshold, _by_tokens(scores, tokens), 1).astype(np.int8)
    return float((np.diff(right, axis=1) < 0).any(axis=1).mean())


def calibration_error(predicted: Array, outcome: Array, bins: int = 15) -> float:
    """Return the expected calibration error with bins of equal mass (weights: bin sizes)."""
    order = np.argsort(predicted, kind="stable")
    error = 0.0
    for part in np.array_split(order, min(bins, len(order))):
        error += len(part) * abs(predicted[part].mean() - outcome[part].mean())
    return float(error / len(order))


def brier(predicted: Array, outcome: Array) -> float:
    """Return the mean squared difference between probability and outcome."""
    return float(np.mean((predicted - outcome) ** 2))


def gap_recovered(
    policy: tuple[float, float], baseline: tuple[Array, Array], oracle: tuple[Array, Array]
) -> float | None:
    """Return (A - baseline) / (oracle - baseline) at the policy's own mean cost.

    ``policy`` is (cost, accuracy); the other two are curves (costs, accuracies) whose hulls are
    compared. None where the budget is below a curve or the oracle has nothing to add.
    """
    cost, accuracy = policy
    below = accuracy_at_cost(*baseline, cost)
    above = accuracy_at_cost(*oracle, cost)
    if below is None or above is None or above - below <= 1e-9:
        return None
    return (accuracy - below) / (above - below)
