"""Generated pictures with questions, where the picture decides how many visual tokens are needed.

Every panel has its own log-uniform size, so that one sentence is easy on one picture and hard on
the next. A picture depends on its namespace, seed and size only. Knows nothing of models.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from zlib import crc32

import numpy as np
from PIL import Image

from training.scenes.clusters import Cluster
from training.scenes.panels import (
    CHARS,
    COLORS,
    PATCH_CLASSES,
    PATCH_COLORS,
    PATCH_PX,
    SHAPES,
    Box,
    Canvas,
    SceneObject,
    free_place,
    log_uniform,
)
from training.scenes.plates import Chart, Number, Sign, digit_pool
from training.scenes.questions import ask
from training.scenes.templates import BACKGROUNDS, KINDS, question_words

__all__ = [
    "BACKGROUNDS", "CHARS", "COLORS", "KINDS", "NAMESPACES", "PATCH_CLASSES", "PATCH_COLORS",
    "SHAPES", "Question", "Scene", "SceneObject", "digit_pool", "generate_scene", "question_words",
]  # fmt: skip

NAMESPACES = ("model", "validation", "collect", "heldout", "demo")
TRAINING_NAMESPACE = "model"
PANEL_GAP = 6
INSTANCE_SHARE = 0.2  # of a patch that a mark must cover to own it
TARGET_SHARE = 0.15
# Chance of being one of the panels, smallest and largest size in px at 192 px (a radius, a font,
# a digit's height, a chart's height); smallest sizes hold at every picture size.
PANELS = {"objects": (0.45, 3.5, 44), "sign": (0.36, 10, 38),
          "number": (0.09, 14, 90), "chart": (0.1, 40, 150)}  # fmt: skip
PANEL_COUNTS = (0.42, 0.28, 0.18, 0.12)  # chance of one panel, two, three and four


@dataclass(frozen=True)
class Question:
    """A question, its answer, and what of the picture it needs.

    `again` asks the same in other words; `size_px` is the size of the smallest thing that must be
    seen; `target` (G, G) marks the patches of what is asked about.
    """

    text: str
    again: str
    answer: str
    kind: str
    size_px: float
    clutter: int
    target: np.ndarray


@dataclass(frozen=True)
class Scene:
    """A picture (S, S, 3), its questions and its dense labels on the G x G patches of 8 px.

    `patch_class`, `patch_color` and `patch_char` are indices into PATCH_CLASSES, PATCH_COLORS
    (0 = none) and CHARS (0 = ""); `instance` is 0 or one more than an index into `boxes`
    (n, 4; xyxy in px).
    """

    image: np.ndarray
    questions: tuple[Question, ...]
    patch_class: np.ndarray
    patch_color: np.ndarray
    patch_char: np.ndarray
    instance: np.ndarray
    boxes: np.ndarray
    background: str
    objects: tuple[SceneObject, ...]


def generate_scene(seed: int, *, namespace: str = "collect", size_px: int = 192) -> Scene:
    """Returns the scene of (namespace, seed, size).

    Args:
        seed: Number of the picture, from 0.
        namespace: One of NAMESPACES: what the picture is for. Handwritten digits and photographs
            of "model" are in no other namespace.
        size_px: Side of the picture: a multiple of 8, at least 96.

    Raises:
        ValueError: For an unknown namespace or an impossible size.
    """
    if namespace not in NAMESPACES:
        raise ValueError(f"unknown namespace {namespace!r}: use one of {', '.join(NAMESPACES)}")
    if size_px % PATCH_PX or size_px < 96:
        raise ValueError(f"size_px must be a multiple of {PATCH_PX} from 96 on, not {size_px}")
    rng = np.random.default_rng([crc32(namespace.encode()), seed, size_px])
    training = namespace == TRAINING_NAMESPACE
    background, canvas = _background(rng, size_px, training)
    _draw_panels(rng, canvas, size_px, training)
    grid = size_px // PATCH_PX
    instance = _instances(canvas, grid)
    most = int(rng.integers(7, 10)) if size_px >= 144 else int(rng.integers(4, 7))
    questions = tuple(
        Question(
            q.text,
            q.again,
            q.answer,
            q.kind,
            q.size_px,
            q.clutter,
            _target(canvas, q.marks, instance),
        )
        for q in ask(rng, canvas.objects, most, generous=training)
    )
    lookup = [np.array([0, *codes], np.uint8)
              for codes in (canvas.classes, canvas.colors, canvas.chars)]  # fmt: skip
    return Scene(
        image=np.array(canvas.image),
        questions=questions,
        patch_class=lookup[0][instance],
        patch_color=lookup[1][instance],
        patch_char=lookup[2][instance],
        instance=instance,
        boxes=np.array(canvas.boxes, np.float32).reshape(-1, 4),
        background=background,
        objects=tuple(canvas.objects),
    )


def _draw_panels(rng: np.random.Generator, canvas: Canvas, side: int, training: bool) -> None:
    scale = min(1.0, side / 192)
    most = len(PANEL_COUNTS) if scale > 0.7 else 3  # a small picture has room for fewer panels
    count = min(1 + int(rng.choice(len(PANEL_COUNTS), p=PANEL_COUNTS)), most)
    names = list(PANELS)
    chances = [chance for chance, _, _ in PANELS.values()]
    present = [names[i] for i in rng.choice(len(names), count, replace=False, p=chances)]
    taken: list[Box] = []
    for name in present:
        _, low, high = PANELS[name]
        size = log_uniform(rng, low, high * scale)
        panel = _sample(rng, name, training, side)
        while size >= low:
            width, height = panel.extent(size)
            place = free_place(rng, width, height, (1, 1, side - 1, side - 1), taken, PANEL_GAP)
            if place is not None:
                taken.append((place[0], place[1], place[0] + width, place[1] + height))
                panel.draw(rng, canvas, place, size)
                break
            size *= 0.85


def _sample(
    rng: np.random.Generator, name: str, training: bool, side: int
) -> Cluster | Sign | Number | Chart:
    if name == "objects":
        return Cluster.sample(rng, side)
    if name == "sign":
        return Sign.sample(rng)
    return Number.sample(rng, training) if name == "number" else Chart.sample(rng)


def _instances(canvas: Canvas, grid: int) -> np.ndarray:
    instance = np.zeros((grid, grid), np.int16)
    best = np.full((grid, grid), INSTANCE_SHARE, np.float32)
    plate = PATCH_CLASSES.index("sign")
    for mark, (row, column, part) in enumerate(canvas.coverage):
        at = (slice(row, row + part.shape[0]), slice(column, column + part.shape[1]))
        wins = part > best[at]
        instance[at][wins] = mark + 1
        if canvas.classes[mark] != plate:  # a plate is ground: letters on it win anyway
            best[at][wins] = part[wins]
    return instance


def _target(canvas: Canvas, marks: tuple[int, ...], instance: np.ndarray) -> np.ndarray:
    covered = np.zeros(instance.shape, np.float32)
    for mark in marks:
        row, column, part = canvas.coverage[mark]
        covered[row : row + part.shape[0], column : column + part.shape[1]] += part
    target = covered >= TARGET_SHARE
    return target if target.any() else covered == covered.max()


@lru_cache(maxsize=4)
def _photo(name: str, training: bool) -> Image.Image:
    from sklearn.datasets import load_sample_image

    photo = load_sample_image(name)
    middle = photo.shape[1] // 2
    return Image.fromarray(photo[:, :middle] if training else photo[:, middle:])


def _background(rng: np.random.Generator, side: int, training: bool) -> tuple[str, Canvas]:
    """Returns (name, a canvas filled with it)."""
    name = BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]
    dark = bool(rng.random() < 0.5)
    brightness = float(rng.uniform(28, 84) if dark else rng.uniform(178, 222))
    tint = rng.uniform(-14, 14, 3)
    period = log_uniform(rng, 7, side / 5)
    if name == "photo":
        photo = _photo("china.jpg" if rng.random() < 0.5 else "flower.jpg", training)
        for _ in range(8):  # an even piece of sky would be one more plain background
            crop = int(log_uniform(rng, 110, 310))
            x, y = (int(rng.integers(0, extent - crop + 1)) for extent in photo.size)
            image = photo.resize(
                (side, side), Image.Resampling.BILINEAR, (x, y, x + crop, y + crop)
            )
            coarse = np.asarray(image.reduce(4), np.float32)
            spread = float(coarse.std((0, 1)).mean())
            if spread > 28:
                break
        gain = min(14.0 / spread, 0.6)
        level = np.arange(256, dtype=np.float32)
        tables = [brightness + np.clip((level - m) * gain, -34, 34) for m in coarse.mean((0, 1))]
        table = np.clip(np.concatenate(tables), 0, 255).astype(int).tolist()
        return name, Canvas(image.point(table), brightness)
    pattern = _pattern(rng, name, side, period) * float(rng.uniform(9, 17))
    rgb = pattern[:, :, None] + (brightness + tint).astype(np.float32)
    image = Image.fromarray(np.clip(rgb, 0, 255).astype(np.uint8))
    return name, Canvas(image, brightness)


def _pattern(rng: np.random.Generator, name: str, side: int, period: float) -> np.ndarray:
    """Returns (side, side) float32 between about -1.5 and 1.5."""
    angle = float(rng.uniform(0, np.pi))
    axis = np.arange(side, dtype=np.float32)
    if name == "plain":
        return np.zeros((side, side), np.float32)
    if name == "noise":
        cells = rng.normal(0, 0.75, (2 + int(2 * side / period),) * 2).astype(np.float32)
        return np.asarray(Image.fromarray(cells).resize((side, side), Image.Resampling.BILINEAR))
    if name == "gradient":
        along = axis[None, :] * np.cos(angle) + axis[:, None] * np.sin(angle)
        low, high = float(along.min()), float(along.max())
        return (along - low) * np.float32(4.0 / (high - low)) - np.float32(2.0)
    phase = rng.uniform(0, period, 2)
    if name == "stripes":
        along = axis[None, :] * np.cos(angle) + axis[:, None] * np.sin(angle)
        return np.where((along + phase[0]) % period < period / 2, 1.0, -1.0).astype(np.float32)
    across, down = (axis + phase[0]) % period, (axis + phase[1]) % period
    if name == "checks":
        half = period / 2
        return np.where((across[None, :] < half) ^ (down[:, None] < half), 1.0, -1.0).astype(
            np.float32
        )
    away = (across[None, :] - period / 2) ** 2 + (down[:, None] - period / 2) ** 2
    return np.where(away < (0.3 * period) ** 2, 1.6, -0.5).astype(np.float32)
