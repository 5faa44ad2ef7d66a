"""Visual instruction data in LLaVA's JSON format as a source, refusing what it cannot trust.

A file is a list of records like this one, with as many turns as it likes:

    {"id": "7", "image": "a.png", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A box"}]}

Pictures must lie inside the given folder. Knows the format and the file system; does not know
models, scales or the oracle.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.errors import BadRecord, TrainingError
from training.sources.tasks import Ask, FileSource

IMAGE_MARK = "<image>"


@dataclass(frozen=True)
class Turn:
    """One question and its answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class LlavaRecord:
    """One picture with its conversation; ``image`` is None for text-only records."""

    record_id: str
    image: Path | None
    turns: tuple[Turn, ...]
    dataset: str
    kind: str


@dataclass(frozen=True)
class LlavaData:
    """What a file holds: the readable records, and one line for each that is not."""

    records: list[LlavaRecord]
    bad: list[str] = field(default_factory=list)

    @property
    def with_picture(self) -> list[LlavaRecord]:
        """Return the records that have a picture."""
        return [record for record in self.records if record.image is not None]

    @property
    def text_only(self) -> int:
        """Return how many records have no picture."""
        return sum(record.image is None for record in self.records)


def read_llava(data: Path, images: Path, *, skip_bad: bool = False) -> LlavaData:
    """Return the records of a LLaVA-format JSON file.

    Args:
        data: the JSON file.
        images: the folder that ``image`` paths are relative to; nothing outside it is read.
        skip_bad: collect bad records in ``bad`` instead of raising.

    Raises:
        BadRecord: the file is not such a list, or (without ``skip_bad``) a record is bad.
    """
    try:
        raw = json.loads(data.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadRecord(f"cannot read {data}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BadRecord(f"{data} is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise BadRecord(
            f"{data} is not valid JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from error
    if not isinstance(raw, list):
        raise BadRecord(f"{data} must hold a JSON list of records, not a {type(raw).__name__}")
    if not images.is_dir():
        raise BadRecord(f"the picture folder {images} does not exist")
    root = images.resolve()
    records: list[LlavaRecord] = []
    bad: list[str] = []
    for index, entry in enumerate(raw):
        try:
            records.append(_record(entry, index, root))
        except BadRecord as error:
            if not skip_bad:
                raise
            bad.append(str(error))
    return LlavaData(records, bad)


def _record(entry: Any, index: int, root: Path) -> LlavaRecord:
    if not isinstance(entry, dict):
        raise BadRecord(f"record {index} is a {type(entry).__name__}, not an object")
    record_id = str(entry.get("id", index))
    name = f"record {index} (id {record_id})"
    image = entry.get("image")
    path = None if image is None else _inside(image, root, name)
    return LlavaRecord(
        record_id=record_id,
        image=path,
        turns=_turns(entry.get("conversations"), name),
        dataset=str(entry.get("dataset", "")),
        kind=str(entry.get("kind", entry.get("type", ""))),
    )


def _inside(image: Any, root: Path, name: str) -> Path:
    """Return the picture's path, refused when it leads out of the folder or nowhere."""
    if not isinstance(image, str) or not image or "\0" in image:
        raise BadRecord(f"{name}: 'image' must be one file name, got {image!r:.60}")
    path = (root / image).resolve()
    if not path.is_relative_to(root):
        raise BadRecord(f"{name}: the picture path {image!r} leads outside the picture folder")
    if not path.is_file():
        raise BadRecord(f"{name}: the picture {image!r} is missing from {root}")
    return path


def _turns(conversations: Any, name: str) -> tuple[Turn, ...]:
    if not isinstance(conversations, list) or not conversations:
        raise BadRecord(f"{name}: 'conversations' must be a non-empty list")
    # LLaVA skips a leading gpt line; everything else must alternate human, gpt.
    speakers = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
    lines: list[tuple[str, str]] = []
    for position, line in enumerate(conversations):
        speaker = speakers.get(str(line.get("from"))) if isinstance(line, dict) else None
        value = line.get("value") if isinstance(line, dict) else None
        if speaker is None or not isinstance(value, str):
            raise BadRecord(f"{name}: line {position} of 'conversations' needs 'from' and 'value'")
        lines.append((speaker, value))
    if lines[0][0] == "gpt":
        lines = lines[1:]
    if not lines or [speaker for speaker, _ in lines] != ["human", "gpt"] * (len(lines) // 2):
        raise BadRecord(f"{name}: 'conversations' must alternate human and gpt and end with gpt")
    turns = []
    for question, answer in zip(lines[::2], lines[1::2], strict=True):
        text = question[1].replace(IMAGE_MARK, "").strip()
        if not text or not answer[1].strip():
            raise BadRecord(f"{name}: an empty question or answer")
        turns.append(Turn(text, answer[1].strip()))
    return tuple(turns)


def count_bad(lines: list[str], say: Callable[[str], None]) -> None:
    """Tell how many records were skipped, naming the first few."""
    if lines:
        shown = "; ".join(lines[:3])
        say(f"skipped {len(lines)} bad records: {shown}{' ...' if len(lines) > 3 else ''}")


def llava_source(data: Path, images: Path, *, skip_bad: bool = False) -> FileSource:
    """Return the questions of a LLaVA-format file, grouped by picture; each turn is one question.

    A multi-turn conversation becomes independent questions: the oracle asks each alone.
    """
    read = read_llava(data, images, skip_bad=skip_bad)
    grouped: dict[Path, list[Ask]] = {}
    names: dict[Path, str] = {}
    for record in read.with_picture:
        if record.image is None:
            continue
        names.setdefault(record.image, f"record {record.record_id}")
        for position, turn in enumerate(record.turns):
            grouped.setdefault(record.image, []).append(
                Ask(
                    question=turn.question,
                    reference=turn.answer,
                    question_id=f"{record.record_id}-{position}",
                    kind=record.kind,
                    dataset=record.dataset or data.stem,
                )
            )
    if not grouped:
        raise TrainingError(
            f"{data} holds no record with a picture ({read.text_only} are text only)"
        )
    left_out = []
    if read.text_only:
        left_out.append(f"{read.text_only} text-only records")
    if read.bad:
        left_out.append(f"{len(read.bad)} bad records, first: {read.bad[0]}")
    pictures = tuple((names[path], path, tuple(asks)) for path, asks in grouped.items())
    origin = {"data": data.name, "images": images.name}
    return FileSource("llava", pictures, origin, tuple(left_out))
