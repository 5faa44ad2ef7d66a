"""The growing form of a log: Arrow IPC streams of which every batch carries a checksum.

A segment is a stream as the Arrow format tells it, one batch a group of records that became durable
together. Whoever reads takes whole batches up to where the file ends, so a writer may die at any
byte. Knows Arrow and checksums; knows no folders and nothing of when a batch is written.
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from router.log.faults import NewerLog
from router.records import READ_VERSIONS, conform, schema_of

END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # of a stream, where its writer had the time
_CHECKSUM = b"crc32"


class SegmentStream:
    """Makes the bytes of one segment, batch after batch."""

    def __init__(self, kind: type[Any]) -> None:
        self._sink = io.BytesIO()
        self._writer = pa.ipc.new_stream(self._sink, schema_of(kind))

    def batch(self, table: pa.Table) -> bytes:
        """Return what comes next in the file: the table as one batch, before the first the schema.

        Args:
            table: of at least one row.
        """
        (batch,) = table.combine_chunks().to_batches()
        self._writer.write_batch(batch, custom_metadata={_CHECKSUM: _checksum(batch)})
        made = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return made


@dataclass
class SegmentRows:
    """What a segment holds: the rows of its whole batches, and what is wrong with the others."""

    table: pa.Table
    torn_bytes: int = 0  # behind the last whole batch: never acknowledged
    damaged: list[str] = field(default_factory=list)  # acknowledged once, and changed since


def read_segment(data: bytes, kind: type[Any]) -> SegmentRows:
    """Return the rows of a segment's bytes.

    Raises:
        NewerLog: it was written by a newer program.
        ValueError: it is no segment of this kind.
    """
    source = pa.BufferReader(data)
    try:
        stream = pa.ipc.open_stream(source)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"no Arrow stream ({first_line(error)})") from error
    check_version(stream.schema)
    rows = SegmentRows(conform(stream.schema.empty_table(), kind))
    tables, sound, whole = [], source.tell(), source.tell()
    while True:
        try:
            batch, facts = stream.read_next_batch_with_custom_metadata()
        except StopIteration:  # also where a power cut left zeros
            break
        except (pa.ArrowException, OSError, ValueError):
            break
        whole = source.tell()
        try:
            batch.validate(full=True)  # before anything looks behind its offsets
            if facts is None or dict(facts).get(_CHECKSUM) != _checksum(batch):
                raise ValueError("another checksum than its writer's")
            tables.append(conform(pa.Table.from_batches([batch]), kind))
            sound = whole
        except (pa.ArrowException, OSError, ValueError) as error:
            number = len(tables) + len(rows.damaged)
            rows.damaged.append(f"batch {number} is damaged: {first_line(error)}")
    if data[whole:] != END and sound < whole:
        rows.damaged.pop()  # the last batch of a writer that did not live to end its stream
    else:
        sound = whole
    rows.torn_bytes = 0 if data[sound:] in (b"", END) else len(data) - sound
    if tables:
        rows.table = pa.concat_tables(tables)
    return rows


def check_version(schema: pa.Schema) -> None:
    """Pass what this program can read.

    Raises:
        NewerLog: it was written by a newer one.
    """
    version = (schema.metadata or {}).get(b"schema_version", READ_VERSIONS[-1].encode()).decode()
    if version not in READ_VERSIONS:
        raise NewerLog(
            f"it holds records of version {version}, and this program reads "
            f"{', '.join(READ_VERSIONS)}: update it"
        )


def first_line(error: Exception) -> str:
    """Return an error's first line; Arrow's have many."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _checksum(batch: pa.RecordBatch) -> bytes:
    """Return what changes with any byte of a batch, or of the schema it is read by."""
    return str(zlib.crc32(batch.serialize(), zlib.crc32(batch.schema.serialize()))).encode()
