"""Parquet files that grow while others read them.

Knows files and Arrow tables; knows no threads and not what the records mean. Each write replaces
the writer's current segment by a longer one (written aside, fsync, rename), and a full segment is
left alone: readers see whole files only, a crash loses nothing that was written, and a busy day
makes few files.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from router.records import to_table

LOG = logging.getLogger(__name__)
SEGMENT_ROWS = 4096


class Segments:
    """The Parquet files of one kind of record that this process writes."""

    def __init__(self, folder: Path, kind: type[Any], max_waiting: int) -> None:
        self.folder, self.waiting = folder, list[Any]()
        self._kind, self._max_waiting = kind, max_waiting
        self._number, self._path = 0, self._next_path(0)
        self._table = to_table([], kind)

    def write(self) -> tuple[int, int]:
        """Write the waiting rows and return (rows written, rows that do not fit the schema).

        Raises:
            OSError: nothing was written, every row keeps waiting.
        """
        if not self.waiting:
            return 0, 0
        rows, unfit = self._to_table(self.waiting)
        table = pa.concat_tables([self._table, rows])
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        replace_file(self._path, sink.getvalue())
        self.waiting.clear()
        self._table = table
        if table.num_rows >= SEGMENT_ROWS:
            self._number += 1
            self._path = self._next_path(self._number)
            self._table = to_table([], self._kind)
        return rows.num_rows, unfit

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

    def forget_oldest(self) -> int:
        """Drop waiting rows beyond the limit and return how many were dropped."""
        excess = max(0, len(self.waiting) - self._max_waiting)
        del self.waiting[:excess]
        return excess

    def _next_path(self, number: int) -> Path:
        utc = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        return self.folder / f"{self.folder.name}-{utc}-{os.getpid()}-{number:06d}.parquet"


def replace_file(path: Path, payload: bytes | pa.Buffer) -> Path:
    """Put ``payload`` at ``path`` so that a crash leaves the old file, the new one or none."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)  # somebody may have cleared the log away
    try:
        with aside.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        with suppress(OSError):
            aside.unlink()
        raise
    return path
