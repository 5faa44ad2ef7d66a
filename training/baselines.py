"""The policies a router must beat, fitted on the same training pictures: values per scale.

A static table by dataset and question type, a router that sees the question only, one that sees the
picture only, and one that is told what the scene really holds (a ceiling, not a rival). Knows
oracle data and predictors; does not know prices, tests or reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from router.calibration import fit_calibration
from router.predictor import ComplexityPredictor
from training.oracle_data import OracleData

Array = NDArray[np.float64]
Labels = Literal["auto", "soft", "hard"]
SHRINK = 10.0  # a type's mean counts as much as the mean of all after this many questions
IMAGE_GROUPS = ("picture", "statistics")
QUESTION_GROUPS = ("question",)


@dataclass(frozen=True)
class Baseline:
    """A named policy: predicted values (n, K) on the calibration and on the test questions."""

    name: str
    calibration: Array
    test: Array


def labels_of(data: OracleData, kind: Labels = "auto") -> Array:
    """Return the (n, K) targets a predictor learns, in [0, 1].

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
) -> ComplexityPredictor:
    """Return a predictor fitted on the training questions, calibrated to the calibration scores.

    The likelihood of an answer is smoother to learn than whether greedy decoding hits it, but lower
    than its probability of being right: so the raw score is mapped to scores it was not fitted on.

    Args:
        features: (n, F) of the training and (m, F) of the calibration questions.
    """
    predictor = ComplexityPredictor(calibration="none")
    predictor.fit(features[0], labels_of(train, labels), groups=train.picture_ids)
    raw = predictor.raw_scores(features[1])
    predictor.calibrations_ = [
        before if before.kind == "constant" else fit_calibration("platt", raw[:, k], scores)
        for k, (before, scores) in enumerate(
            zip(predictor.calibrations_, calibration.scores.T, strict=True)
        )
    ]
    return predictor


def baselines(train: OracleData, calibration: OracleData, test: OracleData) -> list[Baseline]:
    """Return every baseline that the data allow; ``privileged`` needs scene metadata."""
    table = type_table(train)
    found = [Baseline("type_table", *(look_up(table, part) for part in (calibration, test)))]
    for name, groups in (("question_only", QUESTION_GROUPS), ("image_only", IMAGE_GROUPS)):
        columns = train.schema.columns(*groups)
        parts = [part.features[:, columns] for part in (train, calibration, test)]
        found.append(_fitted(name, train, calibration, parts))
    if all(has_privileged(part) for part in (train, calibration, test)):
        kinds = sorted(set(train.groups.tolist()))
        told = [privileged_features(part, kinds) for part in (train, calibration, test)]
        found.append(_fitted("privileged", train, calibration, told))
    return found


def type_table(train: OracleData) -> dict[str, Array]:
    """Return the mean score per scale of each "dataset/kind", shrunk to that of all; "" is all."""
    overall = train.scores.mean(axis=0)
    table = {"": overall}
    for group in sorted(set(train.groups.tolist())):
        rows = train.scores[train.groups == group]
        table[group] = (rows.sum(axis=0) + SHRINK * overall) / (len(rows) + SHRINK)
    return table


def look_up(table: dict[str, Array], data: OracleData) -> Array:
    """Return (n, K): each question's row of the table; unknown types get the mean of all."""
    return np.stack([table.get(group, table[""]) for group in data.groups.tolist()])


def has_privileged(data: OracleData) -> bool:
    """Return whether every question tells the size and clutter of what it asks about."""
    return bool(np.isfinite(data.size_px).all()) and all("clutter" in m for m in data.metadata)


def privileged_features(data: OracleData, kinds: Sequence[str]) -> NDArray[np.float32]:
    """Return (n, F): one-hot type, log size, clutter and share of the picture asked about."""
    one_hot = data.groups[:, None] == np.array(kinds)[None, :]
    numbers = [
        [float(m["clutter"] or 0), float(m.get("target_share") or 0.0)] for m in data.metadata
    ]
    sizes = np.log(np.maximum(data.size_px, 1e-3))[:, None]
    return np.hstack([one_hot, sizes, np.array(numbers)]).astype(np.float32)


def _fitted(
    name: str,
    train: OracleData,
    calibration: OracleData,
    parts: Sequence[NDArray[np.float32]],
) -> Baseline:
    predictor = fit_predictor((parts[0], parts[1]), train, calibration)
    return Baseline(name, *(np.asarray(predictor.predict_proba(x), float) for x in parts[1:]))
