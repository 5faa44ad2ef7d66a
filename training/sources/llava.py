"""Visual instruction data in LLaVA's JSON format as a source, refusing what it cannot trust.

A file is a list of records like this one, with as many turns as it likes:

    {"id": "7", "image": "a.png", "conversations": [
        {"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "A box"}]}

An answer may be a list of all that people said. A record may name its ``dataset``, ``kind``,
``metric`` (of `training.scoring`) and ``group``: the document, video or session that its picture is
of. Pictures must lie inside the given folder. Knows the format and the file system; does not know
models, scales or the oracle.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from training.errors import BadRecord, TrainingError
from training.scoring import AGREEMENT, metric_of
from training.scoring.choices import moved, options_of
from training.sources.tasks import Ask, FileSource, PictureFile, SourceKind

IMAGE_MARK = "<image>"
SHOWN = 5  # bad records that are told one by one
OTHER_PICTURES = ("images", "video", "videos")  # of other formats: not read, so not passed over


@dataclass(frozen=True)
class Turn:
    """One question and its answer, the commonest of the ``references`` where there are several; the
    answer is empty where nobody knows one, which no LLaVA-format file can say.
    """

    question: str
    answer: str
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class LlavaRecord:
    """One picture with its conversation; ``image`` is None for text-only records."""

    record_id: str
    image: Path | None
    turns: tuple[Turn, ...]
    dataset: str
    kind: str
    metric: str | None = None
    group: str | None = None


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
    raw = _parsed(data)
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


def _parsed(data: Path) -> Any:
    """Return what the JSON file holds; a byte order mark in front is no part of it."""
    try:
        text = data.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadRecord(f"cannot read {data}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BadRecord(f"{data} is not UTF-8 text") from error
    try:
        return json.loads(text)
    except RecursionError:
        raise BadRecord(f"{data} is nested too deeply") from None
    except json.JSONDecodeError as error:
        hint = "; it looks like JSON Lines: make it one list (jq -s . FILE)"
        raise BadRecord(
            f"{data} is not valid JSON: {error.msg} at line {error.lineno} column {error.colno}"
            + (hint if _is_lines(text) else "")
        ) from error


def _is_lines(text: str) -> bool:
    first, _, rest = text.strip().partition("\n")
    try:
        return bool(rest) and isinstance(json.loads(first), dict)
    except (json.JSONDecodeError, RecursionError):
        return False


def _record(entry: Any, index: int, root: Path) -> LlavaRecord:
    if not isinstance(entry, dict):
        raise BadRecord(f"record {index} is a {type(entry).__name__}, not an object")
    record_id = str(entry.get("id", index))
    name = f"record {index} (id {record_id})"
    path = _picture(entry, root, name)
    turns = _turns(entry.get("conversations"), name)
    lines: list[dict[str, Any]] = entry["conversations"]
    marks = sum(_marks(line["value"]) for line in lines)
    if path is None and marks:
        raise BadRecord(f"{name}: an {IMAGE_MARK} mark without a picture ('image' is missing)")
    if marks > 1:
        raise BadRecord(f"{name}: {marks} {IMAGE_MARK} marks for one picture")
    metric, group = entry.get("metric"), entry.get("group")
    if metric is not None and not isinstance(metric, str):
        raise BadRecord(f"{name}: 'metric' must be a name, got {metric!r:.60}")
    if group is not None and (isinstance(group, bool) or not isinstance(group, str | int)):
        raise BadRecord(f"{name}: 'group' must be text or a whole number, got {group!r:.60}")
    return LlavaRecord(
        record_id=record_id,
        image=path,
        turns=turns,
        dataset=str(entry.get("dataset", "")),
        kind=str(entry.get("kind", entry.get("type", ""))),
        metric=metric,
        group=None if group is None else str(group),
    )


def _scorable(metric: str, turns: tuple[Turn, ...], name: str) -> None:
    """Return if all turns can be scored so.

    Raises:
        BadRecord: no such metric, or one that needs what a turn lacks.
    """
    if metric == AGREEMENT:
        return
    try:
        measure = metric_of(metric)
    except TrainingError as error:
        raise BadRecord(f"{name}: {error}") from error
    for turn in turns:
        if not turn.answer:
            continue
        why = measure.why_not(turn.references or (turn.answer,), turn.question)
        if why is not None:
            raise BadRecord(f"{name}: {why}")


def _picture(entry: dict[str, Any], root: Path, name: str) -> Path | None:
    """Return the one picture of a record; None where it has none.

    Raises:
        BadRecord: it has several, or one that cannot be read.
    """
    image = entry.get("image")
    other = next((key for key in OTHER_PICTURES if entry.get(key)), None)
    if other is not None:
        raise BadRecord(f"{name}: {other!r} is not read; name its one picture in 'image'")
    if isinstance(image, list):
        if len(image) != 1:
            raise BadRecord(f"{name}: {len(image)} pictures; one question is about one picture")
        image = image[0]
    return None if image is None else _inside(image, root, name)


def _marks(value: str | list[str]) -> int:
    texts = [value] if isinstance(value, str) else value
    return sum(text.count(IMAGE_MARK) for text in texts)


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
    lines = [_line(line, f"{name}: line {at}") for at, line in enumerate(conversations)]
    if lines[0][0] == "gpt":
        lines = lines[1:]
    if not lines or [speaker for speaker, _ in lines] != ["human", "gpt"] * (len(lines) // 2):
        raise BadRecord(f"{name}: 'conversations' must alternate human and gpt and end with gpt")
    turns = []
    for (_, asked), (_, answers) in zip(lines[::2], lines[1::2], strict=True):
        question = " ".join(asked).replace(IMAGE_MARK, "").strip()
        if not question or not all(answers):
            raise BadRecord(f"{name}: an empty question or answer")
        commonest = Counter(answers).most_common(1)[0][0]  # of equally common ones the first
        turns.append(Turn(question, commonest, answers if len(answers) > 1 else ()))
    return tuple(turns)


def _line(line: Any, name: str) -> tuple[str, tuple[str, ...]]:
    """Return who says what in a line: one text, or of a gpt line all answers that were given."""
    speakers = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
    where = f"{name} of 'conversations'"
    if not isinstance(line, dict) or "from" not in line or "value" not in line:
        raise BadRecord(f"{where} needs 'from' and 'value'")
    if line["from"] == "system":
        raise BadRecord(f"{where} is a system line, which is neither asked nor trained: remove it")
    speaker, value = speakers.get(str(line["from"])), line["value"]
    if speaker is None:
        raise BadRecord(f"{where} is from {line['from']!r:.60}, not from human or gpt")
    if isinstance(value, str):
        return speaker, (value.strip(),)
    is_texts = isinstance(value, list) and all(isinstance(each, str) for each in value)
    if speaker == "human" or not value or not is_texts:
        wanted = "text" if speaker == "human" else "text or a list of texts"
        raise BadRecord(f"{where}: 'value' is {value!r:.60}, not {wanted}")
    return speaker, tuple(each.strip() for each in value)


def count_bad(lines: list[str], say: Callable[[str], None]) -> None:
    """Tell how many records were skipped, naming the first few."""
    if lines:
        say(f"skipped {_shown(lines)}")


def _shown(bad: list[str]) -> str:
    shown = "; ".join(bad[:SHOWN])
    return f"{len(bad)} bad records: {shown}{' ...' if len(bad) > SHOWN else ''}"


def llava_source(
    data: Path,
    images: Path,
    *,
    skip_bad: bool = False,
    metric: str | None = None,
    repeats: int = 1,
) -> FileSource:
    """Return the questions of a LLaVA-format file, grouped by picture; each turn is one question.

    A multi-turn conversation becomes independent questions: the oracle asks each alone.

    Args:
        data, images, skip_bad: as in `read_llava`.
        metric: how answers are scored where a record does not say; None is exact match,
            "agreement" leaves the references out.
        repeats: orders that the options of a multiple-choice question are asked in.

    Raises:
        BadRecord: as `read_llava`; or (without ``skip_bad``) a record that cannot be scored so, or
            that tells another group of its picture than one before.
        TrainingError: no question, an unknown metric, or repeats of what has no options.
    """
    read = read_llava(data, images, skip_bad=skip_bad)
    pairs = [(record.image, record) for record in read.records if record.image is not None]
    left_out = [f"{read.text_only} text-only records"] if read.text_only else []
    asked = AskedRecords("llava", data, {"data": data.name, "images": images.name}, left_out)
    return asked.source(pairs, read.bad, skip_bad=skip_bad, metric=metric, repeats=repeats)


@dataclass(frozen=True)
class AskedRecords:
    """How records become a source: what it is called, and what was left out before.

    Args:
        kind: of the source.
        data: the file or folder they are of.
        origin: names it in manifests.
        left_out: notes on what is not among the records.
    """

    kind: SourceKind
    data: Path
    origin: dict[str, Any]
    left_out: list[str]

    def source(
        self,
        records: Iterable[tuple[PictureFile, LlavaRecord]],
        bad: Iterable[str],
        *,
        skip_bad: bool,
        metric: str | None,
        repeats: int,
    ) -> FileSource:
        """Return the questions of records, grouped by picture; see `llava_source`."""
        if repeats < 1:
            raise TrainingError(f"--repeats must be at least 1, got {repeats}")
        if metric not in (None, AGREEMENT):
            metric_of(metric)
        bad = list(bad)
        grouped: dict[PictureFile, list[Ask]] = {}
        names: dict[PictureFile, str] = {}
        groups: dict[PictureFile, str | None] = {}
        for picture, record in records:
            try:
                asks = list(_asks(record, record.dataset or self.data.stem, metric, repeats))
                group, before = asks[0].group_id, groups.get(picture)
                if None not in (group, before) and group != before:
                    raise BadRecord(
                        f"record {record.record_id}: its picture is of the group {before}, not "
                        f"{group}, says a record before"
                    )
            except BadRecord as error:
                if not skip_bad:
                    raise
                bad.append(str(error))
                continue
            groups[picture] = before or group
            names.setdefault(picture, f"record {record.record_id}")
            grouped.setdefault(picture, []).extend(asks)
        left_out = [*self.left_out, *([_shown(bad)] if bad else [])]
        if not grouped:
            told = "".join(f"; {each}" for each in left_out)
            raise TrainingError(f"{self.data} holds no record with a picture{told}")
        if repeats > 1 and not any(
            "repeat_of" in a.metadata for asks in grouped.values() for a in asks
        ):
            raise TrainingError(
                "--repeats moves the options of multiple choice: give --metric choice"
            )
        pictures = tuple(
            (names[picture], picture, tuple(replace(ask, group_id=groups[picture]) for ask in asks))
            for picture, asks in grouped.items()
        )
        origin = dict(self.origin)
        origin |= {} if metric is None else {"metric": metric}
        origin |= {} if repeats == 1 else {"repeats": repeats}
        return FileSource(self.kind, pictures, origin, tuple(left_out))


def _asks(record: LlavaRecord, dataset: str, metric: str | None, repeats: int) -> Iterator[Ask]:
    """Yield the questions of a record, each followed by itself with its options moved."""
    name = record.metric or metric
    if name is not None:
        _scorable(name, record.turns, f"record {record.record_id}")
    for position, turn in enumerate(record.turns):
        ask = Ask(
            question=turn.question,
            reference=turn.answer or None,
            question_id=f"{record.record_id}-{position}",
            kind=record.kind,
            dataset=dataset,
            metadata={"references": list(turn.references)} if turn.references else {},
            metric=name,
            group_id=None if record.group is None else f"{dataset}/{record.group}",
        )
        yield ask.by_agreement() if name == AGREEMENT else ask
        if name != "choice" or turn.references or not turn.answer:
            continue
        for places in range(1, min(repeats, len(options_of(turn.question)))):
            question, reference = moved(turn.question, turn.answer, places)
            yield replace(
                ask, question=question, reference=reference,
                question_id=f"{ask.question_id}-moved-{places}",
                metadata={"repeat_of": ask.question_id},
            )  # fmt: skip
