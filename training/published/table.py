"""The published form of oracle data: one Parquet table, a row per question and action.

Anyone can read it with any Parquet reader and score a router on it without this repository's model.
Knows the table's columns; does not know how it was collected, nor how picks are scored.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.actions import ActionSpace, uniform_space
from router.records import split_of
from training.errors import TrainingError
from training.oracle.manifest import space_of

TABLE = "instances.parquet"
DATASHEET = "datasheet.md"
FORMAT = "3"  # 2: without group_id; 1: the scales alone, without the columns about actions
HARDWARE = "NVIDIA H100 SXM"
COLUMNS = {
    "picture_id": "SHA-256 of the picture's pixels",
    "group_id": "what the picture belongs to, else itself; decides the split, counts as one",
    "question_id": "unique name of the question",
    "question": "its text",
    "kind": "question type",
    "dataset": "where the question is from",
    "reference": "right answer (null: unknown)",
    "split": "train, calibration or test, by group",
    "repeat_of": "question_id of the same question in other words (null: not a repeat)",
    "action": "how the picture was read: a scale, or a focus by its name",
    "scale": "the scale it was read at as a whole (null: a focus)",
    "coarse": "of a focus the level of the whole picture, else the scale",
    "fine": "level of the fine tokens (null: no focus)",
    "cells": "cells read finely, squares of 2x2 fine tokens numbered row by row from 0",
    "visual_tokens": "visual tokens of the request: coarse, and 4 for every cell",
    "answer": "greedy answer by this action",
    "exact_match": "1 right, 0 wrong; agreement with the finest scale's answer without a reference",
    "p_reference": "probability of the reference answer by this action",
    "confidence": "probability of the given answer by this action",
    "flops": "operations of the request, 40 text and 8 answer tokens (null: unknown); "
    "of a focus read off the line through the scales",
    "gpu_ms": f"analytic milliseconds on one {HARDWARE}, batch 64; not measured (null: unknown); "
    "of a focus read off the line through the scales",
    "size_px": "size of the smallest thing that must be seen, px (null: unknown)",
    "clutter": "things of the same sort in the picture (null: unknown)",
    "target_share": "share of the picture that is asked about (null: unknown)",
}


@dataclass(frozen=True)
class Published:
    """n questions under A actions, read back from a published table; repeats left out.

    The finest scale is the last action.
    """

    question_ids: NDArray[np.str_]
    units: NDArray[np.str_]  # what counts as one picture: groups, or pictures by themselves
    groups: NDArray[np.str_]  # "dataset/kind"
    splits: NDArray[np.str_]
    scores: NDArray[np.float64]  # (n, A), as all that follow
    visual_tokens: NDArray[np.float64]
    flops: NDArray[np.float64] | None
    gpu_ms: NDArray[np.float64] | None
    space: ActionSpace

    def __len__(self) -> int:
        return len(self.question_ids)

    @cached_property
    def pictures(self) -> NDArray[np.int64]:
        """Return (n,): the number of each question's unit."""
        return np.unique(self.units, return_inverse=True)[1].astype(np.int64)

    def split(self, name: str) -> Published:
        """Return the questions of one split."""
        rows = self.splits == name
        return Published(
            self.question_ids[rows], self.units[rows], self.groups[rows], self.splits[rows],
            self.scores[rows], self.visual_tokens[rows],
            None if self.flops is None else self.flops[rows],
            None if self.gpu_ms is None else self.gpu_ms[rows],
            self.space,
        )  # fmt: skip


def publish(records: Any, manifest: dict[str, Any], data_hash: str) -> Any:
    """Return the table: a row for each of n oracle records (an Arrow table) and each action.

    Raises:
        TrainingError: two different questions about one picture have the same name.
    """
    import pyarrow as pa

    rows = records.to_pylist()
    space = space_of(manifest)
    n, tokens = len(rows), [t for row in rows for t in row["visual_tokens"]]
    facts = [json.loads(row["metadata"] or "{}") for row in rows]
    units = [row["group_id"] or row["picture_id"] for row in rows]
    names = unique_names([(row["picture_id"], row["question_id"]) for row in rows])

    def each(values: list[Any]) -> list[Any]:
        return [value for value in values for _ in space.actions]

    def taken(per_scale: list[float] | None) -> list[float | None]:
        if per_scale is None:
            return [None] * len(tokens)
        return np.interp(tokens, space.scales, per_scale).tolist()

    def fact(name: str) -> list[float | None]:
        return each([None if f.get(name) is None else float(f[name]) for f in facts])

    def repeat_of(row: dict[str, Any], facts_: dict[str, Any]) -> str | None:
        original = facts_.get("repeat_of")
        return None if original is None else names.get((row["picture_id"], original), original)

    seconds = (manifest.get("analytic_seconds") or {}).get(HARDWARE)
    text, real, whole = pa.string(), pa.float64(), pa.int32()
    single = pa.float32()
    columns: dict[str, tuple[Any, list[Any]]] = {
        "picture_id": (text, each([r["picture_id"] for r in rows])),
        "group_id": (text, each(units)),
        "question_id": (text, each([names[r["picture_id"], r["question_id"]] for r in rows])),
        **{c: (text, each([r[c] for r in rows])) for c in ("question", "kind", "dataset")},
        "reference": (text, each([r["reference"] for r in rows])),
        "split": (text, each([split_of(unit) for unit in units])),
        "repeat_of": (text, each([repeat_of(*pair) for pair in zip(rows, facts, strict=True)])),
        "action": (text, list(space.names) * n),
        "scale": (whole, [a.coarse if a.is_uniform else None for a in space.actions] * n),
        "coarse": (whole, [a.coarse for a in space.actions] * n),
        "fine": (whole, [a.fine for a in space.actions] * n),
        "cells": (pa.list_(whole), [c for r in rows for c in r["cells"] or [[]] * len(space)]),
        "visual_tokens": (whole, tokens),
        "answer": (text, [a for r in rows for a in r["answers"]]),
        "exact_match": (single, [s for r in rows for s in r["scores"]]),
        "p_reference": (single, [p for r in rows for p in r["p_reference"]]),
        "confidence": (single, [c for r in rows for c in r["confidence"]]),
        "flops": (real, taken(manifest.get("flops"))),
        "gpu_ms": (real, taken(None if seconds is None else [1e3 * s for s in seconds])),
        "size_px": (single, each([r["size_px"] for r in rows])),
        "clutter": (single, fact("clutter")),
        "target_share": (single, fact("target_share")),
    }
    schema = pa.schema(
        [
            pa.field(name, kind, metadata={"description": COLUMNS[name]})
            for name, (kind, _) in columns.items()
        ],
        metadata={
            "format": FORMAT,
            "model_hash": manifest["model_hash"],
            "scales": json.dumps(space.scales),
            "actions": json.dumps(space.to_json()),
            "data_hash": data_hash,
        },
    )
    return pa.table([pa.array(v, kind) for kind, v in columns.values()], schema=schema)


def unique_names(keys: list[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Return a unique name for each (picture id, question id): the question id where it is one."""
    if len(set(keys)) != len(keys):
        key = Counter(keys).most_common(1)[0][0]
        raise TrainingError(f"two questions about picture {key[0]} have the same id {key[1]!r}")
    times = Counter(question for _, question in keys)
    return {
        (picture, question): question if times[question] == 1 else f"{question}@{picture[:16]}"
        for picture, question in keys
    }


def read_published(folder: Path) -> Published:
    """Return the questions of a published table.

    Raises:
        TrainingError: no such table, or one that lacks columns or rows.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / TABLE
    wanted = [
        "question_id", "picture_id", "dataset", "kind", "split", "repeat_of", "scale",
        "exact_match", "visual_tokens", "flops", "gpu_ms",
    ]  # fmt: skip
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise TrainingError(f"cannot read the table {path}: {str(error).splitlines()[0]}") from None
    missing = sorted(set(wanted) - set(table.column_names))
    if missing:
        raise TrainingError(f"{path} lacks the columns {', '.join(missing)}")
    table = table.filter(table["repeat_of"].is_null())
    space = _space_in(table, path)
    # Tables of format 1 hold the scales alone.
    action = table["action" if "action" in table.column_names else "scale"].to_pylist()
    n, left = divmod(table.num_rows, len(space))
    if n == 0 or left or [*map(str, action)] != list(space.names) * n:
        raise TrainingError(f"{path} does not hold every action of every question, in order")

    # Tables of before format 3 name no groups.
    unit = "group_id" if "group_id" in table.column_names else "picture_id"

    def first(column: str) -> NDArray[np.str_]:
        return np.array(table[column].to_pylist()[:: len(space)], dtype=np.str_)

    def numbers(column: str) -> NDArray[np.float64]:
        return np.array(table[column].to_pylist(), dtype=np.float64).reshape(n, -1)

    def known(column: str) -> NDArray[np.float64] | None:
        return None if table[column].null_count else numbers(column)

    kinds = zip(first("dataset").tolist(), first("kind").tolist(), strict=True)
    return Published(
        question_ids=first("question_id"),
        units=first(unit),
        groups=np.array([f"{dataset}/{kind}" for dataset, kind in kinds], dtype=np.str_),
        splits=first("split"),
        scores=numbers("exact_match"),
        visual_tokens=numbers("visual_tokens"),
        flops=known("flops"),
        gpu_ms=known("gpu_ms"),
        space=space,
    )


def _space_in(table: Any, path: Path) -> ActionSpace:
    """Return the actions of a table."""
    stored = (table.schema.metadata or {}).get(b"actions")
    if stored is not None:
        try:
            return ActionSpace.from_json(json.loads(stored))
        except (ValueError, KeyError, TypeError) as error:
            raise TrainingError(f"{path} holds damaged actions: {error}") from error
    if "action" in table.column_names and table["scale"].null_count:
        raise TrainingError(f"{path} has lost what its actions mean; publish it again")
    scales = sorted(set(table["scale"].to_pylist()))
    if not scales:
        raise TrainingError(f"{path} holds no question")
    return uniform_space(scales)
