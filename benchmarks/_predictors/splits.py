"""Same pictures for every predictor: what is learnt, watched, priced and judged, and how.

A seed keeps a random nine tenths of the training pictures; the rest tell when to stop. Prices come
from the calibration pictures, figures from the test pictures. Knows arrays and predicted values;
does not know how a predictor works.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.actions import ActionSpace
from router.policy import calibrate_price, choose_many, frontier, token_costs
from training.figures.metrics import Array, cost_at_accuracy, picked
from training.fitting.predictor import labels_of
from training.oracle.data import OracleData

SHARES = (0.99, 0.98, 0.95)
HIGHEST = 0.995  # told beside them where there are foci, which come so near
TARGET = 0.99
WATCHED = 0.1  # of the training pictures: they say when to stop


@dataclass(frozen=True)
class Part:
    """n questions under A actions: features X (n, F), scores, soft labels and visual tokens (n, A),
    picture numbers and "dataset/kind" (n,)."""

    X: NDArray[np.float32]
    scores: Array
    soft: Array
    tokens: Array
    pictures: NDArray[np.int64]
    groups: NDArray[np.str_]

    @property
    def costs(self) -> Array:
        """Return (n, A) visual tokens relative to the finest."""
        return self.tokens / self.tokens[:, -1:]

    def take(self, rows: NDArray[Any]) -> Part:
        """Return the questions of a mask or index array."""
        return Part(*(getattr(self, field.name)[rows] for field in fields(self)))

    def columns(self, columns: NDArray[Any]) -> Part:
        """Return the same questions with some of the features."""
        return replace(self, X=np.ascontiguousarray(self.X[:, columns]))

    def actions(self, actions: Sequence[int]) -> Part:
        """Return the same questions under some of the actions, the anchor among them."""
        scores, soft, tokens = (t[:, actions] for t in (self.scores, self.soft, self.tokens))
        return replace(self, scores=scores, soft=soft, tokens=tokens)


@dataclass(frozen=True)
class Splits:
    """What a predictor gets: ``train`` and ``watched`` to learn, the others to predict."""

    train: Part
    watched: Part
    calibration: Part
    test: Part
    space: ActionSpace

    @property
    def scales(self) -> tuple[int, ...]:
        """Return the K uniform scales."""
        return self.space.scales

    @property
    def costs(self) -> tuple[float, ...]:
        """Return (K,) visual tokens of the scales relative to the finest."""
        return token_costs(self.scales)

    def columns(self, columns: NDArray[Any]) -> Splits:
        """Return the same questions with some of the features."""
        parts = (self.train, self.watched, self.calibration, self.test)
        return Splits(*(part.columns(columns) for part in parts), self.space)


@dataclass(frozen=True)
class Values:
    """What a predictor says an action is worth, (m, A) and (n, A), and what it takes to say it."""

    calibration: Array
    test: Array
    parameters: int
    fit_seconds: float
    ms_a_decision: float
    note: str = ""


def part_of(data: OracleData, pictures: int | None = None) -> Part:
    """Return the arrays of the questions, of the first so many pictures only if that is given."""
    part = Part(
        data.features, data.scores, labels_of(data), data.visual_tokens, data.pictures, data.groups
    )
    return part if pictures is None else part.take(part.pictures < pictures)


def resampled(
    train: Part,
    calibration: Part,
    test: Part,
    space: ActionSpace,
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
        space,
    )


def judge(values: Values, splits: Splits) -> dict[str, float | None]:
    """Return the figures of one fitted predictor.

    ``calibration_tokens_at_…`` chooses between predictors, ``tokens_at_…`` is read off the test
    hull (optimistic: the price is chosen there), ``accuracy`` and the rest are the operating point
    at the price that keeps ``TARGET`` of the finest accuracy on calibration pictures.
    """
    found: dict[str, float | None] = {}
    for share in SHARES if splits.space.is_uniform else (HIGHEST, *SHARES):
        for name, part, said in (
            ("calibration_", splits.calibration, values.calibration),
            ("", splits.test, values.test),
        ):
            found[f"{name}tokens_at_{share:g}"] = tokens_for(said, part, share)
    calibration, test = splits.calibration, splits.test
    price = calibrate_price(
        values.calibration, calibration.scores, calibration.costs, calibration.pictures,
        target=TARGET,
    )  # fmt: skip
    if price.feasible:
        picks = choose_many(values.test, test.costs, price.price)
    else:
        picks = np.full(len(test.scores), len(splits.space) - 1)
    accuracy = float(picked(test.scores, picks).mean())
    return found | {
        "accuracy": accuracy,
        "share_of_finest_accuracy": accuracy / float(test.scores[:, -1].mean()),
        "visual_tokens": float(picked(test.tokens, picks).mean()),
        "price": price.price,
        "parameters": float(values.parameters),
        "ms_a_decision": values.ms_a_decision,
        "fit_seconds": values.fit_seconds,
    }


def tokens_for(values: Array, part: Part, share: float) -> float | None:
    """Return the mean tokens at which the hull keeps a share of the finest accuracy, if it does."""
    line = frontier(values, part.scores, part.costs, scales=part.tokens)
    finest = float(part.scores[:, -1].mean())
    return cost_at_accuracy(line.visual_tokens, line.accuracy, share * finest)


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
