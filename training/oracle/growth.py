"""What a folder of labels holds of a source that grows, shrinks or changes, and what it lacks.

A shard tells in its Parquet metadata which pictures it labelled and what was asked about them, as
hashes: labels and what is known of them are there together or not at all. So the folder needs no
other book. Labels that are out of date are taken out of their shards; what was erased from the log
goes first. Knows shards, hashes and tombstones; labels nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from router.actions import ActionSpace
from router.log.tombstones import Erased, hash_of_picture
from router.records import OracleRecord, units_of
from training.errors import TrainingError
from training.files import replacing
from training.sources.tasks import Ask, FileSource, Source, shards

# JSON beside a shard's rows: messages, numbers, and a list of `Labelled`.
BAD_KEY, COUNTS_KEY, LABELLED_KEY = b"bad_records", b"counts", b"labelled"
# What is counted of questions that were served before.
NO_ROOM = "questions left out whose conversation leaves no room for the finest scale"
LOGGED = "logged answers of an action that was run again"
GIVEN_AGAIN = "logged answers that it gave again"
SCORES_LEFT_OUT = "scores left out, on an answer that is not given again"
SHARD_PICTURES = 100
_SHARD = re.compile(r"oracle-(\d+)\.parquet")


@dataclass(frozen=True)
class Asked:
    """A picture of a source and all that is asked about it, as hashes."""

    picture: str
    asks: tuple[str, ...]


@dataclass(frozen=True)
class Labelled:
    """What a shard holds of a picture: what was asked, the rows it gave, why it gave none.

    ``bad`` is the hash of a message in the shard's list; ``counts`` are of this picture alone.
    """

    picture: str
    asks: tuple[str, ...]
    rows: tuple[str, ...] = ()
    bad: str | None = None
    counts: dict[str, int] = field(default_factory=dict)


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


def hash_of(*parts: str | None) -> str:
    """Return 16 hex digits that stand for the parts."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def asked_of(source: FileSource) -> tuple[Asked, ...]:
    """Return what a source asks about each of its pictures."""
    found, seen = [], Counter[str]()
    for name, path, asks in source.pictures:
        # Pictures of a log are named as by their tombstones; others may be named alike.
        told = hash_of_picture(name)[:16] if source.picture_ids else hash_of(name, path.name)
        again, seen[told] = seen[told], seen[told] + 1
        contents = tuple(hash_of(json.dumps(ask.content(), sort_keys=True)) for ask in asks)
        found.append(Asked(hash_of(told, str(again)) if again else told, contents))
    return tuple(found)


def row_name(source: str, picture: str, question_id: str, question: str, metadata: str) -> str:
    """Return which question a row answers: rows of the same name, the later counts.

    Of a log: the question within its conversation, whichever request asked it.
    """
    if source != "log":
        return hash_of(picture, question, question_id)
    return hash_of(picture, question, json.loads(metadata or "{}").get("asked"))


def name_of(record: OracleRecord) -> str:
    """Return the `row_name` of a record."""
    return row_name(
        record.source, record.picture_id, record.question_id, record.question, record.metadata
    )


def shard_size(pictures: int) -> int:
    """Return how many pictures a shard holds: enough shards for every core, of short runs too."""
    return SHARD_PICTURES if pictures >= 8 * SHARD_PICTURES else max(1, -(-pictures // 8))


def shard_files(out: Path) -> list[Path]:
    """Return the shards of a folder by their numbers."""
    found = [path for path in out.glob("oracle-*.parquet") if _SHARD.fullmatch(path.name)]
    return sorted(found, key=_number)


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("oracle-"))


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
        labelled = None if told is None else tuple(_labelled(each) for each in json.loads(told))
    except (ValueError, TypeError, KeyError) as error:
        raise TrainingError(f"what {path} says it labelled is damaged; delete it") from error
    return Shard(path, _number(path), metadata.num_rows, labelled)


def _labelled(told: dict[str, Any]) -> Labelled:
    return Labelled(
        told["picture"], tuple(told["asks"]), tuple(told.get("rows", ())), told.get("bad"),
        dict(told.get("counts", {})),
    )  # fmt: skip


def told_again(ask: Ask, answers: Sequence[str], space: ActionSpace) -> dict[str, int]:
    """Return what is to be counted of a question that was served before; nothing of another."""
    from training.oracle.labelling import given_again

    again = given_again(ask, answers, space)
    left_out = ask.score is not None and ask.reference is None and again is not True
    counts = {LOGGED: again is not None, GIVEN_AGAIN: again is True, SCORES_LEFT_OUT: left_out}
    return {what: 1 for what, is_so in counts.items() if is_so}


def told_of(
    source: Source,
    asked: Sequence[Asked],
    space: ActionSpace,
    pictures: range,
    records: Sequence[OracleRecord],
    bad: Sequence[str],
) -> dict[bytes, bytes]:
    """Return what a shard tells of itself; nothing of a source that does not grow.

    Args:
        pictures: of the source, those of the shard; ``asked`` has all.
        records: of these pictures in their order, not of all questions.
        bad: a message for each that could not be read.
    """
    if not isinstance(source, FileSource) or not asked:
        return {}
    labelled, at = list[Labelled](), 0
    for index in pictures:
        name, path, asks = source.pictures[index]
        rows, counts = list[str](), Counter[str]()
        for ask in asks:
            record = records[at] if at < len(records) else None
            if record is None or not _answers(record, ask, name if source.picture_ids else None):
                continue
            at += 1
            rows.append(name_of(record))
            counts.update(told_again(ask, record.answers, space))
        why = None if rows else _why_bad(name, path, bad)
        counts[NO_ROOM] += len(asks) - len(rows) if why is None else 0
        told = asked[index]
        labelled.append(Labelled(told.picture, told.asks, tuple(rows), why, dict(+counts)))
    if at < len(records):  # pictures that are named alike: each vouches for all
        everything = tuple(map(name_of, records))
        labelled = [replace(entry, rows=everything) for entry in labelled]
    return _as_metadata(labelled, bad)


def _answers(record: OracleRecord, ask: Ask, picture: str | None) -> bool:
    same = (record.question_id, record.question) == (ask.question_id, ask.question)
    return same and picture in (None, record.picture_id)


def _why_bad(name: str, path: Path, bad: Sequence[str]) -> str | None:
    """Return the hash of the message that says why a picture could not be read."""
    found = (each for each in bad if each.startswith((f"{name}: ", f"{path.name}: ")))
    return next((hash_of(each) for each in found if path.name in each), None)


def _as_metadata(labelled: Iterable[Labelled], bad: Iterable[str]) -> dict[bytes, bytes]:
    entries, counts = list(labelled), Counter[str]()
    for entry in entries:
        counts.update(entry.counts)
    known = {entry.bad for entry in entries}
    texts = {
        BAD_KEY: [message for message in bad if hash_of(message) in known],
        COUNTS_KEY: counts,
        LABELLED_KEY: [
            {key: value for key, value in asdict(entry).items() if value} for entry in entries
        ],
    }
    return {key: json.dumps(content).encode() for key, content in texts.items()}


def current(shards: Sequence[Shard], asked: Sequence[Asked]) -> dict[str, int]:
    """Return where each picture is labelled as it is asked about now: the number of its shard.

    Fewer questions than were labelled, as when the log forgets the old ones, are labelled.
    """
    wanted = {each.picture: set(each.asks) for each in asked}
    return {
        entry.picture: shard.number
        for shard in shards
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


def without_erased(there: Sequence[Shard], erased: Erased) -> list[Shard]:
    """Take erased pictures out of the shards, and out of what these say; return the shards."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    gone = {name[:16] for name in erased.requests}
    if not gone:
        return list(there)
    kept = []
    for shard in there:
        table = pq.read_table(shard.path, columns=["picture_id"])
        flags = erased.hidden(table, OracleRecord)
        labelled = None
        if shard.labelled is not None:
            labelled = [entry for entry in shard.labelled if entry.picture not in gone]
        if flags is None and (labelled is None or len(labelled) == len(shard.labelled or ())):
            kept.append(shard)
        else:
            rows = [True] * shard.n_rows if flags is None else pc.invert(flags).to_pylist()
            kept.append(_rewritten(shard, rows, labelled))
    return kept


def without_stale(
    there: Sequence[Shard], asked: Sequence[Asked], *, passed_stay: bool
) -> list[Shard]:
    """Take labels that others replace out of the shards; return the shards.

    Args:
        passed_stay: keep labels of what the source does not ask any more; else they go too.
    """
    here, wanted = current(there, asked), {each.picture for each in asked}
    now = {
        row
        for shard in there
        for entry in shard.labelled or ()
        if here.get(entry.picture) == shard.number
        for row in entry.rows
    }
    kept = []
    for shard in there:
        before = shard.labelled or ()
        labelled = [
            entry
            for entry in before
            if here.get(entry.picture) == shard.number
            or (passed_stay and entry.picture not in wanted)
        ]
        mine = {row for entry in labelled for row in entry.rows}
        if len(labelled) == len(before) and shard.n_rows <= len(mine):
            kept.append(shard)
            continue
        rows = [
            name in mine or (passed_stay and name not in now) for name, *_ in _rows_of(shard.path)
        ]
        same = len(labelled) == len(before) and all(rows)
        kept.append(shard if same else _rewritten(shard, rows, labelled))
    return kept


def _rows_of(path: Path) -> list[tuple[str, str, str, str]]:
    """Return (name, picture, question id, question) of every row."""
    import pyarrow.parquet as pq

    names = ["source", "picture_id", "question_id", "question", "metadata"]
    table = pq.read_table(path, columns=names)
    columns = zip(*(table[name].to_pylist() for name in names), strict=True)
    return [(row_name(*row), *row[1:4]) for row in columns]


def _rewritten(
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
        told |= _as_metadata(labelled, json.loads(told.get(BAD_KEY, b"[]")))
    with replacing(shard.path) as temporary:
        pq.write_table(table.replace_schema_metadata(told), temporary, compression="zstd")
    kept = None if labelled is None else tuple(labelled)
    return replace(shard, n_rows=table.num_rows, labelled=kept)


def adopted(
    there: Sequence[Shard], source: FileSource, asked: Sequence[Asked], size: int
) -> list[Shard]:
    """Have shards of before tell what they labelled; return the shards.

    They do not say it, but what they were planned from is the source as it still is.
    """
    parts = dict(shards(len(source), size))
    found = []
    for shard in there:
        if shard.labelled is not None or shard.number not in parts:
            found.append(shard)
            continue
        rows = _rows_of(shard.path)
        bad = _bad_in(shard.path)
        labelled = []
        for at in parts[shard.number]:
            name, path, asks = source.pictures[at]
            ids = {(ask.question_id, ask.question) for ask in asks}
            mine = tuple(
                row
                for row, picture, *question in rows
                if tuple(question) in ids and (not source.picture_ids or picture == name)
            )
            why = _why_bad(name, path, bad)
            labelled.append(Labelled(asked[at].picture, asked[at].asks, mine, why))
        found.append(_rewritten(shard, [True] * len(rows), labelled))
    return found


def _bad_in(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    told: list[str] = json.loads((pq.read_metadata(path).metadata or {}).get(BAD_KEY, b"[]"))
    return told
