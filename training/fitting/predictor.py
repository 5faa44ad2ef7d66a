"""What a predictor learns from oracle data, and the predictor that learnt it.

Knows questions, labels and predictors; does not know prices, routers or who asks.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from router.actions import ActionSpace
from router.predictor.calibration import fit_calibration
from router.predictor.chain import ComplexityPredictor
from router.predictor.linear import fit_linear
from training.figures.metrics import Array
from training.oracle.data import OracleData
from training.progress import Progress, unseen

Labels = Literal["auto", "soft", "hard"]
RIDGE = 500.0  # rows; docs/experiments.md


def labels_of(data: OracleData, kind: Labels = "auto") -> Array:
    """Return the (n, A) targets a predictor learns, in [0, 1].

    ``soft`` is P(reference answer), ``hard`` the score. ``auto`` takes the soft label where the
    question has a reference; without one the likelihood is that of the finest answer, which says
    little about being right, so the score (agreement) is taken.
    """
    if kind == "hard":
        return np.clip(data.scores, 0.0, 1.0)
    soft = np.clip(data.soft, 0.0, 1.0)
    if kind == "soft":
        return soft
    return np.where(data.has_reference[:, None], soft, np.clip(data.scores, 0.0, 1.0))


def fit_predictor(
    features: tuple[NDArray[np.float32], NDArray[np.float32]],
    train: OracleData,
    calibration: OracleData,
    labels: Labels = "auto",
    progress: Progress = unseen,
) -> ComplexityPredictor:
    """Return a predictor fitted on the training questions, calibrated to the calibration scores.

    The likelihood of an answer is smoother to learn than whether greedy decoding hits it, but lower
    than its probability of being right: so the raw score is mapped to scores it was not fitted on.
    Where there are foci, the boosters' log odds are averaged with those of a ridge regression.

    Args:
        features: (n, F) of the training and (m, F) of the calibration questions.
        progress: called as each action's booster begins.
    """
    predictor = ComplexityPredictor(
        calibration="none", **_starts(train.space), learning_rate=0.15, n_estimators=200
    )
    predictor.fit(features[0], labels_of(train, labels), groups=train.units, progress=progress)
    if not train.space.is_uniform:
        predictor.linear_ = fit_linear(features[0], labels_of(train, labels), RIDGE)
    raw = predictor.raw_scores(features[1])
    predictor.calibrations_ = [
        before if before.kind == "constant" else fit_calibration("platt", raw[:, k], scores)
        for k, (before, scores) in enumerate(
            zip(predictor.calibrations_, calibration.scores.T, strict=True)
        )
    ]
    return predictor


def _starts(space: ActionSpace) -> dict[str, Any]:
    """Return how the boosters build on each other; scales alone are a chain, as ever."""
    return {"chained": True} if space.is_uniform else {"bases": space.bases}
