"""Oracle shards to columns, batch by batch: what is not needed to fit is never all in memory.

Knows the oracle's columns; does not know folders' manifests nor what is fitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.predictor.matrix import Matrix
from router.records import OracleRecord, conform, oracle_arrays
from training.errors import MixedData, TrainingError
from training.oracle.columns.features import IN_MEMORY, Collecting
from training.oracle.columns.names import Coding, Facts, Names
from training.oracle.questions import metrics_of
from training.scoring.metric import THRESHOLD

BATCH = 4096  # rows that are read together


@dataclass(frozen=True)
class Columns:
    """n rows as they were read, a question that was labelled twice twice.

    ``units`` are settled: one a picture, the one that its first row tells. ``told`` holds the
    different values of columns that must agree with the manifest.
    """

    pictures: Names
    units: Names
    questions: Names
    question_ids: NDArray[np.str_]
    groups: NDArray[np.str_]  # "dataset/kind"
    scores: NDArray[np.float32]
    soft: NDArray[np.float32]
    confidence: NDArray[np.float32]
    visual_tokens: NDArray[np.int32]
    features: Matrix
    has_reference: NDArray[np.bool_]
    metrics: NDArray[np.str_]
    thresholds: NDArray[np.float64]
    size_px: NDArray[np.float64]
    metadata: Facts
    sources: Names
    told: dict[str, set[str | None]]


def batches(path: Path, size: int = BATCH) -> Iterator[Any]:
    """Return the rows of a shard, some at a time, as Arrow tables of the oracle's schema.

    Raises:
        TrainingError: it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(size):
                yield conform(pa.Table.from_batches([batch], file.schema_arrow), OracleRecord)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise TrainingError(
            f"cannot read {path}: {str(error).splitlines()[0]}; delete it and run the same "
            "`m3-train collect` again"
        ) from error


def rows_in(paths: Iterable[Path]) -> int:
    """Return how many rows shards have by their footers; those that cannot be read have none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    total = 0
    for path in paths:
        try:
            total += pq.read_metadata(path).num_rows
        except (OSError, pa.ArrowException):
            continue  # `batches` says what is wrong with it
    return total


def columns_of(paths: Iterable[Path], width: int, in_memory: int = IN_MEMORY) -> Columns | None:
    """Return the columns of shards; None without a row.

    Args:
        width: features of a row.
        in_memory: bytes of features from which on they lie in a file.

    Raises:
        TrainingError: a shard cannot be read.
        MixedData: rows of different scales, actions or feature schemas.
    """
    paths = list(paths)
    reading = _Reading(Collecting(rows_in(paths), width, in_memory))
    for path in paths:
        for table in batches(path):
            if table.num_rows:
                reading.add(table)
    return reading.done() if reading.tables else None


@dataclass
class _Reading:
    features: Collecting
    tables: dict[str, list[Any]] = field(default_factory=dict)
    pictures: Coding = field(default_factory=Coding)
    units: Coding = field(default_factory=Coding)
    questions: Coding = field(default_factory=Coding)
    sources: Coding = field(default_factory=Coding)
    first_unit: dict[int, str] = field(default_factory=dict)
    told: dict[str, set[str | None]] = field(default_factory=dict)
    alike: tuple[Any, ...] | None = None

    def add(self, table: Any) -> None:
        try:
            here = oracle_arrays(table)
        except ValueError as error:
            raise MixedData(str(error)) from error
        alike = (here.scales, here.actions)
        if self.alike is None:
            self.alike = alike
        if alike != self.alike:
            raise MixedData("the shards mix records of different scales or actions")
        self.features.add(here.features)
        codes = self.pictures.add(here.picture_ids.tolist())
        groups = zip(here.picture_ids.tolist(), table["group_id"].to_pylist(), strict=True)
        named = (name if group is None else group for name, group in groups)
        first = self.first_unit
        self.units.add(first.setdefault(c, n) for c, n in zip(codes, named, strict=True))
        self.questions.add(here.questions.tolist())
        self.sources.add(table["source"].to_pylist())
        for column in ("model_hash", "feature_schema", "action_space"):
            self.told.setdefault(column, set()).update(table[column].unique().to_pylist())
        known = np.array(table["reference"].is_valid().to_pylist())
        kinds = zip(here.datasets, here.kinds, strict=True)
        rows: dict[str, Any] = {
            "question_ids": here.question_ids.astype(np.str_),
            "groups": np.array([f"{dataset}/{kind}" for dataset, kind in kinds], np.str_),
            "scores": here.scores.copy(),
            "soft": here.p_reference.copy(),
            "confidence": here.confidence.copy(),
            "visual_tokens": here.visual_tokens.copy(),
            "has_reference": known,
            "metrics": metrics_of(table, known),
            "thresholds": _numbers(table["threshold"], THRESHOLD),
            "size_px": _numbers(table["size_px"], np.nan),
            "metadata": table["metadata"].combine_chunks(),
        }
        for name, values in rows.items():
            self.tables.setdefault(name, []).append(values)

    def done(self) -> Columns:
        import pyarrow as pa

        texts = pa.chunked_array(self.tables.pop("metadata"))
        whole = {name: np.concatenate(self.tables[name]) for name in list(self.tables)}
        return Columns(
            pictures=self.pictures.done(), units=self.units.done(),
            questions=self.questions.done(), sources=self.sources.done(),
            features=self.features.done(), metadata=Facts(texts, np.arange(len(texts))),
            told=self.told, **whole,
        )  # fmt: skip


def _numbers(column: Any, absent: float) -> NDArray[np.float64]:
    return np.array([absent if v is None else v for v in column.to_pylist()], np.float64)
