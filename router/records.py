"""What is written down: oracle labels, decisions and feedback, with their Arrow schemas.

Knows columns, types and versions; knows nothing of files, routers or the service. Logs and oracle
data are Parquet, so pyarrow is loaded on the first use of a schema or table.
Notation: n records, K scales, F features.
"""

import dataclasses
import functools
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import pyarrow as pa

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

Split = Literal["train", "calibration", "test"]


@dataclass(frozen=True, kw_only=True, slots=True)
class OracleRecord:
    """One question about one picture, answered at every scale.

    Lists are aligned with ``scales``. ``scores`` is exact match where a reference answer exists,
    else agreement with the finest scale's answer. ``p_reference`` is the model's likelihood of the
    reference answer with its end token, ``confidence`` that of its own answer. Nothing is made
    monotone: a finer scale may score worse.
    """

    picture_id: str
    question_id: str
    question: str
    kind: str = ""
    dataset: str
    reference: str | None = None
    source: Literal["scenes", "llava", "log"]
    scales: tuple[int, ...]
    answers: tuple[str, ...]
    scores: tuple[float, ...]
    p_reference: tuple[float, ...]
    confidence: tuple[float, ...]
    visual_tokens: tuple[int, ...]
    features: tuple[float, ...] | np.ndarray
    feature_schema: str
    model_hash: str
    size_px: float | None = None
    metadata: str = "{}"

    def __post_init__(self) -> None:
        for name in ("answers", "scores", "p_reference", "confidence", "visual_tokens"):
            if len(getattr(self, name)) != len(self.scales):
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries for {len(self.scales)} scales"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionRecord:
    """One request as it was served; text and answer are None unless logging them is switched on.

    ``time_utc`` is an aware datetime. ``p_suffices`` is aligned with the checkpoint's scales and
    None where nothing was predicted. ``status`` is "ok" or an error code. ``max_harm`` is the
    certified bound the decision was held to, None where none was asked for. ``escalated_from`` and
    ``first_confidence`` are the first answer's where a second look followed: then ``scale`` is the
    second scale, and tokens are the sum of both.
    """

    request_id: str
    time_utc: datetime
    picture_ids: tuple[str, ...]
    question: str | None = None
    model: str
    scale: int
    visual_tokens: int
    reason: str
    p_suffices: tuple[float, ...] | None = None
    price: float | None = None
    router_version: str = ""
    answer: str | None = None
    confidence: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    route_ms: float = 0.0
    encode_ms: float = 0.0
    total_ms: float = 0.0
    audited: bool = False
    status: str = "ok"
    max_harm: float | None = None
    escalated_from: int | None = None
    first_confidence: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedbackRecord:
    """What a caller later said about an answer: the right one, or a score in [0, 1], or both."""

    request_id: str
    time_utc: datetime
    reference: str | None = None
    score: float | None = None


@dataclass(frozen=True)
class OracleArrays:
    """Oracle records as columns, ready for fitting: rows are (picture, question) pairs.

    Attributes:
        picture_ids, question_ids, questions, kinds, datasets: (n,) object arrays of str.
        splits: (n,) object array of `split_of` each picture.
        scales: K scales, ascending, the same for all rows.
        features: (n, F) float32 with the schema hash ``feature_schema``.
        scores, p_reference, confidence: (n, K) float32.
        visual_tokens: (n, K) int32.
    """

    picture_ids: np.ndarray
    question_ids: np.ndarray
    questions: np.ndarray
    kinds: np.ndarray
    datasets: np.ndarray
    splits: np.ndarray
    scales: tuple[int, ...]
    features: np.ndarray
    feature_schema: str
    scores: np.ndarray
    p_reference: np.ndarray
    confidence: np.ndarray
    visual_tokens: np.ndarray


Record = TypeVar("Record", OracleRecord, DecisionRecord, FeedbackRecord)


def picture_id(rgb: np.ndarray) -> str:
    """Return the identity of a picture: sha256 over b"WxH" and its decoded RGB pixels.

    Args:
        rgb: (H, W, 3) uint8. Two files of one picture (PNG, BMP) have one identity.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"expected (H, W, 3) uint8 pixels, got {rgb.shape} {rgb.dtype}")
    height, width, _ = rgb.shape
    digest = hashlib.sha256(f"{width}x{height}".encode())
    digest.update(np.ascontiguousarray(rgb).data)
    return digest.hexdigest()


def split_of(picture_id: str) -> Split:
    """Return the part of the data a picture belongs to, for ever: 50 / 20 / 30 %.

    A pure function of the identity: whoever collects the picture, whenever, puts it in the same
    part, so no router can have been fitted on a picture that later tests it.
    """
    # Hashed again with a salt, so that other uses of the identity's digits stay independent.
    digest = hashlib.sha256(b"m3-router split 1:" + picture_id.encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < 0.5:
        return "train"
    return "calibration" if share < 0.7 else "test"


def calibrates(picture_id: str) -> bool:
    """Return whether a calibration picture (a third of them) is one that fits probabilities.

    The others choose prices and carry certificates: a certificate needs pictures that nothing in
    the predictor has seen, its mapping from scores to probabilities included.
    """
    digest = hashlib.sha256(b"m3-router calibration 1:" + picture_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < 1 / 3


def to_table(records: Iterable[Record], record_type: type[Record]) -> "pa.Table":
    """Return the records as one Arrow table with the type's schema; no records, no rows.

    Raises:
        ValueError: a required field is None, or a time has no time zone.
    """
    import pyarrow as pa

    rows = list(records)
    schema = schema_of(record_type)
    columns = []
    for field in schema:
        values = [getattr(row, field.name) for row in rows]
        if not field.nullable and any(value is None for value in values):
            raise ValueError(f"{record_type.__name__}.{field.name} must not be None")
        if field.name == "time_utc" and any(value.tzinfo is None for value in values):
            raise ValueError("time_utc needs a time zone; use datetime.now(timezone.utc)")
        columns.append(pa.array(values, type=field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def from_table(table: "pa.Table", record_type: type[Record]) -> list[Record]:
    """Return the table's rows as records; columns the type does not know are left out.

    Raises:
        ValueError: another schema version, a missing column, or one of another type.
    """
    checked = conform(table, record_type)
    names = checked.schema.names
    columns = [
        [tuple(value) if isinstance(value, list) else value for value in column.to_pylist()]
        for column in checked.columns
    ]
    return [record_type(**dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True)]


def conform(table: "pa.Table", record_type: type[Record]) -> "pa.Table":
    """Return the table with exactly the type's columns and types.

    Other tools may have rewritten the file: metadata may be lost and text may be large_string.

    Raises:
        ValueError: another schema version, a missing column, or one of another type.
    """
    import pyarrow as pa

    schema = schema_of(record_type)
    name = record_type.__name__
    version = (table.schema.metadata or {}).get(b"schema_version")
    if version is not None and version.decode() != SCHEMA_VERSION:
        raise ValueError(
            f"{name} table has schema version {version.decode()}; "
            f"this program reads {SCHEMA_VERSION}"
        )
    for field in schema:  # older logs lack newer columns that may be empty
        if field.nullable and field.name not in table.schema.names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    missing = [column for column in schema.names if column not in table.schema.names]
    if missing:
        raise ValueError(f"{name} table lacks the columns {', '.join(missing)}")
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise ValueError(f"{name} table does not fit its schema: {error}") from error


def oracle_arrays(table: "pa.Table") -> OracleArrays:
    """Return oracle records as arrays for fitting and evaluation, without a Python object a row.

    Raises:
        ValueError: no rows, several sets of scales, or several feature schemas in one table.
    """
    checked = conform(table, OracleRecord).combine_chunks()
    n = checked.num_rows
    if n == 0:
        raise ValueError("the oracle table has no rows; collect some first")

    def texts(column: str) -> np.ndarray:
        return np.asarray(checked[column].to_pylist(), dtype=object)

    def matrix(column: str) -> np.ndarray:
        lists = checked[column].combine_chunks()
        flat: np.ndarray = lists.flatten().to_numpy(zero_copy_only=False)
        lengths = np.unique(lists.value_lengths().to_numpy(zero_copy_only=False))
        if len(lengths) != 1:
            raise ValueError(f"column {column} has rows of different lengths: {lengths.tolist()}")
        return flat.reshape(n, int(lengths[0]))

    scales = matrix("scales")
    if (scales != scales[0]).any():
        raise ValueError("the oracle table mixes records with different scales")
    schemas = sorted(set(checked["feature_schema"].to_pylist()))
    if len(schemas) != 1:
        raise ValueError(f"the oracle table mixes feature schemas {', '.join(schemas)}")
    picture_ids = texts("picture_id")
    splits = {picture: split_of(picture) for picture in set(picture_ids.tolist())}
    return OracleArrays(
        picture_ids=picture_ids,
        question_ids=texts("question_id"),
        questions=texts("question"),
        kinds=texts("kind"),
        datasets=texts("dataset"),
        splits=np.asarray([splits[picture] for picture in picture_ids], dtype=object),
        scales=tuple(int(scale) for scale in scales[0]),
        features=matrix("features"),
        feature_schema=schemas[0],
        scores=matrix("scores"),
        p_reference=matrix("p_reference"),
        confidence=matrix("confidence"),
        visual_tokens=matrix("visual_tokens"),
    )


def __getattr__(name: str) -> Any:
    # The schemas as constants, made on first use so that this module loads without pyarrow.
    types = {
        "ORACLE_SCHEMA": OracleRecord,
        "DECISION_SCHEMA": DecisionRecord,
        "FEEDBACK_SCHEMA": FeedbackRecord,
    }
    if name in types:
        return schema_of(types[name])
    raise AttributeError(f"module 'router.records' has no attribute {name!r}")


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
