"""Oracle data of any size, drawn and written block by block as collect writes it.

Every question needs some scale, a linear function of its first features and of its kind; the
others are noise. Knows the oracle's columns; knows nothing of fitting.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from router.features.schema import FeatureSchema

SCALES = (1, 9, 36, 144, 576)
KINDS = ("colour", "word", "bar")
PER_PICTURE = 4  # questions
BLOCK = 4096  # rows of a shard
TELLING = 8  # features that tell something
MODEL = "0123456789abcdef"


def schema_of(width: int) -> FeatureSchema:
    """Return a schema of that many features without a meaning."""
    return FeatureSchema(
        names=tuple(f"made_{i:04d}" for i in range(width)), groups=("made",) * width,
        scales=SCALES, grid_side=24, embedding_dim=32, relevance="made",
    )  # fmt: skip


def write_made(folder: Path, rows: int, width: int, seed: int = 0) -> Path:
    """Write an oracle folder of ``rows`` questions with ``width`` features; return it."""
    import pyarrow.parquet as pq

    schema = schema_of(width)
    folder.mkdir(parents=True)
    for shard, start in enumerate(range(0, rows, BLOCK)):
        random = np.random.default_rng([seed, shard])
        table = _table(random, start, min(BLOCK, rows - start), schema)
        path = folder / f"oracle-{shard:05d}.parquet"
        pq.write_table(table, path, compression="zstd", compression_level=1)
    manifest = {
        "model_hash": MODEL, "feature_schema": schema.hash, "scales": SCALES, "relevance": "made",
        "grid_side": 24, "embedding_dim": 32, "shards": -(-rows // BLOCK),
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def _table(random: np.random.Generator, first: int, n: int, schema: FeatureSchema) -> Any:
    import pyarrow as pa

    from router.records import OracleRecord
    from router.records import schema_of as columns_of

    features = random.standard_normal((n, len(schema.names)), dtype=np.float32)
    kinds = random.integers(len(KINDS), size=n)
    need = 2.0 + features[:, :TELLING] @ np.linspace(1.0, 0.2, TELLING) + 0.5 * (kinds - 1)
    chance = 0.95 / (1.0 + np.exp(-3.0 * (np.arange(len(SCALES)) + 0.5 - need[:, None])))
    right = random.random(chance.shape) < chance
    numbers = range(first, first + n)
    answers = np.where(right, "yes", "no").reshape(-1).tolist()
    columns: dict[str, Any] = {
        "picture_id": [f"{number // PER_PICTURE:064x}" for number in numbers],
        "question_id": [f"made-{number}" for number in numbers],
        "question": [f"what is made {number % PER_PICTURE}?" for number in numbers],
        "kind": [KINDS[kind] for kind in kinds.tolist()],
        "dataset": ["made"] * n, "reference": ["yes"] * n, "source": ["scenes"] * n,
        "scales": _lists(np.tile(np.array(SCALES, np.int32), (n, 1))),
        "answers": _lists(np.array(answers, object).reshape(n, -1)),
        "scores": _lists(right.astype(np.float32)),
        "p_reference": _lists(chance.astype(np.float32)),
        "confidence": _lists(np.where(right, 0.9, 0.4).astype(np.float32)),
        "visual_tokens": _lists(np.tile(np.array(SCALES, np.int32), (n, 1))),
        "features": _lists(features),
        "feature_schema": [schema.hash] * n, "model_hash": [MODEL] * n,
        "metadata": [json.dumps({"clutter": number % 7, "made": True}) for number in numbers],
    }  # fmt: skip
    wanted = columns_of(OracleRecord)
    arrays = [
        pa.array(columns[each.name], each.type)
        if isinstance(columns.get(each.name), list)
        else columns.get(each.name, pa.nulls(n, each.type)).cast(each.type)
        for each in wanted
    ]
    return pa.Table.from_arrays(arrays, schema=wanted)


def _lists(table: np.ndarray) -> Any:
    import pyarrow as pa

    offsets = np.arange(len(table) + 1, dtype=np.int32) * table.shape[1]
    return pa.ListArray.from_arrays(offsets, pa.array(table.reshape(-1)))
