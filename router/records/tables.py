"""Rows as Arrow tables and back, with the schema that their annotations are.

Knows types and versions; knows nothing of files or of what the columns mean. Logs and oracle data
are Parquet, so pyarrow is loaded on the first use of a schema or table. A table of an earlier
version lacks columns: they are None.
"""

import functools
from collections.abc import Iterable
from datetime import datetime
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np

from router.records.rows import Record

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = "4"
READ_VERSIONS = ("1", "2", "3", "4")
_ARROW_NAMES = {str: "string", bool: "bool", int: "int64", float: "float64"}


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
        ValueError: another schema version; a column is missing, there twice or of another type.
    """
    import pyarrow as pa

    schema = schema_of(record_type)
    name = record_type.__name__
    version = (table.schema.metadata or {}).get(b"schema_version")
    if version is not None and version.decode() not in READ_VERSIONS:
        raise ValueError(
            f"{name} table has schema version {version.decode()}; "
            f"this program reads {', '.join(READ_VERSIONS)}"
        )
    for field in schema:  # older logs lack newer columns that may be empty
        if field.nullable and field.name not in table.schema.names:
            table = table.append_column(field, pa.nulls(table.num_rows, field.type))
    missing = [column for column in schema.names if column not in table.schema.names]
    if missing:
        raise ValueError(f"{name} table lacks the columns {', '.join(missing)}")
    twice = [column for column in schema.names if table.schema.names.count(column) > 1]
    if twice:  # as in a damaged file
        raise ValueError(f"{name} table has several columns {', '.join(twice)}")
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise ValueError(f"{name} table does not fit its schema: {error}") from error


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
