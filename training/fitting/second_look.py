"""Fits a second look: gates on the pictures that fit probabilities, both prices on the others.

The prices are those that cost least, both looks counted, while the answers that count keep the
target's share of the finest accuracy with the margin that the single look's price must keep too.
Also runs one on test questions. Knows arrays, routers' values and costs; does not know files or
the service.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.policy import candidate_prices, choose_many
from router.policy.rule import Costs
from router.second_look import Gate, SecondLook, log_odds
from training.figures.comparison import Outcome, Questions
from training.figures.curves import Line, line_of
from training.figures.metrics import Array, hull, paid, picked
from training.progress import Steps

PRICES = np.concatenate([[0.0], np.geomspace(0.003, 3.0, 60)])  # of escalating
STARTS = 24  # most start prices tried, out of those on the single look's hull
PULL = 1.0  # ridge on the coefficients, in rows
MARGIN = 0.5  # standard errors by picture, as router.policy.calibrate_price


@dataclass(frozen=True)
class Priced:
    """A second look and what it did on the pictures that priced it."""

    look: SecondLook
    feasible: bool
    accuracy: float
    cost: float
    finest_accuracy: float
    looked_again: float  # share of the questions

    def facts(self) -> dict[str, Any]:
        """Return the figures as JSON."""
        return {
            "accuracy": self.accuracy,
            "cost": self.cost,
            "finest_accuracy": self.finest_accuracy,
            "looked_again": self.looked_again,
        }


def fit_gates(
    values: Array, scores: Array, confidence: Array, actions: Sequence[str]
) -> SecondLook:
    """Return the gates, not priced yet.

    Args:
        values: (n, A) what the router predicts.
        scores: (n, A) what came out, in [0, 1].
        confidence: (n, A) of the answers.
        actions: (A,) their names, in the order of the space.
    """
    before, sure = log_odds(values), log_odds(confidence)
    gates = tuple(
        tuple(
            _gate(before[:, k], before[:, s], sure[:, s], scores[:, k])
            for k in range(s, len(actions))
        )
        for s in range(len(actions) - 1)
    )
    return SecondLook(tuple(actions), gates, start_price=0.0, price=0.0)


def other_half_gates(
    values: Array,
    scores: Array,
    confidence: Array,
    pictures: NDArray[np.int64],
    actions: Sequence[str],
) -> list[tuple[NDArray[np.bool_], SecondLook]]:
    """Return each half of the pictures, and gates that the other half fitted."""
    even = pictures % 2 == 0
    return [
        (rows, fit_gates(values[~rows], scores[~rows], confidence[~rows], actions))
        for rows in (even, ~even)
        if rows.any() and not rows.all()
    ]


def price_second_look(
    look: SecondLook,
    values: Array,
    scores: Array,
    confidence: Array,
    pictures: NDArray[np.int64],
    costs: Costs,
    *,
    target: float,
    steps: Steps,
    halves: Sequence[tuple[NDArray[np.bool_], SecondLook]] = (),
) -> Priced:
    """Return the look at the prices that cost least while keeping ``target`` of the finest.

    Args:
        look: with its gates, which have not seen these questions, or else with ``halves``.
        values, scores, confidence: (n, A), as for `fit_gates`.
        pictures: (n,) integers from 0, one per picture.
        costs: (n, A) or (A,) of one look. Costs of whole requests count the encode in both looks,
            so that a second look seems dearer than it is; visual tokens are exact.
        target: share of the finest accuracy to keep.
        steps: `STARTS` of them are taken here.
        halves: gates to price some rows by instead, which have not seen those.
    """
    finest, costs = scores[:, -1], np.broadcast_to(costs, scores.shape)
    best: Priced | None = None
    tried = start_prices(values, scores, costs)
    for number, start_price in enumerate(tried, 1):
        steps.begin(f"second look: start price {number} of {len(tried)}")
        starts = choose_many(values, costs, start_price)
        known = after_first(look, values, starts, confidence)
        for rows, other in halves:
            known[rows] = after_first(other, values[rows], starts[rows], confidence[rows])
        for price in PRICES.tolist():
            ends = ends_of(look, known, starts, costs, price)
            right, spent = outcome(scores, starts, ends, costs)
            cost = float(spent.mean())
            if best is not None and cost >= best.cost:
                continue
            if not finest.any() or not _keeps(right - target * finest, pictures):
                continue
            priced = replace(look, start_price=float(start_price), price=float(price))
            best = Priced(
                priced, True, float(right.mean()), cost, float(finest.mean()),
                float((ends != starts).mean()),
            )  # fmt: skip
    steps.skip(STARTS - len(tried))
    if best is None:
        mean = float(finest.mean())
        return Priced(look, False, mean, float(costs[:, -1].mean()), mean, 0.0)
    return best


def start_prices(values: Array, scores: Array, costs: Array) -> list[float]:
    """Return up to `STARTS` prices along the single look's hull of accuracy over cost."""
    prices = candidate_prices(values, costs)
    accuracy, cost = np.empty(len(prices)), np.empty(len(prices))
    for number, price in enumerate(prices.tolist()):  # all at once would be gigabytes
        picks = choose_many(values, costs, price)
        accuracy[number], cost[number] = picked(scores, picks).mean(), picked(costs, picks).mean()
    corners = zip(*hull(cost, accuracy), strict=True)
    kept = [int(np.flatnonzero((cost == x) & (accuracy == y))[0]) for x, y in corners]
    step = max(1, -(-len(kept) // STARTS))
    return prices[kept[::step]].tolist()


def after_first(
    look: SecondLook, values: Array, starts: NDArray[np.intp], confidence: Array
) -> Array:
    """Return (n, A) P(right) after the first answer; -inf of earlier actions, 0 after the last."""
    known = np.full(values.shape, -np.inf)
    known[:, -1] = 0.0
    for start in range(values.shape[1] - 1):
        rows = starts == start
        known[rows, start:] = look.p_right(values[rows], start, confidence[rows, start])
    return known


def ends_of(
    look: SecondLook, known: Array, starts: NDArray[np.intp], costs: Costs, price: float
) -> NDArray[np.intp]:
    """Return (n,) the action of the answer that counts, from `after_first` at another price.

    An action that costs a question no more than its first look cannot be its second one.
    """
    ends, costs = starts.copy(), np.broadcast_to(costs, known.shape)
    for start in range(known.shape[1] - 1):
        rows = starts == start
        left = costs[rows, start:]
        readable = left > left[:, :1]
        readable[:, 0] = True
        ends[rows] += look.ends(known[rows, start:], np.where(readable, left, np.inf), price)
    return ends


def outcome(
    scores: Array, starts: NDArray[np.intp], ends: NDArray[np.intp], costs: Costs
) -> tuple[Array, Array]:
    """Return (n,) the scores of the answers that count, and (n,) the cost of every look taken."""
    return picked(scores, ends), paid(np.asarray(costs, dtype=np.float64), ends, starts)


def two_looks(
    name: str, look: SecondLook, values: Array, confidence: Array, on: Questions
) -> Outcome:
    """Return what a priced second look does to the questions, given what the router predicts and
    how confident the answers are, both (n, A)."""
    starts = choose_many(values, on.costs, look.start_price)
    known = after_first(look, values, starts, confidence)
    ends = ends_of(look, known, starts, on.costs, look.price)
    return Outcome(name, look.start_price, ends, picked(on.scores, ends), starts)


def look_line(name: str, look: SecondLook, values: Array, confidence: Array, on: Questions) -> Line:
    """Return a second look at every start price, its escalation price raised in proportion."""
    single = line_of(name, values, on)
    if single.price is None:
        raise ValueError("a line of values has prices")
    share = look.price / look.start_price if look.start_price > 0 else None
    ends = []
    for start_price, starts in zip(single.price.tolist(), single.picks, strict=True):
        price = look.price if share is None else max(0.0, share * start_price)
        known = after_first(look, values, starts, confidence)
        at_last = ends_of(look, known, starts.astype(np.intp), on.costs, price)
        ends.append(at_last.astype(np.int8))
    return Line(name, np.stack(ends), on, single.price, single.picks)


def _keeps(gains: Array, pictures: NDArray[np.int64]) -> bool:
    """Return whether the mean of (n,) is `MARGIN` standard errors, by picture, above 0."""
    mean, count = float(gains.mean()), int(pictures.max()) + 1
    sums = np.bincount(pictures, gains - mean, minlength=count)
    error = np.sqrt(count / max(count - 1, 1) * (sums**2).sum()) / len(gains)
    return mean >= MARGIN * float(error)


def _gate(finer: Array, first: Array, sure: Array, right: Array) -> Gate:
    """Return the ridge logistic regression on scores in [0, 1]: each row is partly of each class.

    One row more of each class at the mean keeps the offset finite where all answers are right.
    """
    from sklearn.linear_model import LogisticRegression

    rows = np.stack([finer, first, sure], axis=1)
    centre = rows.mean(axis=0)[None]
    model = LogisticRegression(C=1.0 / PULL, max_iter=500)
    weight = np.concatenate([right, [1.0], 1.0 - right, [1.0]])
    classes = np.repeat([1, 0], len(rows) + 1)
    model.fit(np.concatenate([rows, centre, rows, centre]), classes, sample_weight=weight)
    return Gate(*map(float, [*model.coef_[0], model.intercept_[0]]))
