"""The Arrow types of the written records: which column has which type and may be empty.

Knows field names; knows nothing of what the records mean or where they lie. A change that an old
reader would misread raises ``SCHEMA_VERSION``.
"""

import dataclasses
import functools
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = "1"

_NULLABLE = {
    "OracleRecord": {"reference", "size_px"},
    "DecisionRecord": {
        "question", "p_suffices", "price", "answer", "confidence", "max_harm", "escalated_from",
        "first_confidence",
    },
    "FeedbackRecord": {"reference", "score"},
}  # fmt: skip


def schema_of(record_type: type) -> "pa.Schema":
    """Return the Arrow schema of a record dataclass; its metadata holds ``schema_version``.

    Raises:
        TypeError: not one of the record types.
    """
    if record_type.__name__ not in _NULLABLE:
        raise TypeError(f"{record_type!r} is not a record type")
    return _schema(cast(Hashable, record_type))


@functools.cache
def _schema(record_type: Any) -> "pa.Schema":
    import pyarrow as pa

    texts, floats, ints = pa.list_(pa.string()), pa.list_(pa.float32()), pa.list_(pa.int32())
    types: dict[str, Any] = {
        "scales": ints,
        "answers": texts,
        "scores": floats,
        "p_reference": floats,
        "confidence": floats,
        "visual_tokens": ints,
        "features": floats,
        "size_px": pa.float32(),
        "time_utc": pa.timestamp("us", tz="UTC"),
        "picture_ids": texts,
        "scale": pa.int32(),
        "p_suffices": floats,
        "price": pa.float64(),
        "max_harm": pa.float64(),
        "escalated_from": pa.int32(),
        "first_confidence": pa.float32(),
        "prompt_tokens": pa.int32(),
        "completion_tokens": pa.int32(),
        "route_ms": pa.float32(),
        "encode_ms": pa.float32(),
        "total_ms": pa.float32(),
        "audited": pa.bool_(),
        "score": pa.float32(),
    }
    name = record_type.__name__
    if name == "DecisionRecord":  # one number a request here, one a scale in the oracle's
        types |= {"confidence": pa.float32(), "visual_tokens": pa.int32()}
    return pa.schema(
        [
            pa.field(
                field.name,
                types.get(field.name, pa.string()),
                nullable=field.name in _NULLABLE[name],
            )
            for field in dataclasses.fields(record_type)
        ],
        metadata={"schema_version": SCHEMA_VERSION, "record": name},
    )
