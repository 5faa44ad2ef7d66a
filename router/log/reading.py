"""A log folder read at once: compacted Parquet, segments that still grow, files of before.

What is read is a state that was: segments are taken into memory before any Parquet file is looked
at, and a Parquet file names the segments it took in, so a record that is compacted meanwhile is
seen once. Knows folders and record types; knows nothing of who reads.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import date
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from router.log.faults import NewerLog, Skipped
from router.log.layout import ASIDE, KINDS, LIVE, PARQUET, owner_of
from router.log.segments import SegmentRows, check_version, first_line, read_segment
from router.log.tombstones import LOOKED_AT, read_erased
from router.places import Place, StoredPlace, as_place, read_all
from router.records import DecisionRecord, FeedbackRecord, conform, schema_of

TAKEN = b"m3_segments"  # of a Parquet file: {"day": ..., "segments": [...]} that its rows are from


@dataclass
class Notes:
    """What one reading met: files left out and why, segments that end in half a batch.

    Args:
        skip_newer: leave out what a newer program wrote, instead of refusing to read on.
    """

    skip_newer: bool = False
    skipped: list[Skipped] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    damaged: list[Skipped] = field(default_factory=list)  # of those: records that are lost here
    live_rows: int = 0
    files: int = 0

    def skip(self, log: Place, path: Place, why: str) -> None:
        """Leave a file out."""
        self.skipped.append(Skipped(within(log, path), why))

    def fault(self, log: Place, path: Place, error: Exception) -> None:
        """Leave a file out that cannot be read.

        Raises:
            NewerLog: it was written by a newer program, and such are not left out.
        """
        if isinstance(error, NewerLog) and not self.skip_newer:
            raise NewerLog(f"cannot read {path}: {error}") from error
        self.skip(log, path, first_line(error))
        self.damaged.append(self.skipped[-1])


@dataclass(frozen=True)
class Log:
    """Everything a log folder holds."""

    decisions: pa.Table
    feedback: pa.Table
    notes: Notes


def read_log(log: Place | str) -> Log:
    """Return decisions and feedback as Arrow tables, erased ones left out.

    Raises:
        FileNotFoundError: no such folder.
        NewerLog: a file was written by a newer version of this program.
    """
    log, notes = as_place(log), Notes()
    if not log.is_dir():
        raise FileNotFoundError(2, "no such log folder", str(log))
    decisions, feedback = (
        pa.concat_tables([schema_of(kind).empty_table(), *tables(log, kind, notes)])
        for kind in (DecisionRecord, FeedbackRecord)
    )
    return Log(decisions, feedback, notes)


def tables(
    log: Place, kind: type[Any], notes: Notes, columns: Iterable[str] | None = None
) -> Iterator[pa.Table]:
    """Yield the records of one kind in the order of days and files, what still grows last.

    Args:
        log: the folder.
        kind: DecisionRecord or FeedbackRecord.
        notes: what is left out is written there.
        columns: names of those to read; all if left out. Those an older log lacks are null.

    Raises:
        NewerLog: a file was written by a newer version of this program.
    """
    schema = schema_of(kind)
    wanted = schema.names if columns is None else list(columns)
    looked_at = LOOKED_AT.intersection(schema.names) - set(wanted)
    read = pa.schema([schema.field(name) for name in (*wanted, *sorted(looked_at))])
    # In this order: a segment that is gone by now is in a Parquet file that is there by now.
    needed = list(dict.fromkeys((*read.names, "time_utc")))
    held = {path.name: rows.table.select(needed) for path, rows in live_segments(log, kind, notes)}
    erased = read_erased(log)
    for path in parquet_files(log, kind, notes):
        try:
            table, taken = read_parquet(path, kind, read)
        except FileNotFoundError:
            continue  # its day has passed since
        except (OSError, pa.ArrowException, ValueError) as error:
            notes.fault(log, path, error)
            continue
        notes.files += 1
        for name in taken.segments:
            if name in held:
                held[name] = held[name].filter(pc.not_equal(days(held[name]), taken.day))
        yield erased.visible(table, kind).select(wanted)
    for table in held.values():
        notes.live_rows += table.num_rows
        yield erased.visible(table, kind).select(wanted)


def live_segments(log: Place, kind: type[Any], notes: Notes) -> Iterator[tuple[Place, SegmentRows]]:
    """Yield each segment of a kind with its rows.

    Raises:
        NewerLog: one was written by a newer version of this program.
    """
    wanted = []
    for path in _listed(log / LIVE):
        owner = owner_of(path.name)
        if owner is None:
            if kind is DecisionRecord:  # said once
                _skip_foreign(log, path, notes)
        elif KINDS[owner[0]] is kind:
            wanted.append(path)
    for path, content in read_all(wanted):
        try:
            if isinstance(content, OSError):
                raise content
            rows = read_segment(content, kind)
        except FileNotFoundError:
            continue  # it was compacted since
        except (OSError, ValueError) as error:
            notes.fault(log, path, error)
            continue
        for damage in rows.damaged:
            notes.fault(log, path, ValueError(damage))
        if rows.torn_bytes:
            notes.torn.append(path.name)
        yield path, rows


def parquet_files(log: Place, kind: type[Any], notes: Notes) -> Iterator[Place]:
    """Yield the Parquet files of a kind: those of before, then partitions by day."""
    (name,) = (name for name, each in KINDS.items() if each is kind)
    yield from _parquet_below(log, log / name, notes)


def _parquet_below(log: Place, folder: Place, notes: Notes) -> Iterator[Place]:
    inner = []
    for path in _in_order(folder) if isinstance(folder, StoredPlace) else _listed(folder):
        if path.is_dir() and not path.name.startswith("."):
            inner.append(path)
        elif path.suffix != PARQUET or path.name.startswith("."):
            _skip_foreign(log, path, notes)
        else:
            yield path
    for path in inner:
        yield from _parquet_below(log, path, notes)


def _in_order(folder: StoredPlace) -> list[StoredPlace]:
    """Return all that is below a folder: one listing, where each folder in it would cost one."""
    return sorted(folder.rglob("*"), key=lambda path: (path.parent != folder, path))


def _listed(folder: Place) -> list[Place]:
    if isinstance(folder, StoredPlace):
        return list(folder.iterdir())
    try:
        return [folder / name for name in sorted(os.listdir(folder))]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _skip_foreign(log: Place, path: Place, notes: Notes) -> None:
    if not path.name.endswith(ASIDE):  # a writer's or a compaction's own, on its way
        notes.skip(log, path, "hidden" if path.name.startswith(".") else "no file of the log")


@dataclass(frozen=True)
class Taken:
    """Which segments' rows of which day a Parquet file holds; none for a file from elsewhere. One
    that is full gets no more; that is said in object stores alone.
    """

    day: date | None = None
    segments: tuple[str, ...] = ()
    full: bool = False


def read_parquet(path: Place, kind: type[Any], schema: pa.Schema) -> tuple[pa.Table, Taken]:
    """Return the rows of a file under a schema that is part of the kind's, and what they are from.

    Raises:
        FileNotFoundError: it is gone.
        NewerLog: it was written by a newer program.
        OSError, ArrowException, ValueError: it is damaged or not of this kind.
    """
    # Opened here, and once: what it names and what it holds must be of the same file.
    with path.open("rb") as opened:
        return parse_parquet(opened, kind, schema)


def parse_parquet(opened: IO[bytes], kind: type[Any], schema: pa.Schema) -> tuple[pa.Table, Taken]:
    """Return the same of an open file.

    Raises:
        NewerLog: it was written by a newer program.
        OSError, ArrowException, ValueError: it is damaged or not of this kind.
    """
    file = pq.ParquetFile(opened, page_checksum_verification=True)
    found = file.schema_arrow
    check_version(found)
    conform(found.empty_table(), kind)
    table = file.read(columns=[name for name in schema.names if name in found.names])
    for column in schema:
        if column.name not in table.schema.names:
            table = table.append_column(column, pa.nulls(table.num_rows, column.type))
    table = table.select(schema.names).cast(schema)
    table.validate(full=True)
    return table, taken_by(found)


def taken_by(schema: pa.Schema) -> Taken:
    """Return what a Parquet file says it holds.

    Raises:
        ValueError: what it says cannot be read.
    """
    told = (schema.metadata or {}).get(TAKEN)
    if told is None:
        return Taken()
    try:
        facts = json.loads(told)
        full = facts.get("full") is True
        return Taken(date.fromisoformat(facts["day"]), tuple(facts["segments"]), full)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its list of segments is damaged ({first_line(error)})") from error


def parquet_of(table: pa.Table, taken: Taken) -> memoryview:
    """Return the bytes of a Parquet file that says what it holds."""
    if taken.day is not None:
        facts = {"day": taken.day.isoformat(), "segments": list(taken.segments)}
        told = json.dumps(facts | ({"full": True} if taken.full else {})).encode()
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), TAKEN: told})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return memoryview(sink.getvalue())


def part_number(part: Place) -> int:
    """Return the number of a part by its name."""
    return int(part.stem.rpartition("-")[2])


def within(log: Place, path: Place) -> str:
    """Return how a file of a log is called in it."""
    return str(path).removeprefix(f"{log}/")


def days(table: pa.Table) -> pa.ChunkedArray:
    """Return the day of each record, UTC."""
    return pc.cast(table["time_utc"], pa.date32())
