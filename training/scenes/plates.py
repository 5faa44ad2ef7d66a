"""Flat panels of a generated scene: the sign, the handwritten number and the bar chart.

Each panel says how large it is at a given size and draws itself at a given place. Knows nothing of
layout or questions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from training.scenes.panels import (
    CAP_HEIGHT,
    COLORS,
    FONT_FILES,
    RGB,
    Canvas,
    SceneObject,
    jittered,
    random_text,
    text_extent,
    write,
)

UNITS = 9  # bars are 1 to 9 units high
DIGIT_ASPECT = 0.8  # of a digit's height: the width it is given


@lru_cache(maxsize=1)
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    data = load_digits()
    return data.images.astype(np.float32), data.target.astype(int)


@lru_cache(maxsize=2)
def digit_pool(training: bool) -> tuple[int, ...]:
    """Returns the indices of the handwritten digits for model training, or of the held-out ones."""
    count = len(_digits()[1])
    return tuple(i for i in range(count) if (i % 9 not in (0, 1)) == training)


def _greys(rng: np.random.Generator, contrast: tuple[int, int]) -> tuple[RGB, RGB]:
    """Returns (paper, ink) with a brightness difference drawn from `contrast`, slightly tinted."""
    difference = int(rng.integers(*contrast))
    dark = int(rng.integers(12, 243 - difference))
    pair = [dark + difference, dark]
    if rng.random() < 0.5:
        pair.reverse()
    tint = rng.integers(-24, 25, 3)
    tint -= round(float(tint.mean()))
    paper, ink = (np.clip(value + tint, 0, 255).tolist() for value in pair)
    return (paper[0], paper[1], paper[2]), (ink[0], ink[1], ink[2])


@dataclass(frozen=True)
class Sign:
    """A plate with two to five capitals; its size is the font size in px."""

    word: str
    font: int

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Sign:
        """Returns a sign with a random word and font."""
        word = random_text(rng, 2 + int(rng.choice(4, p=(0.22, 0.28, 0.28, 0.22))))
        return cls(word, int(rng.integers(len(FONT_FILES))))

    def extent(self, size: float) -> tuple[int, int]:
        """Returns (width, height) in px at a font size."""
        width, height = text_extent(self.word, self.font, round(size))
        margin = 2 * max(2, round(0.28 * size))
        return width + margin, height + margin

    def draw(
        self, rng: np.random.Generator, canvas: Canvas, at: tuple[int, int], size: float
    ) -> None:
        """Draws the plate and its letters."""
        (x, y), (width, height) = at, self.extent(size)
        paper, ink = _greys(rng, (120, 215))
        outline = ink if rng.random() < 0.4 else None
        edges = (x, y, x + width - 1, y + height - 1)
        ImageDraw.Draw(canvas.image).rectangle(edges, fill=paper, outline=outline)
        box = (float(x), float(y), float(x + width), float(y + height))
        canvas.add(box, "sign")
        margin = max(2, round(0.28 * size))
        corner = (x + margin, y + margin)
        marks = write(canvas, self.word, corner, self.font, round(size), ink, "letter")
        height_px = CAP_HEIGHT * round(size)
        canvas.objects.append(SceneObject("sign", self.word.lower(), "", box, height_px, marks))


@dataclass(frozen=True)
class Number:
    """One or two real handwritten digits; its size is their height in px."""

    picks: tuple[int, ...]
    card: bool

    @classmethod
    def sample(cls, rng: np.random.Generator, training: bool) -> Number:
        """Returns digits of the training pool or of the held-out pool."""
        pool = digit_pool(training)
        count = 1 + int(rng.random() < 0.45)
        picks = tuple(pool[int(i)] for i in rng.integers(0, len(pool), count))
        while count == 2 and _digits()[1][picks[0]] == 0:  # nobody writes 07
            picks = (pool[int(rng.integers(len(pool)))], picks[1])
        return cls(picks, bool(rng.random() < 0.4))

    def extent(self, size: float) -> tuple[int, int]:
        """Returns (width, height) in px at a digit height."""
        margin = 2 * max(1, round(0.1 * size))
        width = round(size * DIGIT_ASPECT) * len(self.picks) + round(size * 0.1) * (
            len(self.picks) - 1
        )
        return width + margin, round(size) + margin

    def draw(
        self, rng: np.random.Generator, canvas: Canvas, at: tuple[int, int], size: float
    ) -> None:
        """Draws the digits as ink, on a card of their own or straight on the background."""
        (x, y), (width, height) = at, self.extent(size)
        ink = canvas.ink
        if self.card:
            paper, ink = _greys(rng, (150, 225))
            edges = (x, y, x + width - 1, y + height - 1)
            ImageDraw.Draw(canvas.image).rectangle(edges, fill=paper)
        images, labels = _digits()
        margin, high, wide = max(1, round(0.1 * size)), round(size), round(size * DIGIT_ASPECT)
        marks = []
        left = x + margin
        for pick in self.picks:
            mask = _digit_mask(rng, images[pick], wide, high)
            canvas.image.paste(ink, (left, y + margin), mask)
            box = (left, y + margin, left + wide, y + margin + high)
            marks.append(canvas.add(box, "digit", char=str(labels[pick])))
            left += wide + round(size * 0.1)
        value = "".join(str(labels[pick]) for pick in self.picks)
        card = (float(x), float(y), float(x + width), float(y + height))
        canvas.objects.append(SceneObject("number", value, "", card, float(high), tuple(marks)))


def _digit_mask(rng: np.random.Generator, digit: np.ndarray, wide: int, high: int) -> Image.Image:
    """Returns an ink mask: the 8x8 digit's used columns, a little turned and slanted."""
    columns = np.flatnonzero(digit.max(0) > 3)
    first, last = int(columns[0]), int(columns[-1]) + 1
    source = np.zeros((12, 12), np.float32)
    source[2:10, 2:10] = digit * 15.9375
    middle = 2 + (first + last) / 2
    # Narrow digits keep their aspect: a stretched 1 would no longer look like one.
    span = max(last - first, 8 * DIGIT_ASPECT) + 0.2
    turn, slant = math.radians(rng.uniform(-8, 8)), rng.uniform(-0.12, 0.12)
    cos, sin = math.cos(turn), math.sin(turn)
    sx, sy = span / wide, 8.2 / high
    a, b = cos * sx, (slant - sin) * sy
    d, e = sin * sx, cos * sy
    c = middle - a * wide / 2 - b * high / 2
    f = 6 - d * wide / 2 - e * high / 2
    return Image.fromarray(source.astype(np.uint8)).transform(
        (wide, high), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BICUBIC
    )


@dataclass(frozen=True)
class Chart:
    """Two to six bars of distinct colours on a grid of nine units; its size is its height in px."""

    values: tuple[int, ...]
    colors: tuple[int, ...]
    aspect: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Chart:
        """Returns bars of 1 to 9 units, one of them taller than all others."""
        count = int(rng.integers(2, 7))
        while True:
            values = rng.integers(1, UNITS + 1, count)
            top = np.sort(values)[-2:]
            if top[1] > top[0]:
                break
        colors = rng.permutation(len(COLORS))[:count]
        floor = (count * 6 + 6) / 36  # at the smallest size a bar is still 4 px wide
        aspect = max(float(rng.uniform(0.6, 1.3)), floor)
        return cls(tuple(values.tolist()), tuple(colors.tolist()), aspect)

    def extent(self, size: float) -> tuple[int, int]:
        """Returns (width, height) in px at a chart height."""
        return round(size * self.aspect), round(size)

    def draw(
        self, rng: np.random.Generator, canvas: Canvas, at: tuple[int, int], size: float
    ) -> None:
        """Draws card, grid and bars: every third line is stronger."""
        (x, y), (width, height) = at, self.extent(size)
        light = bool(rng.random() < 0.5)
        grey = int(rng.integers(226, 246)) if light else int(rng.integers(14, 40))
        draw = ImageDraw.Draw(canvas.image)
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=(grey, grey, grey))
        margin = max(2, round(0.05 * height))
        base = y + height - 1 - margin
        unit = (height - 2 * margin - 1) / UNITS
        sign = -1 if light else 1
        for line in range(UNITS + 1):
            if line % 3 and unit < 6:
                continue
            tone = grey + sign * (110 if line == 0 else 70 if line % 3 == 0 else 30)
            level = round(base - line * unit)
            draw.line((x + 1, level, x + width - 2, level), fill=(tone, tone, tone))
        slot = (width - 2 * margin) / len(self.values)
        thick = max(3, round(slot * float(rng.uniform(0.5, 0.8))))
        for i, (value, color) in enumerate(zip(self.values, self.colors, strict=True)):
            left = round(x + margin + slot * (i + 0.5) - thick / 2)
            top = round(base - value * unit)
            name = COLORS[color]
            draw.rectangle((left, top, left + thick - 1, base - 1), fill=jittered(rng, name))
            box = (float(left), float(top), float(left + thick), float(base))
            mark = canvas.add(box, "bar", name)
            canvas.objects.append(
                SceneObject("bar", "bar", name, box, float(thick), (mark,), value, unit)
            )
