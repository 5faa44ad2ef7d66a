"""The policies a router must beat, fitted on the same training pictures: values per action.

A static table by dataset and question type (of the uniform scales, and of all actions), a router
that sees the question only, one that sees the picture only, and one that is told what the scene
really holds (a ceiling, not a rival). Knows oracle data and predictors; does not know prices, tests
or reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from router.predictor.matrix import Matrix
from training.figures.metrics import Picks
from training.fitting.predictor import fit_predictor
from training.oracle.data import OracleData
from training.progress import Steps
from training.sources.target_cells import METADATA_KEY, names

Array = NDArray[np.float64]
SHRINK = 10.0  # a type's mean counts as much as the mean of all after this many questions
TOLERANCE = 0.01
TABLE, TABLE_OF_ALL = "type_table", "type_table_same_actions"
TABLES = (TABLE, TABLE_OF_ALL)
SEES = {"question_only": ("question",), "image_only": ("picture", "statistics")}  # feature groups

Parts = tuple[OracleData, OracleData, OracleData]  # training, calibration and test questions


@dataclass(frozen=True)
class Baseline:
    """A named policy: predicted values (n, A) on the calibration and on the test questions."""

    name: str
    calibration: Array
    test: Array
    over_scales: bool = False  # the values are (n, K), of the uniform scales alone


class Typed(Protocol):
    """Questions of known type with their scores."""

    @property
    def groups(self) -> NDArray[np.str_]:
        """Return (n,) "dataset/kind"."""

    @property
    def scores(self) -> Array:
        """Return (n, A)."""


def names_of(parts: Parts) -> list[str]:
    """Return the names of the baselines that the data allow; the ceilings need scene metadata.

    ``privileged`` is the better-informed ceiling: with the statistics of the true masks where the
    data have them, and then ``privileged_metadata`` is the one without.
    """
    tables = (TABLE,) if parts[0].space.is_uniform else TABLES
    found = [*tables, "question_only", "image_only"]
    if not all(has_privileged(part) for part in parts):
        return found
    without = ["privileged_metadata"] if all(has_masks(part) for part in parts) else []
    return [*found, *without, "privileged"]


def baselines(names: Sequence[str], parts: Parts, steps: Steps) -> list[Baseline]:
    """Return the baselines of these names (see `names_of`); a step is begun for each booster."""
    return [
        _table(name, parts) if name in TABLES else _fitted(name, parts, steps) for name in names
    ]


def _table(name: str, parts: Parts) -> Baseline:
    train, calibration, test = parts
    table, few = type_table(train), name == TABLE
    if few:
        columns = list(train.space.uniform)
        table = {key: means[columns] for key, means in table.items()}
    return Baseline(name, look_up(table, calibration), look_up(table, test), few)


def _fitted(name: str, parts: Parts, steps: Steps) -> Baseline:
    train, calibration, _ = parts
    seen = _seen(name, parts)
    predictor = fit_predictor(
        (seen[0], seen[1]), train, calibration,
        progress=lambda done, total, now: steps.begin(f"{name}: {now}"),
    )  # fmt: skip
    held, test = (np.asarray(predictor.predict_proba(x), float) for x in seen[1:])
    return Baseline(name, held, test)


def _seen(name: str, parts: Parts) -> Sequence[Matrix]:
    """Return (n, F) for each part: all that the baseline of this name sees of its questions."""
    if name in SEES:
        columns = parts[0].schema.columns(*SEES[name])
        return [part.features[:, columns] for part in parts]
    kinds = sorted(set(parts[0].groups.tolist()))
    told = [privileged_features(part, kinds) for part in parts]
    if name == "privileged_metadata" or not all(has_masks(part) for part in parts):
        return told
    return [np.hstack([x, mask_features(p)]) for x, p in zip(told, parts, strict=True)]


def type_table(train: Typed) -> dict[str, Array]:
    """Return the mean score per action of each "dataset/kind", shrunk to that of all; "" is all."""
    return _means(train.groups, train.scores)


def dataset_values(train: Typed, on: Typed) -> Array:
    """Return (n, A): the mean score per action of the dataset of each question of ``on``."""
    table = _means(datasets_of(train.groups), train.scores)
    return rows_of(table, datasets_of(on.groups))


def _means(keys: NDArray[np.str_], scores: Array) -> dict[str, Array]:
    overall = scores.mean(axis=0)
    table = {"": overall}
    for key in sorted(set(keys.tolist())):
        rows = scores[keys == key]
        table[key] = (rows.sum(axis=0) + SHRINK * overall) / (len(rows) + SHRINK)
    return table


def look_up(table: dict[str, Array], data: Typed) -> Array:
    """Return (n, A): each question's row of the table; unknown types get the mean of all."""
    return rows_of(table, data.groups)


def rows_of(table: dict[str, Array], keys: NDArray[np.str_]) -> Array:
    """Return (n, A): the table's row of each key (n,), that of "" where it is unknown."""
    return np.stack([table.get(key, table[""]) for key in keys.tolist()])


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


def has_masks(data: OracleData) -> bool:
    """Return whether every question holds the statistics of its target's true mask."""
    wanted = len(names())
    return all(len(m.get(METADATA_KEY, ())) == wanted for m in data.metadata)


def mask_features(data: OracleData) -> NDArray[np.float32]:
    """Return (n, M): what the true mask of the target tells, as `sources.target_cells` names it."""
    return np.array([m[METADATA_KEY] for m in data.metadata], dtype=np.float32)


def datasets_of(groups: NDArray[np.str_]) -> NDArray[np.str_]:
    """Return (n,): the dataset of each "dataset/kind"."""
    return np.array([group.partition("/")[0] for group in groups.tolist()], dtype=np.str_)


def cheapest_within(
    keys: NDArray[np.str_], scores: Array, tolerance: float = TOLERANCE
) -> dict[str, int]:
    """Return for each key the coarsest scale's index whose mean is within the tolerance of the
    finest scale's; the key "" is for questions of no known key.

    Args:
        keys: (n,) of training questions.
        scores: (n, K) of the uniform scales.
    """

    def choose(part: Array) -> int:
        means = part.mean(axis=0)
        return int(np.argmax(means >= means[-1] - tolerance))

    return {"": choose(scores)} | {key: choose(scores[keys == key]) for key in np.unique(keys)}


def picks_of(choices: dict[str, int], keys: NDArray[np.str_]) -> Picks:
    """Return (n,) the index of the scale that each question gets."""
    return np.array([choices.get(key, choices[""]) for key in keys.tolist()], dtype=np.intp)
