"""Where oracle questions come from: generated scenes, LLaVA-format files, the service's log.

A source is a list of pictures with their questions, loadable one by one in any process. Knows file
formats; does not know the model, scales or scoring.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from training.errors import BadRecord, TrainingError
from training.llava_data import read_llava

SCENE_SEEDS = 1_000_000  # scene seeds per collect seed: two seeds never share a scene
MAX_REPEATS = 2
SourceKind = Literal["scenes", "llava", "log"]
LEFT_OUT = (
    "not audited",
    "of failed requests",
    "without a stored question",
    "with several pictures",
    "whose picture was not stored",
    "without a picture",
    "that repeat a question",
)


@dataclass(frozen=True)
class Ask:
    """One question about a picture and what is known about it."""

    question: str
    reference: str | None = None
    question_id: str = ""
    kind: str = ""
    dataset: str = ""
    size_px: float | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    score: float | None = None  # feedback on the logged answer, when no reference was given
    logged_scale: int | None = None


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


@dataclass(frozen=True)
class SceneSource:
    """``count`` generated scenes; scene i of seed s is always the same one.

    ``repeats``: wordings each question is asked in. A repeat names the question that it repeats
    in ``metadata["repeat_of"]``; it says how much of an outcome is luck, and trains nothing.
    """

    count: int
    seed: int
    namespace: str = "collect"
    kind: SourceKind = "scenes"
    repeats: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.count <= SCENE_SEEDS:
            raise TrainingError(f"--scenes must be between 1 and {SCENE_SEEDS}, got {self.count}")
        if self.seed < 0:
            raise TrainingError(f"--seed must not be negative, got {self.seed}")
        if not 1 <= self.repeats <= MAX_REPEATS:
            raise TrainingError(f"--repeats must be 1 or {MAX_REPEATS}, got {self.repeats}")

    def __len__(self) -> int:
        return self.count

    def load(self, index: int) -> PictureTask:
        """Return scene ``index`` with its questions, metadata included."""
        from training.scene_asks import asks_of, repeats_of
        from training.scenes import generate_scene

        scene = generate_scene(self.seed * SCENE_SEEDS + index, namespace=self.namespace)
        name = f"{self.namespace}-{self.seed}-{index}"
        asks = asks_of(scene, name)
        if self.repeats > 1:
            asks += repeats_of(scene, asks)
        return PictureTask(name, np.ascontiguousarray(scene.image), asks)

    def parameters(self) -> dict[str, Any]:
        """Return the count, the seed and the namespace, and the repeats where there are any."""
        left_out = {"kind"} if self.repeats > 1 else {"kind", "repeats"}
        return {"source": "scenes", **{k: v for k, v in asdict(self).items() if k not in left_out}}

    def notes(self) -> list[str]:
        """Return nothing: every scene is used."""
        return []


@dataclass(frozen=True)
class FileSource:
    """Pictures on disk, each with its questions (built by the two functions below)."""

    kind: SourceKind
    pictures: tuple[tuple[str, Path, tuple[Ask, ...]], ...]
    origin: dict[str, Any]
    left_out: tuple[str, ...] = ()
    picture_ids: bool = False  # names are picture ids: the pixels must still hash to them

    def __len__(self) -> int:
        return len(self.pictures)

    def load(self, index: int) -> PictureTask:
        """Return the decoded picture; BadRecord names the record when it cannot be decoded."""
        from PIL import Image

        from router.records import picture_id

        name, path, asks = self.pictures[index]
        try:
            with Image.open(path) as image:
                rgb = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BadRecord(f"{name}: cannot read the picture {path.name}: {error}") from error
        if self.picture_ids and picture_id(rgb) != name:
            raise BadRecord(f"{path.name}: its pixels do not match its name (was it changed?)")
        return PictureTask(name, rgb, asks)

    def parameters(self) -> dict[str, Any]:
        """Return the origin and a hash of every question and picture name."""
        content = hashlib.sha256()
        for name, path, asks in self.pictures:
            content.update(f"{name}\0{path.name}\0{json.dumps([asdict(a) for a in asks])}".encode())
        return {"source": self.kind, **self.origin, "content": content.hexdigest()[:16]}

    def notes(self) -> list[str]:
        """Return what was left out."""
        return list(self.left_out)


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


def log_source(folder: Path) -> FileSource:
    """Return the audited questions of a service's log folder, with the latest feedback on each.

    Reads ``decisions/*.parquet``, ``feedback/*.parquet`` and ``images/<picture_id>.png``. Only
    audited (uniformly sampled) requests count: the router's own choices must never train it.
    """
    from training.log_reader import audited_decisions, latest_feedback

    if not folder.is_dir():
        raise TrainingError(f"the log folder {folder} does not exist")
    feedback = latest_feedback(folder)
    counts = dict.fromkeys(LEFT_OUT, 0)
    asks: dict[tuple[str, str], tuple[Any, Ask]] = {}
    for row in audited_decisions(folder, counts):
        picture = row["picture_ids"][0]
        path = folder / "images" / f"{picture}.png"
        if not picture.isalnum() or not path.is_file():
            counts["whose picture was not stored"] += 1
            continue
        given = feedback.get(row["request_id"], {})
        ask = Ask(
            question=row["question"],
            reference=given.get("reference"),
            question_id=row["request_id"],
            dataset="log",
            score=given.get("score"),
            logged_scale=row["scale"],
            metadata={"model": row["model"], "router_version": row["router_version"]},
        )
        # The same question about the same picture is asked once, with the newest feedback on it.
        key, when = (picture, row["question"]), given.get("time_utc")
        if key in asks:
            counts["that repeat a question"] += 1
            before = asks[key][0]
            if when is None or (before is not None and before >= when):
                continue
        asks[key] = when, ask
    grouped: dict[str, list[Ask]] = {}
    for (picture, _), (_, ask) in asks.items():
        grouped.setdefault(picture, []).append(ask)
    left_out = tuple(f"{count} records {what}" for what, count in counts.items() if count)
    if not grouped:
        raise TrainingError(
            f"{folder} holds no audited question with a stored picture"
            + (f" ({', '.join(left_out)})" if left_out else "")
            + "; serve with --log-images and --audit-rate"
        )
    pictures = tuple(
        (name, folder / "images" / f"{name}.png", tuple(asks))
        for name, asks in sorted(grouped.items())
    )
    return FileSource("log", pictures, {}, left_out, picture_ids=True)


def shards(count: int, size: int) -> Iterator[tuple[int, range]]:
    """Yield (shard index, picture indices) covering ``count`` pictures."""
    for index, start in enumerate(range(0, count, size)):
        yield index, range(start, min(start + size, count))
