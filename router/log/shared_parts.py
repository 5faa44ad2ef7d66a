"""Parts of a replica's day in an object store, which several compactions may change at once.

There is no lock: a part is replaced on the condition that it is what was read, so one of several
that add to it is first, and the others read again. The last part alone grows, and it is marked as
full before the next is made, so whoever adds to one that is not the last any more is told so as
well. A part names the segments that are in it, full ones to the end: what one compaction took in is
dropped by another that had it in hand. Knows parts; knows nothing of live segments.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import date
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from router.log.reading import Taken, parquet_of, parse_parquet, part_number, taken_by
from router.places import StoredPlace
from router.records import schema_of

_ROWS = "part-{:06d}.parquet"


def grow(
    folder: StoredPlace,
    day: date,
    given: Mapping[str, pa.Table],
    kind: type[Any],
    most_rows: int,
    skip: Callable[[StoredPlace, Exception], None],
) -> int:
    """Return how many rows were added when every segment is in a part, whoever put it there.

    Args:
        folder: of the replica's day.
        day: of all rows.
        given: rows by the segment that they are from.
        kind: of record.
        most_rows: a part with more is not added to.
        skip: told of parts that cannot be read; nothing is added to them.

    Raises:
        OSError: the store cannot be read or written; what was added is in.
    """
    while True:
        try:
            added = _try(folder, day, given, kind, most_rows, skip)
        except FileNotFoundError:  # the day has passed since the parts were listed
            continue
        if added is not None:
            return added


def _try(
    folder: StoredPlace,
    day: date,
    given: Mapping[str, pa.Table],
    kind: type[Any],
    most_rows: int,
    skip: Callable[[StoredPlace, Exception], None],
) -> int | None:
    """Return how many rows were added; None: another was quicker."""
    parts, here = sorted(folder.glob("part-*.parquet")), set[str]()
    for part in parts[:-1]:
        here.update(_of_full(part))
    path, version = folder / _ROWS.format(0), None
    before, known = schema_of(kind).empty_table(), Taken(day)
    if parts:
        path = parts[-1]
        content, version = path.read_version()
        try:
            before, known = parse_parquet(io.BytesIO(content), kind, schema_of(kind))
            here.update(known.segments)
        except (OSError, pa.ArrowException, ValueError) as error:
            skip(path, error)
            known = replace(known, full=True)
    new = {name: table for name, table in given.items() if name not in here}
    if not new:
        return 0
    # Also a segment of which nothing stays: another compaction may have it in hand as it was.
    n_rows = sum(table.num_rows for table in new.values())
    if known.full:
        path, version = folder / _ROWS.format(part_number(path) + 1), None
        before, known = before.slice(0, 0), Taken(day)
    elif parts and before.num_rows + n_rows > most_rows:
        path.replace(parquet_of(before, replace(known, full=True)), version)
        return None
    table = pa.concat_tables([before, *new.values()])
    taken = replace(known, segments=(*known.segments, *new))
    return n_rows if path.replace(parquet_of(table, taken), version) else None


def change(
    path: StoredPlace,
    kind: type[Any],
    looked_at: pa.Schema,
    is_meant: Callable[[pa.Table], bool],
    changed: Callable[[pa.Table], pa.Table],
) -> None:
    """Rewrite a Parquet file, if it is meant.

    Args:
        path: of the file.
        kind: of record.
        looked_at: the columns that tell whether it is meant.
        is_meant: says so.
        changed: returns what the file shall hold of all that it holds.

    Raises:
        FileNotFoundError: it is gone.
        OSError, ArrowException, ValueError: it cannot be read or written.
    """
    while True:
        content, version = path.read_version()
        if not is_meant(parse_parquet(io.BytesIO(content), kind, looked_at)[0]):
            return
        table, taken = parse_parquet(io.BytesIO(content), kind, schema_of(kind))
        if path.replace(parquet_of(changed(table), taken), version):
            return


@lru_cache(maxsize=4096)
def _of_full(part: StoredPlace) -> tuple[str, ...]:
    """Return the segments of a part that is not the last, which stay what they are."""
    try:
        return taken_by(pq.read_schema(io.BytesIO(part.read_bytes()))).segments
    except (pa.ArrowException, ValueError):
        return ()
