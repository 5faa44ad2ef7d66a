"""The shards of a folder: which there are, what is to be labelled, and how one loses rows.

Knows files and batches; labels nothing, and does not know what is to go.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from router.records import units_of
from training.errors import TrainingError
from training.files import replacing
from training.oracle.growth.told import (
    BAD_KEY,
    COUNTS_KEY,
    LABELLED_KEY,
    Asked,
    Labelled,
    as_metadata,
    labelled_in,
    row_name,
)
from training.sources.tasks import shards

SHARD_PICTURES = 100
FILES = "files"  # of a manifest: the shards of the last finished state by name
_SHARD = re.compile(r"oracle-(\d+)\.parquet")


@dataclass(frozen=True)
class Shard:
    """A shard as its metadata tell it; ``labelled`` is None in those of before."""

    path: Path
    number: int
    n_rows: int
    labelled: tuple[Labelled, ...] | None

    @property
    def is_empty(self) -> bool:
        """Return whether nothing would be lost with it."""
        return not self.n_rows and not self.labelled


@dataclass(frozen=True)
class Batch:
    """Shards that are planned together: the number of the first, and the pictures of each."""

    first: int
    size: int


@dataclass(frozen=True)
class Work:
    """What is to be labelled: the batch's pictures, as numbers in the source, and its shards that
    are not there, as positions among those.
    """

    batch: Batch
    pictures: tuple[int, ...]
    planned: dict[int, range]


def shard_size(pictures: int) -> int:
    """Return how many pictures a shard holds: enough shards for every core, of short runs too."""
    return SHARD_PICTURES if pictures >= 8 * SHARD_PICTURES else max(1, -(-pictures // 8))


def shard_files(out: Path) -> list[Path]:
    """Return the shards of a folder by their numbers."""
    found = [path for path in out.glob("oracle-*.parquet") if _SHARD.fullmatch(path.name)]
    return sorted(found, key=_number)


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("oracle-"))


def finished_shards(out: Path, manifest: dict[str, Any]) -> list[Path]:
    """Return the shards of a folder's last finished state; a run may be adding others.

    Raises:
        TrainingError: no run has ever finished.
    """
    if manifest.get("finished") is False:
        raise TrainingError(
            f"{out} is not finished, the run that labels it was interrupted or goes on: run the "
            "same `m3-train collect` again, it goes on where it stopped"
        )
    names = manifest.get(FILES)
    if names is None:  # of a source that does not grow, or of before
        return sorted(out.glob("oracle-*.parquet"))
    return [path for path in map(out.joinpath, names) if path.is_file()]


def damaged_shards(out: Path) -> list[Path]:
    """Return the shards that cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = []
    for path in shard_files(out):
        try:
            pq.read_metadata(path)
        except (OSError, pa.ArrowException):
            found.append(path)
    return found


def read_shards(out: Path) -> list[Shard]:
    """Return the shards of a folder.

    Raises:
        TrainingError: what one says of itself is damaged.
    """
    return [_shard(path) for path in shard_files(out)]


def _shard(path: Path) -> Shard:
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    told = (metadata.metadata or {}).get(LABELLED_KEY)
    try:
        labelled = None if told is None else tuple(labelled_in(each) for each in json.loads(told))
    except (ValueError, TypeError, KeyError) as error:
        raise TrainingError(f"what {path} says it labelled is damaged; delete it") from error
    return Shard(path, _number(path), metadata.num_rows, labelled)


def current(there: Sequence[Shard], asked: Sequence[Asked]) -> dict[str, int]:
    """Return where each picture is labelled as it is asked about now: the number of its shard.

    Fewer questions than were labelled, as when the log forgets the old ones, are labelled.
    """
    wanted = {each.picture: set(each.asks) for each in asked}
    return {
        entry.picture: shard.number
        for shard in there
        for entry in shard.labelled or ()
        if entry.picture in wanted and wanted[entry.picture] <= set(entry.asks)
    }


def work_of(there: Sequence[Shard], asked: Sequence[Asked], batch: Batch | None) -> Work:
    """Return what is to be labelled: the rest of the batch that was begun, else a new one.

    Args:
        there: the folder's shards.
        batch: what the last run had planned, if it did not end.
    """
    labelled = current(there, asked)
    missing = [at for at, each in enumerate(asked) if each.picture not in labelled]
    numbers = {shard.number for shard in there}
    if batch is not None:
        before = current([shard for shard in there if shard.number < batch.first], asked)
        pictures = tuple(at for at, each in enumerate(asked) if each.picture not in before)
        planned = _planned(batch, len(pictures), numbers)
        if [pictures[place] for part in planned.values() for place in part] == missing:
            return Work(batch, pictures, planned)
    batch = Batch(max(numbers, default=-1) + 1, shard_size(len(missing)))
    return Work(batch, tuple(missing), _planned(batch, len(missing), numbers))


def _planned(batch: Batch, pictures: int, there: set[int]) -> dict[int, range]:
    numbered = ((batch.first + index, part) for index, part in shards(pictures, batch.size))
    return {number: part for number, part in numbered if number not in there}


def units_in(there: Sequence[Shard]) -> dict[str, str]:
    """Return what each picture of the folder belongs to, as its first row told."""
    import pyarrow.parquet as pq

    found: dict[str, str] = {}
    for shard in there:
        names = pq.read_schema(shard.path).names
        columns = [name for name in ("picture_id", "group_id") if name in names]
        rows = pq.read_table(shard.path, columns=columns).to_pylist()
        pictures = [row["picture_id"] for row in rows]
        units = units_of(pictures, [row.get("group_id") for row in rows])
        for picture, unit in zip(pictures, units, strict=True):
            found.setdefault(picture, unit)
    return found


def rows_of(path: Path) -> list[tuple[str, str, str, str]]:
    """Return (name, picture, question id, question) of every row."""
    import pyarrow.parquet as pq

    names = ["source", "picture_id", "question_id", "question", "metadata"]
    table = pq.read_table(path, columns=names)
    columns = zip(*(table[name].to_pylist() for name in names), strict=True)
    return [(row_name(*row), *row[1:4]) for row in columns]


def rewritten(
    shard: Shard, rows: Sequence[bool], labelled: Sequence[Labelled] | None = None
) -> Shard:
    """Replace a shard by some of its rows; of one that told nothing, only rows are known."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(shard.path).filter(pa.array(rows, pa.bool_()))
    told = dict(table.schema.metadata or {})
    if labelled is None:
        for key in (BAD_KEY, COUNTS_KEY):  # they may speak of what goes
            told.pop(key, None)
    else:
        told |= as_metadata(labelled, json.loads(told.get(BAD_KEY, b"[]")))
    with replacing(shard.path) as temporary:
        pq.write_table(table.replace_schema_metadata(told), temporary, compression="zstd")
    kept = None if labelled is None else tuple(labelled)
    return replace(shard, n_rows=table.num_rows, labelled=kept)
