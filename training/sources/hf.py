"""A folder of Hugging Face's data as a source: rows with a picture, a question and answers.

Knows which columns are usual and what their values may be; does not know files (`hf_tables`),
models, scales or the oracle.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.errors import BadRecord, TrainingError
from training.sources.hf_tables import (
    Split,
    StoredPicture,
    chunks,
    find_split,
    picture_bytes,
    schema_of,
)
from training.sources.llava import IMAGE_MARK, AskedRecords, LlavaRecord, Turn
from training.sources.tasks import FileSource

# Names of columns in public datasets, the first that is there counts.
USUAL = {
    "image": ("image", "img", "picture", "images"),
    "question": ("question", "query", "problem"),
    "answer": ("answers", "answer", "label", "labels", "multiple_choice_answer"),
}
OPTIONAL = ("kind", "group")  # taken only where they are named
OPTIONS = ("options", "choices")  # columns beside which a number is no answer


@dataclass(frozen=True)
class Columns:
    """Which columns are read; no answer column: nobody knows the answers."""

    image: str
    question: str
    answer: str | None
    kind: str | None
    group: str | None

    @property
    def names(self) -> list[str]:
        """Return those that are there, each once."""
        told = (self.image, self.question, self.answer, self.kind, self.group)
        return list(dict.fromkeys(name for name in told if name is not None))


def parse_columns(text: str | None) -> dict[str, str]:
    """Return what ``image=img,question=q`` says.

    Raises:
        TrainingError: it says something else.
    """
    found: dict[str, str] = {}
    for part in filter(None, (text or "").split(",")):
        key, equals, name = part.partition("=")
        key = key.strip()
        if not equals or key not in (*USUAL, *OPTIONAL) or key in found:
            raise TrainingError(
                f"--columns {part!r}: give {', '.join((*USUAL, *OPTIONAL))} once each, as "
                "image=NAME,question=NAME,answer=NAME"
            )
        found[key] = name.strip()
    return found


def hf_source(
    folder: Path,
    *,
    split: str | None = None,
    columns: str | None = None,
    skip_bad: bool = False,
    metric: str | None = None,
    repeats: int = 1,
) -> FileSource:
    """Return the questions of a dataset's folder, grouped by picture.

    A row without an answer is a question without a reference.

    Args:
        folder: written by `save_to_disk`, or holding Parquet files as on the hub.
        split: its name; None where there is one alone.
        columns: names that are not the usual ones, as ``image=img,answer=label``; ``answer=``
            reads no answers.
        skip_bad: count bad rows in the notes instead of raising.
        metric, repeats: as in `llava_source`.

    Raises:
        BadRecord: a file, or (without ``skip_bad``) a row is bad.
        TrainingError: no such split or column, no question, or as in `llava_source`.
    """
    chosen = find_split(folder, split)
    schema = schema_of(chosen)
    named = _columns(schema.names, parse_columns(columns), folder)
    reading = _Reading(folder, chosen, named, _labels(schema, named.answer), set(schema.names))
    pairs, bad = [], list[str]()
    for row in reading.rows():
        try:
            pairs.append(reading.record(row))
        except BadRecord as error:
            told = f"row {row.number} of {chosen.name}: {error}"
            if not skip_bad:
                raise BadRecord(f"{told} (`collect --skip-bad` goes on)") from error
            bad.append(told)
    unknown = sum(not record.turns[0].answer for _, record in pairs)
    left_out = [f"the answers of {unknown} questions: there are none"] if unknown else []
    origin = {"data": folder.resolve().name, "split": chosen.name, "columns": named.names}
    asked = AskedRecords("hf", folder, origin, left_out)
    return asked.source(pairs, bad, skip_bad=skip_bad, metric=metric, repeats=repeats)


@dataclass(frozen=True)
class _Row:
    number: int  # within the split
    file: Path
    group: int
    place: int  # within the group
    values: dict[str, Any]


class _Reading:
    """The rows of a split as records; the same picture is one, however many rows show it."""

    def __init__(
        self,
        folder: Path,
        split: Split,
        columns: Columns,
        labels: Sequence[str] | None,
        names: set[str],
    ) -> None:
        self._folder, self._split, self._columns = folder, split, columns
        self._labels, self._has_options = labels, bool(names & set(OPTIONS))
        self._pictures: dict[str, StoredPicture] = {}

    def rows(self) -> Iterator[_Row]:
        number = 0
        for file, group, start, table in chunks(self._split, self._columns.names):
            for place in range(table.num_rows):  # one at a time: pictures are large
                values = {name: table[name][place].as_py() for name in self._columns.names}
                yield _Row(number, file, group, start + place, values)
                number += 1

    def record(self, row: _Row) -> tuple[StoredPicture, LlavaRecord]:
        columns, values = self._columns, row.values
        question = values[columns.question]
        if not isinstance(question, str):
            raise BadRecord(f"{columns.question!r} is {question!r:.60}, not a text")
        question = question.replace(IMAGE_MARK, "").strip()
        if not question:
            raise BadRecord("an empty question")
        answers = [] if columns.answer is None else self._answers(values[columns.answer])
        commonest = Counter(answers).most_common(1)[0][0] if answers else ""
        turn = Turn(question, commonest, tuple(answers) if len(answers) > 1 else ())
        group = None if columns.group is None else values[columns.group]
        record = LlavaRecord(
            record_id=f"{self._split.name}-{row.number}",
            image=None,
            turns=(turn,),
            dataset="",
            kind="" if columns.kind is None else str(values[columns.kind] or ""),
            group=None if group is None else str(group),
        )
        return self._picture(row), record

    def _picture(self, row: _Row) -> StoredPicture:
        data = picture_bytes(row.values[self._columns.image], self._folder)
        name = hashlib.sha256(data).hexdigest()[:16]
        place = StoredPicture(
            name, row.file, row.group, row.place, self._columns.image, self._folder
        )
        return self._pictures.setdefault(name, place)

    def _answers(self, value: Any) -> list[str]:
        """Return all answers of a row that are there."""
        if value is None:
            return []
        if isinstance(value, list):
            return [answer for each in value for answer in self._answers(each)]
        if isinstance(value, dict):  # as VQA v2 has them, or SQuAD
            told = next((value[key] for key in ("answer", "text") if key in value), None)
            if told is None:
                raise BadRecord(f"an answer that is {value!r:.60}")
            return self._answers(told)
        if self._labels is not None and isinstance(value, int):
            if not 0 <= value < len(self._labels):
                return []  # -1 stands for none
            value = self._labels[value]
        elif not isinstance(value, str):
            if self._has_options or isinstance(value, bytes):
                raise BadRecord(f"the answer {value!r:.60} is no text (an option's number?)")
            value = f"{value:g}" if isinstance(value, float) else str(value)
        return [value.strip()] if value.strip() else []


def _columns(names: Sequence[str], told: dict[str, str], folder: Path) -> Columns:
    """Return the columns to read.

    Raises:
        TrainingError: one is not there, or is called as none usually is.
    """
    there = ", ".join(names)
    found: dict[str, str | None] = dict.fromkeys((*USUAL, *OPTIONAL))
    for key, usual in USUAL.items():
        found[key] = next((name for name in usual if name in names), None)
    for key, name in told.items():
        if name not in names and (name or key != "answer"):
            raise TrainingError(f"{folder} has no column {name!r}; it has {there}")
        found[key] = name or None
    for key in USUAL:
        if found[key] is None and key not in told:
            none = ", or --columns answer= where there are none" if key == "answer" else ""
            raise TrainingError(
                f"{folder}: no column is called as {key}s usually are; name it with --columns "
                f"{key}=NAME{none} (there are {there})"
            )
    return Columns(
        str(found["image"]), str(found["question"]), found["answer"], found["kind"], found["group"]
    )


def _labels(schema: Any, column: str | None) -> list[str] | None:
    """Return the names that the numbers of a column stand for, if the dataset says so."""
    told = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        feature = json.loads(told)["info"]["features"][column]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (TypeError, ValueError, KeyError):
        return None
    return names if isinstance(names, list) else None
