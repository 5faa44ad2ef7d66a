"""What is written down: oracle labels, decisions and feedback, with their Arrow schemas.

Knows columns, types and versions; knows nothing of files, routers or the service. Logs and oracle
data are Parquet, so pyarrow is loaded on the first use of a schema or table.
Version 2 tells of actions; a table of version 1, and a row that names none, is of scales alone.
Notation: n records, K scales, A actions, F features.
"""

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

Split = Literal["train", "calibration", "test"]
# Columns that are narrower than Python's numbers; the second half is Arrow's name of the type.
Int32 = Annotated[int, "int32"]
Float32 = Annotated[float, "float32"]
SCHEMA_VERSION = "2"
READ_VERSIONS = ("1", "2")
_ARROW_NAMES = {str: "string", bool: "bool", int: "int64", float: "float64"}


@dataclass(frozen=True, kw_only=True, slots=True)
class OracleRecord:
    """One question about one picture, answered by every action.

    Lists are aligned with ``actions``, or where those are None with ``scales``, the uniform ones.
    ``action_space`` is the hash of the space that the actions are of; ``cells`` what each of them
    reads finely. ``scores`` is exact match where a reference answer exists,
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
    scales: tuple[Int32, ...]
    answers: tuple[str, ...]
    scores: tuple[Float32, ...]
    p_reference: tuple[Float32, ...]
    confidence: tuple[Float32, ...]
    visual_tokens: tuple[Int32, ...]
    features: tuple[Float32, ...] | np.ndarray
    feature_schema: str
    model_hash: str
    size_px: Float32 | None = None
    metadata: str = "{}"
    actions: tuple[str, ...] | None = None
    action_space: str | None = None
    cells: tuple[tuple[Int32, ...], ...] | None = None

    def __post_init__(self) -> None:
        told = self.scales if self.actions is None else self.actions
        for name in ("answers", "scores", "p_reference", "confidence", "visual_tokens"):
            if len(getattr(self, name)) != len(told):
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries for {len(told)} actions"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionRecord:
    """One request as it was served; text and answer are None unless logging them is switched on.

    ``time_utc`` is an aware datetime. ``p_suffices`` is aligned with the actions of the router, of
    which the checkpoint's scales are all or some, and None where nothing was predicted. ``status``
    is "ok" or an error code. ``max_harm`` is the certified bound the decision was held to, None
    where none was asked for. ``escalated_from`` and ``first_confidence`` are the first answer's
    where a second look followed: then ``scale`` is the second scale, and tokens are the sum of
    both. ``tenant`` is the name of the key that asked, None where none was asked for: callers
    choose ``request_id``, so two tenants may choose the same. ``scales`` are those of each picture,
    of which ``scale`` is the finest; None in logs older than the column, and where nothing was
    decided. ``actions`` and ``cells`` are what was read of each picture (after a second look, by
    that), ``action_space`` the hash of the router's space.
    """

    request_id: str
    time_utc: datetime
    picture_ids: tuple[str, ...]
    question: str | None = None
    model: str
    scale: Int32
    visual_tokens: Int32
    reason: str
    p_suffices: tuple[Float32, ...] | None = None
    price: float | None = None
    router_version: str = ""
    answer: str | None = None
    confidence: Float32 | None = None
    prompt_tokens: Int32 = 0
    completion_tokens: Int32 = 0
    route_ms: Float32 = 0.0
    encode_ms: Float32 = 0.0
    total_ms: Float32 = 0.0
    audited: bool = False
    status: str = "ok"
    max_harm: float | None = None
    escalated_from: Int32 | None = None
    first_confidence: Float32 | None = None
    tenant: str | None = None
    scales: tuple[Int32, ...] | None = None
    actions: tuple[str, ...] | None = None
    action_space: str | None = None
    cells: tuple[tuple[Int32, ...], ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedbackRecord:
    """What a caller later said about an answer: the right one, or a score in [0, 1], or both.

    It belongs to the decision with the same ``request_id`` and ``tenant``.
    """

    request_id: str
    time_utc: datetime
    reference: str | None = None
    score: Float32 | None = None
    tenant: str | None = None


@dataclass(frozen=True)
class OracleArrays:
    """Oracle records as columns, ready for fitting: rows are (picture, question) pairs.

    Attributes:
        picture_ids, question_ids, questions, kinds, datasets: (n,) object arrays of str.
        splits: (n,) object array of `split_of` each picture.
        scales: K scales, ascending, the same for all rows.
        actions: names of the A actions, the same for all rows; scales alone are named by them.
        action_space: hash of the space they are of; None where no row tells it.
        features: (n, F) float32 with the schema hash ``feature_schema``.
        scores, p_reference, confidence: (n, A) float32.
        visual_tokens: (n, A) int32.
    """

    picture_ids: np.ndarray
    question_ids: np.ndarray
    questions: np.ndarray
    kinds: np.ndarray
    datasets: np.ndarray
    splits: np.ndarray
    scales: tuple[int, ...]
    actions: tuple[str, ...]
    action_space: str | None
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
    columns = [[_tuples(value) for value in column.to_pylist()] for column in checked.columns]
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
    if version is not None and version.decode() not in READ_VERSIONS:
        raise ValueError(
            f"{name} table has schema version {version.decode()}; "
            f"this program reads {' and '.join(READ_VERSIONS)}"
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
        ValueError: no rows, several sets of scales or of actions, or several feature schemas in
            one table.
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
    actions, action_space = _one_space(checked, tuple(int(scale) for scale in scales[0]))
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
        actions=actions,
        action_space=action_space,
        features=matrix("features"),
        feature_schema=schemas[0],
        scores=matrix("scores"),
        p_reference=matrix("p_reference"),
        confidence=matrix("confidence"),
        visual_tokens=matrix("visual_tokens"),
    )


def _one_space(table: "pa.Table", scales: tuple[int, ...]) -> tuple[tuple[str, ...], str | None]:
    """Return the names of the actions that all rows are answered by, and their space's hash.

    Raises:
        ValueError: there are several.
    """
    # Few spaces stand in many rows: what differs is found without a Python object a row.
    names = table["actions"].combine_chunks()
    spaces = table["action_space"].unique().to_pylist()
    uniform = tuple(str(scale) for scale in scales)
    if names.null_count == len(names):
        found = uniform
    else:
        found = tuple(names.drop_null()[0].as_py())
        lengths = names.value_lengths().fill_null(0).unique().to_pylist()
        width = len(found)
        flat = names.flatten().dictionary_encode().indices.to_numpy()
        same = lengths == [width] and (flat.reshape(-1, width) == flat[:width]).all()
        if not same:
            raise ValueError("the oracle table mixes records of different actions")
    if len(spaces) != 1:
        raise ValueError("the oracle table mixes records of different action spaces")
    return found, spaces[0]


def _tuples(value: Any) -> Any:
    """Return lists as tuples, also those within a list."""
    if not isinstance(value, list):
        return value
    return tuple(map(tuple, value)) if value and isinstance(value[0], list) else tuple(value)


def schema_of(record_type: type) -> "pa.Schema":
    """Return the Arrow schema of a record dataclass; its metadata holds ``schema_version``.

    The annotations are the schema: a field that may be None is nullable, a tuple is a list.

    Raises:
        TypeError: not one of the record types.
    """
    if record_type not in Record.__constraints__:
        raise TypeError(f"{record_type!r} is not a record type")
    return _schema(record_type)


@functools.cache
def _schema(record_type: type) -> "pa.Schema":
    import pyarrow as pa

    hints = get_type_hints(record_type, include_extras=True)
    return pa.schema(
        [_field(name, annotation) for name, annotation in hints.items()],
        metadata={"schema_version": SCHEMA_VERSION, "record": record_type.__name__},
    )


def _field(name: str, annotation: Any) -> "pa.Field":
    import pyarrow as pa

    union = get_origin(annotation) in (Union, UnionType)
    choices = get_args(annotation) if union else (annotation,)
    # An array may stand where a tuple is told: it holds the same numbers.
    (told,) = (choice for choice in choices if choice not in (NoneType, np.ndarray))
    return pa.field(name, _arrow_type(told), nullable=NoneType in choices)


def _arrow_type(annotation: Any) -> "pa.DataType":
    import pyarrow as pa

    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return pa.type_for_alias(arguments[1])
    if origin is tuple:
        return pa.list_(_arrow_type(arguments[0]))
    if origin is Literal:
        return _arrow_type(type(arguments[0]))
    if annotation is datetime:
        return pa.timestamp("us", tz="UTC")
    return pa.type_for_alias(_ARROW_NAMES[annotation])


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
