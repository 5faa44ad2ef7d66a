"""Same pictures for every predictor: what is learnt, watched, priced and judged, and how.

A seed keeps a random nine tenths of the training pictures; the rest tell when to stop. Prices come
from the calibration pictures, figures from the test pictures. Knows arrays and predicted values;
does not know how a predictor works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.policy import calibrate_price, choose_many, frontier, token_costs
from training.figures.metrics import Array, cost_at_accuracy, picked
from training.fitting.predictor import labels_of
from training.oracle.data import OracleData

SHARES = (0.99, 0.98, 0.95)
TARGET = 0.99
WATCHED = 0.1  # of the training pictures: they say when to stop


@dataclass(frozen=True)
class Part:
    """n questions: features X (n, F), scores and soft labels (n, K), picture numbers (n,)."""

    X: NDArray[np.float32]
    scores: Array
    soft: Array
    pictures: NDArray[np.int64]

    def take(self, rows: NDArray[Any]) -> Part:
        """Return the questions of a mask or index array."""
        return Part(self.X[rows], self.scores[rows], self.soft[rows], self.pictures[rows])

    def columns(self, columns: NDArray[Any]) -> Part:
        """Return the same questions with some of the features."""
        return replace(self, X=np.ascontiguousarray(self.X[:, columns]))


@dataclass(frozen=True)
class Splits:
    """What a predictor gets: ``train`` and ``watched`` to learn, the others to predict."""

    train: Part
    watched: Part
    calibration: Part
    test: Part
    scales: tuple[int, ...]

    @property
    def costs(self) -> tuple[float, ...]:
        """Return (K,) visual tokens relative to the finest."""
        return token_costs(self.scales)

    def columns(self, columns: NDArray[Any]) -> Splits:
        """Return the same questions with some of the features."""
        parts = (self.train, self.watched, self.calibration, self.test)
        return Splits(*(part.columns(columns) for part in parts), self.scales)


@dataclass(frozen=True)
class Values:
    """What a predictor says a scale is worth, (m, K) and (n, K), and what it takes to say it."""

    calibration: Array
    test: Array
    parameters: int
    fit_seconds: float
    ms_a_decision: float
    note: str = ""


def part_of(data: OracleData, pictures: int | None = None) -> Part:
    """Return the arrays of the questions, of the first so many pictures only if that is given."""
    part = Part(data.features, data.scores, labels_of(data), data.pictures)
    return part if pictures is None else part.take(part.pictures < pictures)


def resampled(
    train: Part,
    calibration: Part,
    test: Part,
    scales: Sequence[int],
    seed: int,
    pictures: int | None = None,
) -> Splits:
    """Return the splits of a seed.

    Args:
        pictures: training pictures to draw, those watched included; None takes them all.
    """
    names = np.unique(train.pictures)
    drawn = np.random.default_rng(seed).permutation(names)[: pictures or len(names)]
    watched = drawn[: max(1, round(WATCHED * len(drawn)))]
    kept = drawn[len(watched) :]
    return Splits(
        train.take(np.isin(train.pictures, kept)),
        train.take(np.isin(train.pictures, watched)),
        calibration,
        test,
        tuple(scales),
    )


def judge(values: Values, splits: Splits) -> dict[str, float | None]:
    """Return the figures of one fitted predictor.

    ``calibration_tokens_at_…`` chooses between predictors, ``tokens_at_…`` is read off the test
    hull (optimistic: the price is chosen there), ``accuracy`` and the rest are the operating point
    at the price that keeps ``TARGET`` of the finest accuracy on calibration pictures.
    """
    found: dict[str, float | None] = {}
    for name, part, said in (
        ("calibration_", splits.calibration, values.calibration),
        ("", splits.test, values.test),
    ):
        line = frontier(said, part.scores, splits.costs, scales=splits.scales)
        finest = float(part.scores[:, -1].mean())
        for share in SHARES:
            found[f"{name}tokens_at_{share:g}"] = cost_at_accuracy(
                line.visual_tokens, line.accuracy, share * finest
            )
    calibration, test = splits.calibration, splits.test
    price = calibrate_price(
        values.calibration, calibration.scores, splits.costs, calibration.pictures, target=TARGET
    )
    if price.feasible:
        picks = choose_many(values.test, splits.costs, price.price)
    else:
        picks = np.full(len(test.scores), len(splits.scales) - 1)
    accuracy = float(picked(test.scores, picks).mean())
    return found | {
        "accuracy": accuracy,
        "share_of_finest_accuracy": accuracy / float(test.scores[:, -1].mean()),
        "visual_tokens": float(np.array(splits.scales, float)[picks].mean()),
        "price": price.price,
        "parameters": float(values.parameters),
        "ms_a_decision": values.ms_a_decision,
        "fit_seconds": values.fit_seconds,
    }


def summary(runs: Sequence[dict[str, float | None]]) -> dict[str, dict[str, float] | None]:
    """Return ``{figure: {mean, spread}}`` over seeds; None where a seed has no such figure."""
    found: dict[str, dict[str, float] | None] = {}
    for name in runs[0]:
        numbers = [run[name] for run in runs]
        known = np.array([number for number in numbers if number is not None], float)
        if len(known) < len(numbers):
            found[name] = None
        else:
            spread = float(known.std(ddof=1)) if len(known) > 1 else 0.0
            found[name] = {"mean": float(known.mean()), "spread": spread}
    return found


def calibration_tokens(figures: dict[str, dict[str, float] | None]) -> float:
    """Return the geometric mean of the calibration tokens at all shares; infinite if one is None.

    What predictors are chosen by: never a test figure.
    """
    cells = [figures[f"calibration_tokens_at_{share:g}"] for share in SHARES]
    if any(cell is None for cell in cells):
        return float("inf")
    return float(np.exp(np.mean([np.log(cell["mean"]) for cell in cells if cell is not None])))
