"""What a shard of labels says of itself: which pictures it labelled and what was asked of each.

It stands in the Parquet metadata, as hashes: labels and what is known of them are there together or
not at all, so the folder needs no other book. Knows asks, records and hashes; knows no files.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from router.actions import ActionSpace
from router.log.tombstones import hash_of_picture
from router.records import OracleRecord
from training.sources.tasks import Ask, FileSource, PictureFile, Source

# JSON beside a shard's rows: messages, numbers, and a list of `Labelled`.
BAD_KEY, COUNTS_KEY, LABELLED_KEY = b"bad_records", b"counts", b"labelled"
# What is counted of questions that were served before.
NO_ROOM = "questions left out whose conversation leaves no room for the finest scale"
LOGGED = "logged answers of an action that was run again"
GIVEN_AGAIN = "logged answers that it gave again"
SCORES_LEFT_OUT = "scores left out, on an answer that is not given again"


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


def labelled_in(told: dict[str, Any]) -> Labelled:
    """Return an entry of a shard's list."""
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
    return as_metadata(labelled, bad)


def _answers(record: OracleRecord, ask: Ask, picture: str | None) -> bool:
    same = (record.question_id, record.question) == (ask.question_id, ask.question)
    return same and picture in (None, record.picture_id)


def _why_bad(name: str, path: PictureFile, bad: Sequence[str]) -> str | None:
    """Return the hash of the message that says why a picture could not be read."""
    found = (each for each in bad if each.startswith((f"{name}: ", f"{path.name}: ")))
    return next((hash_of(each) for each in found if path.name in each), None)


def as_metadata(labelled: Iterable[Labelled], bad: Iterable[str]) -> dict[bytes, bytes]:
    """Return entries as a shard's metadata, with their counts and those messages that they name."""
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
