"""The segments that this process writes: appended to, and on disk before they count.

Knows one open file a kind of record, its lock and its batches; in an object store each group of
records is an object of its own. Knows no threads and not what the records mean. How a segment looks
is told in `router.log.segments`, what becomes of it in `router.log.compaction`.
"""

from __future__ import annotations

import fcntl
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from router.log.layout import ASIDE, LIVE, make_folder, segment_name, sync_folder
from router.log.segments import END, SegmentStream
from router.places import Place, StoredPlace
from router.records import to_table

LOG = logging.getLogger(__name__)
SEGMENT_ROWS = 4096
SEGMENT_BYTES = 16 * 2**20


class Segments:
    """The segments of one kind of record: at most one is open."""

    def __init__(
        self, log: Place, name: str, kind: type[Any], replica: str, max_waiting: int
    ) -> None:
        self.folder, self.waiting = log / LIVE, list[Any]()
        self._name, self._kind, self._replica = name, kind, replica
        self._max_waiting = max_waiting
        self._number = 0
        self._open: _OpenSegment | None = None
        self._sent: _Sent | None = None  # to a store that has not said that it is there
        self._there = 0, 0  # rows in a store, and unfit ones, that nobody was told of

    def write(self) -> tuple[int, int]:
        """Return (rows written, rows that do not fit the schema) when the waiting rows are on disk,
        whatever happens next.

        Raises:
            OSError: every row keeps waiting, and none of them was written for good.
        """
        if not self.waiting:
            return 0, 0
        if isinstance(self.folder, StoredPlace):
            while self.waiting:
                self._send(self.folder)
            told, self._there = self._there, (0, 0)
            return told
        rows, unfit = self._to_table(self.waiting)
        if rows.num_rows:
            if self._open is None or self._open.is_gone():
                self.close()
                self._number += 1
                name = segment_name(self._name, self._replica, self._number)
                self._open = _OpenSegment(self.folder, name, self._kind)
            try:
                self._open.append(rows)
            except OSError:
                self._open.give_up()
                self._open = None  # what a failed fsync left is known to nobody
                raise
            if self._open.rows >= SEGMENT_ROWS or self._open.size >= SEGMENT_BYTES:
                self.close()
        self.waiting.clear()
        return rows.num_rows, unfit

    def close(self) -> None:
        """Leave the open segment to whoever compacts."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def forget_oldest(self) -> int:
        """Drop waiting rows beyond the limit and return how many were dropped."""
        excess = max(0, len(self.waiting) - self._max_waiting)
        first = 0 if self._sent is None else min(self._sent.n_waiting, len(self.waiting) - excess)
        del self.waiting[first : first + excess]
        return excess

    def _send(self, folder: StoredPlace) -> None:
        """Put waiting rows into an object. One that failed may be there all the same, and in a part
        by now: it is sent again as it was, not with more in it, so that it is known by its name.
        """
        if self._sent is None:
            rows, unfit = self._to_table(self.waiting)
            self._number += 1
            content = SegmentStream(self._kind).batch(rows) + END if rows.num_rows else b""
            name = segment_name(self._name, self._replica, self._number)
            self._sent = _Sent(name, content, len(self.waiting), unfit)
        sent = self._sent
        if sent.content:
            (folder / sent.name).write_bytes(sent.content)
        del self.waiting[: sent.n_waiting]
        self._sent = None
        rows_there, unfit_there = self._there
        self._there = rows_there + sent.n_waiting - sent.unfit, unfit_there + sent.unfit

    def _to_table(self, rows: list[Any]) -> tuple[pa.Table, int]:
        try:
            return to_table(rows, self._kind), 0
        except (pa.ArrowException, TypeError, ValueError) as error:
            if len(rows) == 1:
                LOG.error("a record does not fit its schema and is dropped: %s", error)
                return to_table([], self._kind), 1
        middle = len(rows) // 2
        (head, unfit_head), (tail, unfit_tail) = map(self._to_table, (rows[:middle], rows[middle:]))
        return pa.concat_tables([head, tail]), unfit_head + unfit_tail


@dataclass(frozen=True)
class _Sent:
    """An object, and how many of the waiting records it holds or gives up."""

    name: str
    content: bytes
    n_waiting: int
    unfit: int


class _OpenSegment:
    """One file. It gets its name with its first batch, locked: it is never seen without a lock and
    a writer, nor without rows.
    """

    def __init__(self, folder: Path, name: str, kind: type[Any]) -> None:
        self.rows, self.size = 0, 0
        self._path = folder / name
        self._aside: Path | None = folder / f".{name}{ASIDE}"
        self._stream = SegmentStream(kind)
        make_folder(folder)  # somebody may have cleared the log away
        self._descriptor = os.open(self._aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):  # where there are no locks, nobody compacts either
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def append(self, table: pa.Table) -> None:
        data = memoryview(self._stream.batch(table))
        size = self.size + len(data)
        while data:
            data = data[os.write(self._descriptor, data) :]
        os.fsync(self._descriptor)
        if self._aside is not None:
            self._aside.rename(self._path)
            self._aside = None
            sync_folder(self._path.parent)
        self.rows, self.size = self.rows + table.num_rows, size

    def is_gone(self) -> bool:
        """Return whether somebody deleted the file."""
        return os.fstat(self._descriptor).st_nlink == 0

    def give_up(self) -> None:
        """Take back what may have been written of the last batch, and close."""
        with suppress(OSError):
            os.ftruncate(self._descriptor, self.size)
            os.fsync(self._descriptor)
        if self._aside is not None or not self.size:
            with suppress(OSError):
                (self._aside or self._path).unlink()
        os.close(self._descriptor)

    def close(self) -> None:
        with suppress(OSError):
            os.write(self._descriptor, END)
        os.close(self._descriptor)
