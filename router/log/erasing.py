"""Taking a picture out of a log, and out of oracle data, so that nothing of it is found again.

Knows files and tombstones; asks nobody whether it is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from router.log.compaction import compact_alone
from router.log.faults import Skipped
from router.log.layout import IMAGES, only_compaction, replace_file
from router.log.reading import Notes, live_segments, parquet_files, read_parquet
from router.log.segments import first_line
from router.log.tombstones import (
    LOOKED_AT,
    Erased,
    begin_tombstone,
    hash_of_picture,
    hash_of_request,
    read_erased,
    write_tombstone,
)
from router.places import Place, as_place
from router.records import DecisionRecord, FeedbackRecord, OracleRecord, conform, schema_of

WAIT_S = 30.0  # for a compaction of the service


@dataclass
class Erasure:
    """What was found of a picture, and where something may be left."""

    decisions: int = 0
    feedback: int = 0
    pictures: int = 0
    oracle: int = 0  # labels
    growing: int = 0  # its records in segments of running services, which take them out
    left: list[Skipped] = field(default_factory=list)  # files that cannot be read and rewritten


def erase(log: Place | str, picture_id: str, oracle: Sequence[Path] = ()) -> Erasure:
    """Take out a picture, every record about it and the feedback on those.

    From the first moment on no reader sees them; when this returns they are off the disk, but for
    what running services still write. A second run finds nothing and does no harm.

    Args:
        log: the folder.
        picture_id: as in `DecisionRecord.picture_ids`.
        oracle: folders of labels to take it out of as well.

    Raises:
        LogBusy: the tombstone is written, but another compaction runs: try again.
        FileNotFoundError: one of ``oracle`` is no folder; nothing is erased.
        OSError: a file cannot be written.
    """
    log, done = as_place(log), Erasure()
    for folder in oracle:
        if not folder.is_dir():
            raise FileNotFoundError(2, "no such folder, nothing is erased", str(folder))
    picture = hash_of_picture(picture_id)
    begin_tombstone(log, picture)
    there: list[Place] = list((log / IMAGES).glob(f"{picture_id}.*"))
    for path in there:
        path.unlink(missing_ok=True)
        done.pictures += 1
    with only_compaction(log, WAIT_S):
        known = set(read_erased(log).requests.get(picture, ()))
        for hit in _hits(log, DecisionRecord, Erased({picture: frozenset()})):
            done.decisions += hit.num_rows
            known.update(hash_of_request(*key) for key in _keys(hit))
        about = Erased({picture: frozenset(known)})
        write_tombstone(log, picture, about.requests[picture], swept=False)
        done.feedback = sum(hit.num_rows for hit in _hits(log, FeedbackRecord, about))
        done.left = compact_alone(log).skipped
    for kind in (DecisionRecord, FeedbackRecord):
        notes = Notes(skip_newer=True)
        for _, rows in live_segments(log, kind, notes):
            done.growing += _hit(rows.table, kind, about).num_rows
        done.left += [each for each in notes.damaged if each not in done.left]
    for folder in oracle:
        done.oracle += _erase_labels(folder, picture_id, done.left)
    return done


def _hits(log: Place, kind: type[Any], erased: Erased) -> Iterator[pa.Table]:
    """Yield what is on disk and erased, wherever it is."""
    for _, rows in live_segments(log, kind, Notes(skip_newer=True)):
        yield _hit(rows.table, kind, erased)
    looked_at = pa.schema([field for field in schema_of(kind) if field.name in LOOKED_AT])
    for path in parquet_files(log, kind, Notes()):
        with suppress(OSError, pa.ArrowException, ValueError):  # the sweep names it
            yield _hit(read_parquet(path, kind, looked_at)[0], kind, erased)


def _hit(table: pa.Table, kind: type[Any], erased: Erased) -> pa.Table:
    flags = erased.hidden(table, kind)
    return table.slice(0, 0) if flags is None else table.filter(flags)


def _keys(table: pa.Table) -> Iterator[tuple[str, str | None]]:
    return zip(table["request_id"].to_pylist(), table["tenant"].to_pylist(), strict=True)


def _erase_labels(folder: Path, picture_id: str, left: list[Skipped]) -> int:
    """Rewrite a folder's oracle files without a picture; return how many labels went."""
    gone, erased = 0, Erased({hash_of_picture(picture_id): frozenset()})
    for path in sorted(folder.glob("oracle-*.parquet")):
        try:
            table = pq.read_table(path)
            conform(table.schema.empty_table(), OracleRecord)
        except (OSError, pa.ArrowException, ValueError) as error:
            left.append(Skipped(str(path), first_line(error)))
            continue
        kept = erased.visible(table, OracleRecord)
        facts = {
            key: value
            for key, value in (table.schema.metadata or {}).items()
            if picture_id.encode() not in value  # such as a list of what could not be labelled
        }
        if kept.num_rows < table.num_rows or len(facts) < len(table.schema.metadata or {}):
            gone += table.num_rows - kept.num_rows
            sink = pa.BufferOutputStream()
            pq.write_table(kept.replace_schema_metadata(facts), sink, compression="zstd")
            replace_file(path, memoryview(sink.getvalue()))
    return gone
