"""Segments become Parquet by day and replica; erased records and old days go.

One file changes at a time, whole, and names the segments it took in before those are deleted:
whenever this dies, each record is readable once, and the next compaction goes on. One compaction a
folder runs at a time; in an object store several may, as router.log.shared_parts tells. Knows the
log's files; knows no thread and no schedule.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from router.log.faults import Skipped
from router.log.layout import (
    ASIDE,
    IMAGES,
    KINDS,
    LIVE,
    day_of,
    is_closed,
    only_compaction,
    owner_of,
    partition,
    replace_file,
    sync_folder,
)
from router.log.reading import (
    Notes,
    Taken,
    days,
    parquet_files,
    parquet_of,
    part_number,
    read_parquet,
    tables,
    taken_by,
    within,
)
from router.log.segments import first_line, read_segment
from router.log.shared_parts import change, grow
from router.log.tombstones import (
    LOOKED_AT,
    Erased,
    hash_of_picture,
    read_erased,
    write_tombstone,
)
from router.places import Place, StoredPlace, as_place, read_all, remove_all
from router.records import DecisionRecord, schema_of

PART_ROWS = 65_536  # a part is rewritten until it has so many, then left alone
SEGMENTS_AT_ONCE = 64
OBJECTS_AT_ONCE = 4096  # which are as small as what came between two looks at a clock
LEFTOVER_S = 3600.0  # nobody finishes what was not finished for so long


@dataclass
class Compacted:
    """What one compaction did."""

    segments: int = 0  # that became Parquet
    rows: int = 0
    erased: int = 0  # rows taken out
    expired: int = 0  # rows too old to keep
    pictures: int = 0  # removed with the last record that names them
    growing: int = 0  # segments that running services write, left alone
    torn: int = 0  # segments that ended in half a batch, which nobody was told is written
    skipped: list[Skipped] = field(default_factory=list)


def compact(
    log: Place | str,
    *,
    keep_days: int | None = None,
    replica: str | None = None,
    today: date | None = None,
    wait_s: float = 0.0,
) -> Compacted:
    """Turn what nobody writes any more into Parquet, sweep what was erased, drop what is too old.

    Args:
        log: the folder.
        keep_days: days of records to keep beside today's; None: all.
        replica: that one's segments alone, and nothing else: the quick form, for whoever stops.
        today: UTC; now if left out.
        wait_s: for another compaction to end.

    Raises:
        LogBusy: another compaction runs, or the file system has no locks.
        OSError: a file cannot be written; what was done is done.
    """
    log = as_place(log)
    today = today or datetime.now(UTC).date()
    oldest = date.min if keep_days is None else today - timedelta(days=keep_days)
    with only_compaction(log, wait_s):
        if replica is not None:
            work = _Work(log, oldest, read_erased(log))
            work.segments(replica)
            return work.done
        return compact_alone(log, oldest)


def compact_alone(log: Place, oldest: date = date.min) -> Compacted:
    """Do the same with a folder whose lock is held; drop records of before the oldest day."""
    work = _Work(log, oldest, read_erased(log))
    work.segments(None)
    work.sweep()
    if oldest > date.min:
        work.expire()
    _clear_leftovers(log)
    return work.done


class _Work:
    """One compaction of a folder whose lock is held."""

    def __init__(self, log: Place, oldest: date, erased: Erased) -> None:
        self._log, self._oldest, self._erased = log, oldest, erased
        self.done = Compacted()

    def segments(self, replica: str | None) -> None:
        """Take in closed segments, decisions before the feedback on them."""
        for name, kind in KINDS.items():
            closed: dict[str, list[Place]] = {}
            there: list[Place] = list((self._log / LIVE).glob(f"{name}_*"))
            for path in sorted(there, key=lambda path: path.name):
                owner = owner_of(path.name)
                if owner is None or replica not in (None, owner[1]):
                    continue
                try:
                    if is_closed(path, owner[1]):
                        closed.setdefault(owner[1], []).append(path)
                    else:
                        self.done.growing += 1
                except OSError as error:
                    self._skip(path, error)
            at_once = SEGMENTS_AT_ONCE if isinstance(self._log, Path) else OBJECTS_AT_ONCE
            for owner_name, paths in closed.items():
                for start in range(0, len(paths), at_once):
                    self._take_in(kind, owner_name, paths[start : start + at_once])

    def _take_in(self, kind: type[Any], replica: str, paths: list[Place]) -> None:
        taken: dict[Place, pa.Table] = {}
        for path, content in read_all(paths):
            try:
                if isinstance(content, FileNotFoundError) and isinstance(path, StoredPlace):
                    continue  # another compaction was quicker
                if isinstance(content, OSError):
                    raise content
                rows = read_segment(content, kind)
                if rows.damaged:  # what is acknowledged and unreadable is not ours to delete
                    raise ValueError(rows.damaged[0])
            except (OSError, ValueError) as error:
                self._skip(path, error)
                continue
            self.done.torn += bool(rows.torn_bytes)
            taken[path] = rows.table
        if isinstance(self._log, StoredPlace):
            # Nobody waited for us: what was erased before these were listed is erased in them, and
            # an erasure that began later lists them itself, or finds them in a part.
            self._erased = read_erased(self._log)
        by_day: dict[date, dict[str, pa.Table]] = {}
        for path, table in taken.items():
            which = days(table)
            for day in pc.unique(which).to_pylist():
                part = table.filter(pc.equal(which, day))
                if day < self._oldest:
                    self.done.expired += part.num_rows
                else:
                    by_day.setdefault(day, {})[path.name] = part
        for day, parts in sorted(by_day.items()):
            self._grow(partition(self._log, _name(kind), day, replica), day, parts, kind)
        remove_all([path for path in taken if isinstance(path, StoredPlace)])
        for path in taken:
            if isinstance(path, Path):
                path.unlink()
        if taken:
            sync_folder(self._log / LIVE)
            self.done.segments += len(taken)

    def _grow(self, folder: Place, day: date, given: dict[str, pa.Table], kind: type[Any]) -> None:
        """Add segments' rows of a day to a replica's last part, or to a new one."""
        if isinstance(folder, StoredPlace):
            stays = {name: self._without_erased(table, kind) for name, table in given.items()}
            self.done.rows += grow(folder, day, stays, kind, PART_ROWS, self._skip)
            return
        parts = sorted(folder.glob("part-*.parquet"))
        here: set[str] = set()
        for path in parts:
            with suppress(OSError, pa.ArrowException, ValueError), path.open("rb") as opened:
                here.update(taken_by(pq.read_schema(opened)).segments)
        new = {name: table for name, table in given.items() if name not in here}
        if not new:
            return  # it died between writing the part and deleting the segments
        path = parts[-1] if parts else folder / "part-000000.parquet"
        before, known = schema_of(kind).empty_table(), Taken(day)
        if parts:
            try:
                before, known = read_parquet(path, kind, schema_of(kind))
                if before.num_rows + sum(table.num_rows for table in new.values()) > PART_ROWS:
                    before, known, path = before.slice(0, 0), Taken(day), _after(path)
            except (OSError, pa.ArrowException, ValueError) as error:
                self._skip(path, error)
                path = _after(path)
        shown = [self._without_erased(table, kind) for table in new.values()]
        if not any(table.num_rows for table in shown):
            return
        table = pa.concat_tables([before, *shown])
        _write_parquet(path, table, Taken(day, (*known.segments, *new)))
        self.done.rows += sum(table.num_rows for table in shown)

    def _without_erased(self, table: pa.Table, kind: type[Any]) -> pa.Table:
        """Return what may stay; requests about erased pictures are noted before they go."""
        flags = self._erased.hidden(table, kind)
        if flags is None:
            return table
        if kind is DecisionRecord:
            for picture, requests in self._erased.requests_in(table.filter(flags)).items():
                all_of_it = self._erased.requests[picture] | requests
                write_tombstone(self._log, picture, all_of_it, swept=False)
                self._erased = read_erased(self._log)
        kept = table.filter(pc.invert(flags))
        self.done.erased += table.num_rows - kept.num_rows
        return kept

    def sweep(self) -> None:
        """Rewrite the Parquet files that hold erased records, once after each erasure."""
        pictures = self._erased.unswept  # others may be erased meanwhile: the next sweep's
        if not pictures:
            return
        for kind in KINDS.values():
            schema = schema_of(kind)
            looked_at = pa.schema([field for field in schema if field.name in LOOKED_AT])
            for path in parquet_files(self._log, kind, Notes()):
                try:
                    if isinstance(path, StoredPlace):
                        with suppress(FileNotFoundError):  # its day has passed since
                            change(path, kind, looked_at, *self._erasing(kind))
                        continue
                    table, taken = read_parquet(path, kind, looked_at)
                    if self._erased.hidden(table, kind) is None:
                        continue
                    table, taken = read_parquet(path, kind, schema)
                except (OSError, pa.ArrowException, ValueError) as error:
                    self._skip(path, error)
                    continue
                _write_parquet(path, self._without_erased(table, kind), taken)
        pictures_there: list[Place] = list((self._log / IMAGES).glob("*"))
        for path in pictures_there:
            if hash_of_picture(path.name.lstrip(".").partition(".")[0]) in pictures:
                path.unlink(missing_ok=True)
        if not self.done.skipped:
            for picture in pictures:
                write_tombstone(self._log, picture, self._erased.requests[picture], swept=True)

    def _erasing(
        self, kind: type[Any]
    ) -> tuple[Callable[[pa.Table], bool], Callable[[pa.Table], pa.Table]]:
        """Return what tells that something of a table was erased, and what takes it out."""
        return (
            lambda table: self._erased.hidden(table, kind) is not None,
            lambda table: self._without_erased(table, kind),
        )

    def expire(self) -> None:
        """Delete days that are too old, and old pictures that no record names any more."""
        gone = 0
        for kind in KINDS.values():
            for path in parquet_files(self._log, kind, Notes()):
                try:
                    if (rows := self._expired_rows(path, kind)) is None:
                        continue
                    path.unlink()
                except (OSError, pa.ArrowException, ValueError) as error:
                    self._skip(path, error)
                    continue
                gone += 1
                self.done.expired += rows
                for folder in list(path.parents)[:2]:  # of the replica, of the day
                    if isinstance(folder, Path) and "=" in folder.name:
                        with suppress(OSError):
                            folder.rmdir()
        if gone:
            self._expire_pictures()

    def _expired_rows(self, path: Place, kind: type[Any]) -> int | None:
        """Return how many rows a file has, if all of them are too old."""
        day = day_of(path.parent.parent.name)
        if day is not None:
            if day >= self._oldest:
                return None
            with suppress(OSError, pa.ArrowException), path.open("rb") as opened:
                return int(pq.read_metadata(opened).num_rows)
            return 0  # one that is damaged goes with its day
        table, _ = read_parquet(path, kind, pa.schema([schema_of(kind).field("time_utc")]))
        newest = pc.max(days(table)).as_py()
        return None if newest is not None and newest >= self._oldest else table.num_rows

    def _expire_pictures(self) -> None:
        named: set[str] = set()
        notes = Notes(skip_newer=True)
        for table in tables(self._log, DecisionRecord, notes, ["picture_ids"]):
            named.update(pc.unique(pc.list_flatten(table["picture_ids"])).to_pylist())
        if notes.damaged:  # a file that cannot be read may name any of them
            return
        # A picture may be there before the record that names it.
        limit = datetime.combine(self._oldest, datetime.min.time(), UTC).timestamp()
        there: list[Place] = list((self._log / IMAGES).glob("*.png"))
        for path in there:
            with suppress(OSError):
                if path.stem not in named and path.stat().st_mtime < limit:
                    path.unlink()
                    self.done.pictures += 1

    def _skip(self, path: Place, error: Exception) -> None:
        left_out = Skipped(within(self._log, path), first_line(error))
        if left_out not in self.done.skipped:
            self.done.skipped.append(left_out)


def _name(kind: type[Any]) -> str:
    (name,) = (name for name, each in KINDS.items() if each is kind)
    return name


def _after(part: Path) -> Path:
    return part.with_name(f"part-{part_number(part) + 1:06d}.parquet")


def _write_parquet(path: Path, table: pa.Table, taken: Taken) -> None:
    replace_file(path, parquet_of(table, taken))


def _clear_leftovers(log: Place) -> None:
    """Remove what killed processes were writing when they died."""
    if isinstance(log, StoredPlace):
        return  # where nothing is half written
    for path in _leftovers(log):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFTOVER_S:
                path.unlink()


def _leftovers(log: Path) -> Iterator[Path]:
    for folder in (LIVE, IMAGES, *KINDS):
        yield from (log / folder).rglob(f".*{ASIDE}")
