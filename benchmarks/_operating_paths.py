"""Policies with a dial compared at equal cost or equal accuracy, settings chosen on other pictures.

A policy is run at many settings. Those on the hull of the calibration pictures, in order of cost,
are its path; on test pictures the path is walked by mixing neighbouring settings, and every
bootstrap resample of pictures walks it anew, so that both sides of a difference cost the same in
each. Choosing the settings on the test pictures would reward the policy that has more of them.
Knows arrays only; does not know routers, files or what a cost counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.figures.metrics import Array, Interval, hull


@dataclass(frozen=True)
class Runs:
    """C settings of one policy on n questions; score, cost and answers given, each (C, n)."""

    score: Array
    cost: Array
    answers: Array

    @classmethod
    def joined(cls, runs: Sequence[Runs]) -> Runs:
        """Return the settings of all of them."""
        return cls(
            *(
                np.concatenate([getattr(run, name) for run in runs])
                for name in ("score", "cost", "answers")
            )
        )

    def take(self, settings: Sequence[int]) -> Runs:
        """Return some of the settings."""
        index = list(settings)
        return Runs(self.score[index], self.cost[index], self.answers[index])

    def on_hull(self) -> list[int]:
        """Return the settings on the concave hull of accuracy over cost, cheapest first."""
        cost, accuracy = self.cost.mean(axis=1), self.score.mean(axis=1)
        points = zip(*hull(cost, accuracy), strict=True)
        return [int(np.flatnonzero((cost == x) & (accuracy == y))[0]) for x, y in points]


@dataclass(frozen=True)
class Draws:
    """R weightings of P pictures with n questions in all: row 0 is the data, the rest resamples."""

    weights: Array  # (R, P)
    pictures: NDArray[np.int64]  # (n,)

    @classmethod
    def of(cls, pictures: NDArray[np.int64], resamples: int = 2000, seed: int = 0) -> Draws:
        """Return the draws for questions about ``pictures`` (n,), integers 0..P-1."""
        count = int(pictures.max()) + 1
        rng = np.random.default_rng(seed)
        drawn = rng.multinomial(count, np.full(count, 1 / count), resamples)
        return cls(np.vstack([np.ones(count), drawn]), pictures)

    def means(self, rows: Array) -> Array:
        """Return (R, C): the mean of each row of (C, n) in each draw."""
        counts = np.bincount(self.pictures, minlength=self.weights.shape[1])
        sums = np.stack([np.bincount(self.pictures, row, len(counts)) for row in rows], axis=1)
        means: Array = (self.weights @ sums) / (self.weights @ counts)[:, None]
        return means


@dataclass(frozen=True)
class Walk:
    """A path of H settings in R draws: accuracy, cost (ascending) and answers, (R, H) each."""

    accuracy: Array
    cost: Array
    answers: Array

    @classmethod
    def along(cls, calibration: Runs, test: Runs, draws: Draws) -> Walk:
        """Return the path chosen on the calibration questions, walked on the test questions."""
        path = test.take(calibration.on_hull())
        # Mixing neighbours needs costs in order; on other pictures they may swap by a hair.
        cost = np.maximum.accumulate(draws.means(path.cost), axis=1)
        return cls(draws.means(path.score), cost, draws.means(path.answers))

    def at_cost(self, budget: Array) -> tuple[Array, Array]:
        """Return (R,) accuracy and answers at the budgets (R,); NaN where all settings cost more.

        A budget above the dearest setting buys that setting.
        """
        rows = list(zip(budget, self.cost, self.accuracy, self.answers, strict=True))
        found = [np.interp(b, cost, accuracy, left=np.nan) for b, cost, accuracy, _ in rows]
        asked = [np.interp(b, cost, answers, left=np.nan) for b, cost, _, answers in rows]
        return np.array(found), np.array(asked)

    def at_accuracy(self, wanted: Array) -> Array:
        """Return (R,) the cost at which the path first has the accuracy (R,); NaN if never."""
        best = np.maximum.accumulate(self.accuracy, axis=1)
        return np.array(list(map(_first_cost, wanted, best, self.cost)))


def interval_of(draws: Array) -> dict[str, float] | None:
    """Return the first of the draws (R,) with a 95 % interval from the others, as in a report.

    None where the data themselves, or more than a fortieth of the resamples, have no value: then
    an end of the interval does not exist.
    """
    if not np.isfinite(draws[0]) or np.isnan(draws[1:]).mean() > 0.025:
        return None
    low, high = np.nanpercentile(draws[1:], [2.5, 97.5])
    return Interval(float(draws[0]), float(low), float(high)).as_dict()


def _first_cost(wanted: float, accuracy: Array, cost: Array) -> float:
    at = int(np.searchsorted(accuracy, wanted))  # np.interp would take the end of a plateau
    if at == len(accuracy):
        return float("nan")
    if at == 0:
        return float(cost[0])
    share = (wanted - accuracy[at - 1]) / (accuracy[at] - accuracy[at - 1])
    return float(cost[at - 1] + share * (cost[at] - cost[at - 1]))
