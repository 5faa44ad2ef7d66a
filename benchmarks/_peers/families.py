"""A policy as a family of choices from cheap to dear: one rule, one dial, priced on calibration.

Every peer has its own dial (a threshold, a price); all are judged alike here. Knows choices and
scores; does not know what chose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from _predictors.splits import SHARES, TARGET
from numpy.typing import NDArray

from router.policy import candidate_prices, choose_many
from training.figures.metrics import Array, Picks, cost_at_accuracy, picked

MARGIN = 0.5  # standard errors by picture, as the product's price has


@dataclass(frozen=True)
class Family:
    """Choices (D, m) on calibration and (D, n) on test questions, one row a setting of the dial."""

    calibration: NDArray[np.intp]
    test: NDArray[np.intp]


def by_price(calibration: Array, test: Array, costs: Sequence[float]) -> Family:
    """Return the family argmax(value - price * cost) over prices taken from calibration values."""
    prices = candidate_prices(calibration, costs)

    def picks(values: Array) -> NDArray[np.intp]:
        return np.stack([choose_many(values, costs, float(price)) for price in prices])

    return Family(picks(calibration), picks(test))


def by_threshold(calibration: Array, test: Array, dials: Sequence[Sequence[float]]) -> Family:
    """Return the family "coarsest scale whose probability reaches its threshold, else the finest".

    Args:
        dials: (D, K) thresholds, one a scale.
    """

    def picks(p: Array) -> NDArray[np.intp]:
        made = []
        for thresholds in np.asarray(dials, float):
            enough = p >= thresholds
            made.append(np.where(enough.any(axis=1), enough.argmax(axis=1), p.shape[1] - 1))
        return np.stack(made)

    return Family(picks(calibration), picks(test))


def two_scales(calibration: Array, test: Array, cheap: int, dear: int, dials: int = 101) -> Family:
    """Return the family "the dear scale where it is likely to win" of two scales (indices).

    Args:
        calibration, test: (m,) and (n,) probability that the dear scale wins.
    """
    cuts = np.append(np.quantile(calibration, np.linspace(0.0, 1.0, dials)), np.inf)

    def picks(wins: Array) -> NDArray[np.intp]:
        return np.where(wins[None] >= cuts[:, None], dear, cheap)

    return Family(picks(calibration), picks(test))


def judge_family(
    family: Family,
    scores: tuple[Array, Array],
    pictures: NDArray[np.int64],
    scales: Sequence[int],
) -> dict[str, float | None]:
    """Return tokens at shares of the finest accuracy (test hull) and the operating point.

    The operating point is the cheapest setting that keeps ``TARGET`` of the finest accuracy on
    calibration questions with a margin; where none does, always the finest.

    Args:
        scores: (m, K) of the calibration and (n, K) of the test questions.
        pictures: (m,) numbers of the calibration questions' pictures.
    """
    tokens = np.array(scales, float)
    found: dict[str, float | None] = {}
    for name, picks, outcome in (
        ("calibration_", family.calibration, scores[0]),
        ("", family.test, scores[1]),
    ):
        spent, right = line_of(picks, outcome, tokens)
        for share in SHARES:
            wanted = share * float(outcome[:, -1].mean())
            found[f"{name}tokens_at_{share:g}"] = cost_at_accuracy(spent, right, wanted)
    setting = _cheapest(family.calibration, scores[0], pictures, tokens)
    last = np.full(len(scores[1]), len(tokens) - 1)
    here: Picks = last if setting is None else family.test[setting]
    accuracy = float(picked(scores[1], here).mean())
    return found | {
        "accuracy": accuracy,
        "share_of_finest_accuracy": accuracy / float(scores[1][:, -1].mean()),
        "visual_tokens": float(tokens[here].mean()),
    }


def line_of(picks: NDArray[np.intp], scores: Array, tokens: Array) -> tuple[Array, Array]:
    """Return (D,) mean tokens and (D,) accuracy of a family's settings."""
    return tokens[picks].mean(axis=1), np.array([picked(scores, row).mean() for row in picks])


def precise_thresholds(p: Array, scores: Array, precision: float) -> list[float]:
    """Return (K,) least thresholds above which a scale's answers are right that often.

    Infinite where no threshold does it; the finest scale needs none.
    """
    found = []
    for said, right in zip(p.T[:-1], scores.T[:-1], strict=True):
        order = np.argsort(-said)
        share = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
        good = np.flatnonzero(share >= precision)
        found.append(float(said[order][good[-1]]) if len(good) else np.inf)
    return [*found, -np.inf]


def _cheapest(
    picks: NDArray[np.intp], scores: Array, pictures: NDArray[np.int64], tokens: Array
) -> int | None:
    members = np.unique(pictures, return_inverse=True)[1]
    best, best_cost = None, np.inf
    for setting, row in enumerate(picks):
        gain = picked(scores, row) - TARGET * scores[:, -1]
        sums = np.bincount(members, gain - gain.mean())
        error = float(np.sqrt((sums**2).sum())) / len(gain)
        cost = float(tokens[row].mean())
        if gain.mean() >= MARGIN * error and cost < best_cost:
            best, best_cost = setting, cost
    return best


Judged = Callable[[Family], dict[str, float | None]]
