"""Clusters of coloured shapes in a generated scene, some with tags beside them.

A cluster says how large it is at a given radius and draws itself at a given place. Knows nothing of
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
    SHAPES,
    Box,
    Canvas,
    SceneObject,
    free_place,
    jittered,
    log_uniform,
    random_text,
    text_extent,
    write,
)

MIN_RADIUS = 3.5


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
        tagged = bool(rng.random() < 0.6)
        count = int(log_uniform(rng, 1.0, (8 if tagged else most) + 0.99))
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
            tag_px=round(log_uniform(rng, 10, 25)),
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
        return max(10, min(self.tag_px, round(2.5 * size + 4)))

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
