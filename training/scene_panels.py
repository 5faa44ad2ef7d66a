"""Panels of a generated scene: shapes with tags, a sign, a handwritten number, a bar chart.

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
MIN_RADIUS = 3.5

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


def _outline(shape: str) -> list[tuple[float, float]]:
    if shape == "square":
        return [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]
    if shape == "triangle":
        return [(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)]
    if shape == "cross":
        a, b = 1.0, 0.34
        return [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b),
                (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b)]  # fmt: skip
    if shape == "star":
        turns = [(math.pi * i / 5, 1.08 if i % 2 == 0 else 0.44) for i in range(10)]
        return [(r * math.sin(t), 0.06 - r * math.cos(t)) for t, r in turns]
    if shape == "heart":
        points = []
        for t in np.linspace(0, 2 * math.pi, 40, endpoint=False):
            y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
            points.append((math.sin(t) ** 3, -(y + 2.5) / 15.0))
        return points
    return [(math.sin(t), math.cos(t)) for t in np.linspace(0, 2 * math.pi, 48, endpoint=False)]


@lru_cache(maxsize=8192)
def _shape_mask(shape: str, diameter: int, turn: int) -> tuple[Image.Image, np.ndarray]:
    """Returns the shape as (mask, mask array), both `diameter` px wide and high."""
    cos, sin = math.cos(math.radians(turn)), math.sin(math.radians(turn))
    points = [(x * cos - y * sin, x * sin + y * cos) for x, y in _outline(shape)]
    reach = max(max(abs(x), abs(y)) for x, y in points)
    mask = Image.new("L", (4 * diameter, 4 * diameter), 0)
    scale, middle = 2.0 * diameter / reach, 2.0 * diameter - 0.5
    ImageDraw.Draw(mask).polygon([(middle + x * scale, middle + y * scale) for x, y in points], 255)
    small = mask.reduce(4)
    return small, np.asarray(small)


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


@dataclass(frozen=True)
class Cluster:
    """Shapes near each other, some with tags of two or three letters; its size is their radius.

    How many, how large and how close are drawn independently: a single shape may fill the picture
    and a dozen may share a few patches.
    """

    looks: tuple[tuple[int, int], ...]
    spread: tuple[float, ...]  # each shape's radius as a multiple of the cluster's
    tags: tuple[str, ...]
    font: int
    tag_px: int
    room: float  # area of the window as a multiple of what the shapes need at least
    stretch: float
    limit: int  # px: the window is no wider or higher, whatever room it would like

    @classmethod
    def sample(cls, rng: np.random.Generator, side: int) -> Cluster:
        """Returns shapes of which three forms and three colours occur once each.

        Args:
            rng: Source of the choices.
            side: Of the picture, in px.
        """
        most = 12 if side > 134 else 5
        tagged = bool(rng.random() < 0.5)
        count = int(log_uniform(rng, 1.0, (6 if tagged else most) + 0.99))
        shapes, colors = rng.permutation(len(SHAPES)), rng.permutation(len(COLORS))
        # Crowded pictures can be asked about because of these three.
        kinds = [int(k) for k in shapes[:3]] + [int(k) for k in rng.choice(shapes[3:], count)]
        paints = [int(c) for c in colors[:3]] + [int(c) for c in rng.choice(colors[3:], count)]
        looks = list(zip(kinds[:count], (paints[i] for i in rng.permutation(count)), strict=True))
        tags: list[str] = []
        for _ in range(count):
            tag = random_text(rng, int(rng.integers(2, 4))) if tagged and rng.random() < 0.8 else ""
            tags.append("" if tag in tags else tag)
        return cls(
            looks=tuple(looks[i] for i in rng.permutation(count)),
            spread=tuple(log_uniform(rng, 0.6, 1.7) for _ in range(count)),
            tags=tuple(tags),
            font=int(rng.integers(len(FONT_FILES))),
            tag_px=round(log_uniform(rng, 9, 36)),
            room=log_uniform(rng, 1.7, 7.0),
            stretch=float(rng.uniform(0.75, 1.33)),
            limit=round(0.8 * side),
        )

    def extent(self, size: float) -> tuple[int, int]:
        """Returns (width, height) in px of the window at a radius."""
        gap = self._gap(size)
        needs = [
            _footprint(self._diameter(size, i), tag, self.font, self._px(size), False)
            for i, tag in enumerate(self.tags)
        ]
        if len(needs) == 1:
            return needs[0]
        area = self.room * sum((width + gap) * (height + gap) for width, height in needs)
        widest, highest = (max(extent) for extent in zip(*needs, strict=True))
        wish = math.sqrt(area)
        wide, high = (min(round(wish * s), self.limit) for s in (self.stretch, 1 / self.stretch))
        return max(wide, widest), max(high, highest)

    def draw(
        self, rng: np.random.Generator, canvas: Canvas, at: tuple[int, int], size: float
    ) -> None:
        """Draws the shapes, largest first; what finds no place is made smaller or left out."""
        width, height = self.extent(size)
        window = (at[0], at[1], at[0] + width, at[1] + height)
        gap, px = self._gap(size), self._px(size)
        taken: list[Box] = []
        for i in sorted(range(len(self.looks)), key=lambda i: -self.spread[i]):
            tag, below = self.tags[i], bool(len(self.looks) > 1 and rng.random() < 0.4)
            for shrink in (1.0, 0.75, 0.55, 0.4, 0.3):
                diameter = self._diameter(size * shrink, i)
                wide, high = _footprint(diameter, tag, self.font, px, below)
                place = free_place(rng, wide, high, window, taken, gap)
                if place is None and tag:
                    place = free_place(rng, diameter, diameter, window, taken, gap)
                    if place is not None:
                        tag, wide, high = "", diameter, diameter
                if place is not None:
                    taken.append((place[0], place[1], place[0] + wide, place[1] + high))
                    label = (tag, self.font, px, below)
                    _draw_shape(rng, canvas, place, self.looks[i], diameter, label)
                    break

    def _diameter(self, size: float, index: int) -> int:
        return round(2 * max(size * self.spread[index], MIN_RADIUS))

    def _px(self, size: float) -> int:
        # Where the cluster had to shrink, its tags shrink too, down to what can be read.
        return max(9, min(self.tag_px, round(2.5 * size + 4)))

    def _gap(self, size: float) -> float:
        # A tag is 2 px from its own shape and at least three times as far from any other.
        return max(6.0, 0.6 * CAP_HEIGHT * self._px(size)) if any(self.tags) else 2.0


def _footprint(diameter: int, tag: str, font: int, px: int, below: bool) -> tuple[int, int]:
    if not tag:
        return diameter, diameter
    width, height = text_extent(tag, font, px)
    if below:
        return max(diameter, width), diameter + 2 + height
    return diameter + 2 + width, max(diameter, height)


def _draw_shape(
    rng: np.random.Generator, canvas: Canvas, place: tuple[int, int], look: tuple[int, int],
    diameter: int, label: tuple[str, int, int, bool],
) -> None:  # fmt: skip
    tag, font, px, below = label
    shape, color = SHAPES[look[0]], COLORS[look[1]]
    width, height = _footprint(diameter, tag, font, px, below)
    x = place[0] + ((width - diameter) // 2 if below and tag else 0)
    y = place[1] + ((height - diameter) // 2 if not below and tag else 0)
    mask, array = _shape_mask(shape, diameter, int(rng.integers(-2, 3)) * 6)
    canvas.image.paste(jittered(rng, color), (x, y), mask)
    box = (float(x), float(y), float(x + diameter), float(y + diameter))
    mark = canvas.add(box, shape, color, mask=array)
    tag_box = (0.0, 0.0, 0.0, 0.0)
    marks: tuple[int, ...] = ()
    if tag:
        wide, high = text_extent(tag, font, px)
        tx = place[0] + (width - wide) // 2 if below else x + diameter + 2
        ty = y + diameter + 2 if below else place[1] + (height - high) // 2
        marks = write(canvas, tag, (tx, ty), font, px, canvas.ink, "tag")
        tag_box = (float(tx), float(ty), float(tx + wide), float(ty + high))
    canvas.objects.append(
        SceneObject("shape", shape, color, box, float(diameter), (mark,),
                    area=float(array.sum()) / 255.0, tag=tag.lower(), tag_box=tag_box,
                    tag_px=CAP_HEIGHT * px if tag else 0.0, tag_instances=marks)
    )  # fmt: skip
