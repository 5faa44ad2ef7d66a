"""What panels of a generated scene are drawn with: a canvas, colours, capitals, free places.

Draws marks on a canvas and keeps, for every mark, what it is and where its pixels are. Knows
nothing of questions, of backgrounds other than their brightness, or of models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PATCH_PX = 8
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
PATCH_CLASSES = ("background", *SHAPES, "sign", "letter", "digit", "bar", "tag")
COLOR_RGB: dict[str, tuple[int, int, int]] = {
    "red": (214, 34, 38),
    "orange": (240, 128, 20),
    "yellow": (238, 214, 36),
    "green": (36, 150, 56),
    "cyan": (48, 200, 214),
    "blue": (40, 72, 222),
    "purple": (130, 44, 170),
    "pink": (246, 136, 192),
}
COLORS = tuple(COLOR_RGB)
PATCH_COLORS = ("none", *COLORS)
CHARS = ("", *"abcdefghijklmnopqrstuvwxyz0123456789")
# Without I, O and Q: each looks like another letter or digit in one of the fonts.
LETTERS = "ABCDEFGHJKLMNPRSTUVWXYZ"
FONT_FILES = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSansMono.ttf", "DejaVuSerif.ttf")
CAP_HEIGHT = 0.729  # of the font size, the same in all four fonts

Box = tuple[float, float, float, float]
RGB = tuple[int, int, int]


@dataclass(frozen=True)
class SceneObject:
    """One thing that can be asked about.

    `kind` is "shape", "sign", "number" or "bar"; `name` the shape, the word or the digits;
    `size_px` a diameter, a capital's height, a digit's height or a bar's width; `value` and
    `unit_px` a bar's height in units and the height of one unit; `instances` and
    `tag_instances` are indices into the scene's boxes.
    """

    kind: str
    name: str
    color: str
    box: Box
    size_px: float
    instances: tuple[int, ...]
    value: int = 0
    unit_px: float = 0.0
    area: float = 0.0
    tag: str = ""
    tag_box: Box = (0.0, 0.0, 0.0, 0.0)
    tag_px: float = 0.0
    tag_instances: tuple[int, ...] = ()


@dataclass
class Canvas:
    """The picture being drawn and the marks drawn so far."""

    image: Image.Image
    brightness: float
    boxes: list[Box] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    colors: list[int] = field(default_factory=list)
    chars: list[int] = field(default_factory=list)
    coverage: list[tuple[int, int, np.ndarray]] = field(default_factory=list)
    objects: list[SceneObject] = field(default_factory=list)

    @property
    def ink(self) -> RGB:
        """Returns the grey that stands out from the background."""
        return (248, 248, 248) if self.brightness < 128 else (8, 8, 8)

    def add(
        self, box: Box, name: str, color: str = "", char: str = "", mask: np.ndarray | None = None
    ) -> int:
        """Records a mark and returns its index; without a mask its whole box counts as covered."""
        x0, y0, x1, y1 = box
        column, row = int(x0) // PATCH_PX, int(y0) // PATCH_PX
        width = -(-math.ceil(x1) // PATCH_PX) - column
        height = -(-math.ceil(y1) // PATCH_PX) - row
        if mask is None:
            part = np.outer(_overlap(row, height, y0, y1), _overlap(column, width, x0, x1))
        else:
            cells = np.zeros((height * PATCH_PX, width * PATCH_PX), np.float32)
            top, left = int(y0) - row * PATCH_PX, int(x0) - column * PATCH_PX
            cells[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
            part = cells.reshape(height, PATCH_PX, width, PATCH_PX).mean((1, 3)) / 255.0
        self.boxes.append(box)
        self.classes.append(PATCH_CLASSES.index(name))
        self.colors.append(PATCH_COLORS.index(color) if color else 0)
        self.chars.append(CHARS.index(char))
        self.coverage.append((row, column, part))
        return len(self.boxes) - 1


def _overlap(first: int, count: int, low: float, high: float) -> np.ndarray:
    edges = (np.arange(count) + first) * PATCH_PX
    return np.clip(np.minimum(edges + PATCH_PX, high) - np.maximum(edges, low), 0, None) / PATCH_PX


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """Returns a number between `low` and `high`, every octave equally likely."""
    return float(low * (max(high, low) / low) ** rng.random())


def free_place(
    rng: np.random.Generator, width: float, height: float, region: Box, taken: list[Box], gap: float
) -> tuple[int, int] | None:
    """Returns the corner of a free place inside `region`, or None when 40 tries find none."""
    x0, y0, x1, y1 = region
    if width > x1 - x0 or height > y1 - y0:
        return None
    tries = rng.random((40, 2))
    xs = (x0 + tries[:, 0] * (x1 - x0 - width)).astype(int)
    ys = (y0 + tries[:, 1] * (y1 - y0 - height)).astype(int)
    if not taken:
        return int(xs[0]), int(ys[0])
    a, b, c, d = np.asarray(taken, float).T
    x, y = xs[:, None], ys[:, None]
    hits = (x < c + gap) & (x + width + gap > a) & (y < d + gap) & (y + height + gap > b)
    free = ~hits.any(1)
    best = int(free.argmax())
    return (int(xs[best]), int(ys[best])) if free[best] else None


def jittered(rng: np.random.Generator, color: str) -> RGB:
    """Returns the named colour, each channel off by at most 10."""
    r, g, b = np.clip(np.asarray(COLOR_RGB[color]) + rng.integers(-10, 11, 3), 0, 255).tolist()
    return r, g, b


@lru_cache(maxsize=512)
def _font(index: int, px: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / FONT_FILES[index]), px)


@lru_cache(maxsize=8192)
def _glyph(char: str, font: int, px: int) -> tuple[Image.Image, int, float]:
    """Returns (ink mask, its top below the capitals' line, width) of one capital letter."""
    face = _font(font, px)
    left, top, right, bottom = face.getbbox(char, anchor="ls")
    mask = Image.new("L", (int(right - left), int(bottom - top)), 0)
    ImageDraw.Draw(mask).text((-left, -top), char, fill=255, font=face, anchor="ls")
    return mask, int(top) + round(CAP_HEIGHT * px), float(right - left)


def text_extent(text: str, font: int, px: int) -> tuple[int, int]:
    """Returns (width, height) in px of capitals set by `write`."""
    gap = max(1, round(0.12 * px))
    width = sum(_glyph(char, font, px)[2] for char in text) + gap * (len(text) - 1)
    low = max(_glyph(char, font, px)[1] + _glyph(char, font, px)[0].height for char in text)
    return int(width), max(low, round(CAP_HEIGHT * px))


def write(
    canvas: Canvas, text: str, at: tuple[int, int], font: int, px: int, ink: RGB, name: str
) -> tuple[int, ...]:
    """Writes capitals with their top left corner at `at`; returns one mark for each letter."""
    x, y = at
    gap = max(1, round(0.12 * px))
    marks = []
    for char in text:
        mask, top, width = _glyph(char, font, px)
        canvas.image.paste(ink, (x, y + top), mask)
        box = (x, y + top, x + mask.width, y + top + mask.height)
        marks.append(canvas.add(box, name, char=char.lower()))
        x += int(width) + gap
    return tuple(marks)


def random_text(rng: np.random.Generator, length: int) -> str:
    """Returns `length` capitals."""
    return "".join(LETTERS[i] for i in rng.integers(0, len(LETTERS), length))
