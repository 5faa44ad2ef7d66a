"""What a predictor learns from oracle data, and the predictor that learnt it.

Knows questions, labels and predictors; does not know prices, routers or who asks.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from router.actions import ActionSpace
from router.predictor.boosting import SAMPLED
from router.predictor.calibration import fit_calibration
from router.predictor.chain import ComplexityPredictor
from router.predictor.linear import fit_linear
from router.predictor.matrix import Matrix
from training.errors import TrainingError
from training.figures.metrics import Array
from training.fitting.references import speaking
from training.oracle.data import OracleData
from training.progress import Progress, unseen
from training.scoring import METRICS

Labels = Literal["auto", "soft", "hard"]
Grow = Callable[[ComplexityPredictor, Matrix, Array, NDArray[np.int64], Progress], None]
ONE_THREAD = SAMPLED  # training questions; up to here every machine makes the same bytes
RIDGE = 500.0  # rows; docs/experiments.md


def labels_of(data: OracleData, kind: Labels = "auto") -> Array:
    """Return the (n, A) targets a predictor learns, in [0, 1].

    ``soft`` is P(reference answer), ``hard`` the score. ``auto`` takes the soft label where the
    question has a reference that an answer either hits or misses. Without one the likelihood is
    that of the finest answer, which says little about being right, and a graded score says itself
    how near an answer is: there the score is taken, as where no likelihood is known (NaN).

    Raises:
        TrainingError: ``soft``, and some likelihood is not known.
    """
    if kind == "hard":
        return np.clip(data.scores, 0.0, 1.0)
    soft, told = np.clip(data.soft, 0.0, 1.0), np.isfinite(data.soft).all(axis=1)
    if kind == "soft":
        if not told.all():
            raise TrainingError(
                f"--labels soft needs likelihoods, which {(~told).sum()} of {len(data)} training "
                "questions lack: leave it out, and these are learnt from their scores"
            )
        return soft
    graded = np.isin(data.metrics, [metric.name for metric in METRICS.values() if metric.graded])
    takes_soft = data.has_reference & ~graded & told
    return np.where(takes_soft[:, None], soft, np.clip(data.scores, 0.0, 1.0))


def _one_population(
    train: OracleData, calibration: OracleData
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which training rows are learnt from and which calibration rows calibrate.

    Agreement teaches of the finest scale that it is always right, references do not: beside each
    other they would teach neither. With `LEAST_TOLD` references in both parts, what is right is
    theirs to say: they alone calibrate, and agreement is brought to their meaning. With fewer,
    agreement is learnt, from the rows without one.
    """
    told, referenced = calibration.has_reference, speaking(train, calibration)
    if referenced is None:
        return np.ones(len(train), bool), np.ones(len(calibration), bool)
    if referenced:
        return np.ones(len(train), bool), told if told.any() else ~told
    return ~train.has_reference, ~told


def _as_being_right(
    features: Matrix, targets: Array, data: OracleData, finest: ComplexityPredictor
) -> Array:
    """Return targets (n, A) that all say P(right), also where only agreement is known.

    An answer that agrees with the finest is right as often as that one is. That chance is learnt by
    ``finest`` from the rows with a reference. All with a reference, or none: as they are.
    """
    known = data.has_reference
    if known.all() or not known.any():
        return targets
    finest.fit(features[known], targets[known][:, -1:], groups=data.pictures[known])
    made = targets.copy()
    made[~known] *= finest.predict_proba(features[~known])
    return made


def fit_predictor(
    features: tuple[Matrix, Matrix],
    train: OracleData,
    calibration: OracleData,
    labels: Labels = "auto",
    progress: Progress = unseen,
    grow: Grow | None = None,
) -> ComplexityPredictor:
    """Return a predictor fitted on the training questions, calibrated to the calibration scores.

    The likelihood of an answer is smoother to learn than whether greedy decoding hits it, but lower
    than its probability of being right: so the raw score is mapped to scores it was not fitted on.
    Where there are foci, the boosters' log odds are averaged with those of a ridge regression.
    Rows without a reference are brought to the meaning of those with one, or fitted without them.

    Args:
        features: (n, F) of the training and (m, F) of the calibration questions.
        progress: called as each action's booster begins.
        grow: fits boosters in place of the predictor's own ``fit``, as `on_ray.grow` does.
    """
    learnt, held = _one_population(train, calibration)
    if not learnt.all():
        features, train = (features[0][learnt], features[1]), train.take(learnt)
    if not held.all():
        features, calibration = (features[0], features[1][held]), calibration.take(held)
    made: dict[str, Any] = {"calibration": "none", "learning_rate": 0.15, "n_estimators": 200}
    if len(train) > ONE_THREAD:
        made["num_threads"] = len(os.sched_getaffinity(0))
    predictor = ComplexityPredictor(**_starts(train.space), **made)
    targets = _as_being_right(
        features[0], labels_of(train, labels), train, ComplexityPredictor(**made)
    )
    (grow or _here)(predictor, features[0], targets, train.pictures, progress)
    if not train.space.is_uniform:
        predictor.linear_ = fit_linear(features[0], targets, RIDGE)
    raw = predictor.raw_scores(features[1])
    predictor.calibrations_ = [
        before if before.kind == "constant" else fit_calibration("platt", raw[:, k], scores)
        for k, (before, scores) in enumerate(
            zip(predictor.calibrations_, calibration.scores.T, strict=True)
        )
    ]
    return predictor


def _here(
    predictor: ComplexityPredictor, X: Matrix, Y: Array, groups: NDArray[np.int64],
    progress: Progress,
) -> None:  # fmt: skip
    predictor.fit(X, Y, groups=groups, progress=progress)


def _starts(space: ActionSpace) -> dict[str, Any]:
    """Return how the boosters build on each other; scales alone are a chain, as ever."""
    return {"chained": True} if space.is_uniform else {"bases": space.bases}
