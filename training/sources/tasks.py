"""What a source of oracle questions is: pictures with their questions, loadable one by one.

A source travels to worker processes. Knows questions and picture files; does not know where they
come from, the model, scales or scoring.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from m3model.errors import BadPicture
from m3model.pictures import DEFAULT_LIMITS, PictureLimits, decode_picture
from router.places import Place
from training.errors import BadRecord
from training.scoring import AGREEMENT, metric_of

# Of `Ask`: folders of before must go on.
_NEWER = (
    "logged_action", "logged_space", "logged_answer", "messages", "max_tokens", "stop", "metric",
    "group_id",
)  # fmt: skip
SourceKind = Literal["scenes", "llava", "log", "hf"]


@dataclass(frozen=True)
class Ask:
    """One question about a picture and what is known about it.

    What was served is asked again as it was served: ``messages`` is the whole conversation, as the
    processor takes it, with the one picture in it; the answer ends after ``max_tokens`` or where it
    says one of ``stop``. None: the question alone, under the limits of whoever labels.
    ``metric`` names how its answers are scored (`training.scoring`), None is exact match. Where
    several people answered, ``metadata["references"]`` lists all, and ``reference`` is the
    commonest. ``group_id`` is what the picture belongs to, as in `router.records.OracleRecord`.
    """

    question: str
    reference: str | None = None
    question_id: str = ""
    kind: str = ""
    dataset: str = ""
    size_px: float | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    score: float | None = None  # feedback on the logged answer, when no reference was given
    logged_scale: int | None = None
    logged_action: str | None = None  # None in logs older than the column
    logged_space: str | None = None  # hash of the space that the action is of
    logged_answer: str | None = None  # what the caller got: a score is about it
    messages: tuple[dict[str, Any], ...] | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    metric: str | None = None
    group_id: str | None = None

    @property
    def references(self) -> tuple[str, ...]:
        """Return all right answers that are known."""
        told = self.metadata.get("references")
        if told is not None:
            return tuple(told)
        return () if self.reference is None else (self.reference,)

    def by_agreement(self) -> Ask:
        """Return the question as if nobody had told an answer."""
        facts = {key: said for key, said in self.metadata.items() if key != "references"}
        return replace(self, reference=None, metric=None, metadata=facts)

    def content(self) -> dict[str, Any]:
        """Return all that it says; what older versions did not know is left out where empty."""
        said = asdict(self)
        return {key: said[key] for key in said if key not in _NEWER or said[key] is not None}


@dataclass(frozen=True)
class PictureTask:
    """One decoded picture, (H, W, 3) uint8, and its questions."""

    name: str
    rgb: NDArray[np.uint8]
    asks: tuple[Ask, ...]


class Source(Protocol):
    """What ``collect`` reads; instances travel to worker processes."""

    @property
    def kind(self) -> SourceKind:
        """Return what the records say about where they came from."""

    def __len__(self) -> int:
        """Return the number of pictures."""

    def load(self, index: int) -> PictureTask:
        """Return a picture with its questions; BadRecord when it cannot be read."""

    def parameters(self) -> dict[str, Any]:
        """Return what identifies the content, for the manifest."""

    def notes(self) -> list[str]:
        """Return one line for each kind of record that was left out."""


class PictureFile(Protocol):
    """The file of a picture: a path, or a place in a file of many (`hf_tables`)."""

    @property
    def name(self) -> str:
        """Return what tells it from the other pictures of the source."""

    def read_bytes(self) -> bytes:
        """Return the picture as it was stored; OSError when it cannot be read."""


@dataclass(frozen=True)
class FileSource:
    """Pictures on disk, each with its questions: of a log, a LLaVA-format file, a dataset."""

    kind: SourceKind
    pictures: tuple[tuple[str, PictureFile, tuple[Ask, ...]], ...]
    origin: dict[str, Any]
    left_out: tuple[str, ...] = ()
    picture_ids: bool = False  # names are picture ids: the pixels must still hash to them
    limits: PictureLimits = DEFAULT_LIMITS
    log: Place | None = None  # whose tombstones say which pictures must not be kept

    def __len__(self) -> int:
        return len(self.pictures)

    def load(self, index: int) -> PictureTask:
        """Return the decoded picture; BadRecord names record and file when it cannot be read.

        A picture belongs to what its first question says, else to those that look like it: later
        questions, of other sessions, change nothing.
        """
        from router.records import picture_id
        from router.records.looks import look_of

        name, path, asks = self.pictures[index]
        rgb = read_picture(path, name, self.limits)
        if self.picture_ids and picture_id(rgb) != name:
            raise BadRecord(f"{path.name}: its pixels do not match its name (was it changed?)")
        told = asks[0].group_id if asks else None
        group = look_of(rgb) if told is None else told
        return PictureTask(name, rgb, tuple(replace(ask, group_id=group) for ask in asks))

    def parameters(self) -> dict[str, Any]:
        """Return the origin and a hash of every question and picture name."""
        content = hashlib.sha256()
        for name, path, asks in self.pictures:
            content.update(
                f"{name}\0{path.name}\0{json.dumps([a.content() for a in asks])}".encode()
            )
        return {"source": self.kind, **self.origin, "content": content.hexdigest()[:16]}

    def notes(self) -> list[str]:
        """Return what was left out."""
        return list(self.left_out)


def scored_by_metric(source: FileSource, name: str) -> FileSource:
    """Return the source with its questions scored by a metric; notes tell which cannot be.

    Those, and no others, stay scored by exact match. The metric "agreement" drops what was told.
    """
    by_agreement = name == AGREEMENT
    metric, refused = metric_of(None if by_agreement else name), Counter[str]()

    def scored(ask: Ask) -> Ask:
        if by_agreement:
            return ask.by_agreement()
        why = metric.why_not(ask.references, ask.question) if ask.references else None
        if why is not None:
            refused[why] += 1
        return ask if ask.metric is not None or why is not None else replace(ask, metric=name)

    pictures = tuple(
        (record, path, tuple(scored(ask) for ask in asks)) for record, path, asks in source.pictures
    )
    told = tuple(f"{n} questions from {metric.words}: {why}" for why, n in refused.items())
    origin = {**source.origin, "metric": name}
    return replace(source, pictures=pictures, origin=origin, left_out=source.left_out + told)


def read_picture(
    path: PictureFile, record: str, limits: PictureLimits = DEFAULT_LIMITS
) -> NDArray[np.uint8]:
    """Return the pixels of a file, (H, W, 3) uint8 RGB, as the service would see them.

    Raises:
        BadRecord: it cannot be read or is no picture; ``record`` and file are named.
    """
    try:
        return decode_picture(path.read_bytes(), limits)
    except (OSError, BadPicture) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise BadRecord(f"{record}: cannot read the picture {path.name}: {why}") from error


def shards(count: int, size: int) -> Iterator[tuple[int, range]]:
    """Yield (shard index, picture indices) covering ``count`` pictures."""
    for index, start in enumerate(range(0, count, size)):
        yield index, range(start, min(start + size, count))
