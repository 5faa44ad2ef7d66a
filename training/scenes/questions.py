"""Questions about a generated scene.

Works from the list of things drawn, so it asks only what that list answers without doubt. Knows
nothing of pixels.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from training.scenes.panels import SceneObject
from training.scenes.templates import FILLERS, KINDS, SHAPE_NOUNS, SIZE_WORDS, SYNONYMS, TEMPLATES

MARGIN = 1.3  # of the diameters, where the largest or the smallest shape is asked for
AREA_MARGIN = 1.2
# Chance of asking for a count of n shapes: inverse to how often n shapes are drawn.
COUNT_CHANCE = {1: 0.05, 2: 0.13, 3: 0.17, 4: 0.22, 5: 0.26}

# How many of each kind a picture may have, and the kinds of which one is never left out.
MOST = {"read_word": 1, "number": 1, "bar_height": 1, "tag": 2, "color_of": 1, "shape_of": 1,
        "bar_tallest": 1, "largest": 1, "smallest": 1, "tag_color": 1,
        "tag_extreme": 1, "count": 1, "first_letter": 1, "last_letter": 1}  # fmt: skip
FIRST = ("read_word", "number", "count", "tag_extreme", "first_letter", "last_letter")


@dataclass(frozen=True)
class Ask:
    """A question without its target patches: `marks` are the instances it asks about.

    `again` asks the same in another wording.
    """

    kind: str
    text: str
    again: str
    answer: str
    size_px: float
    clutter: int
    marks: tuple[int, ...]


def ask(
    rng: np.random.Generator,
    objects: Sequence[SceneObject],
    most: int,
    *,
    generous: bool = False,
) -> tuple[Ask, ...]:
    """Returns at most `most` questions which `objects` answer without doubt.

    Args:
        rng: Source of the choices.
        objects: Things in the picture.
        most: Largest number of questions.
        generous: Twice as many of each kind may be asked: more is learnt from each picture.
    """
    pool: dict[str, list[Ask]] = {kind: [] for kind in KINDS}
    for candidate in _candidates(rng, objects):
        pool[candidate.kind].append(candidate)
    first: list[Ask] = []
    rest: list[Ask] = []
    for kind, candidates in pool.items():
        picks = [
            candidates[i] for i in rng.permutation(len(candidates))[: MOST[kind] * (1 + generous)]
        ]
        keep = 1 if kind in FIRST else 0
        first += picks[:keep]
        rest += picks[keep:]
    chosen = (first + [rest[i] for i in rng.permutation(len(rest))])[:most]
    return tuple(chosen[i] for i in rng.permutation(len(chosen)))


def _candidates(rng: np.random.Generator, objects: Sequence[SceneObject]) -> Iterator[Ask]:
    shapes = [o for o in objects if o.kind == "shape"]
    bars = [o for o in objects if o.kind == "bar"]
    if shapes:
        yield from _shape_asks(rng, shapes, {bar.color for bar in bars})
    for item in objects:
        about = (item.size_px, len(item.name), item.instances)
        if item.kind == "sign":
            yield _ask(rng, "read_word", item.name, *about)
            if rng.random() < 0.15:
                kind = "first_letter" if rng.random() < 0.5 else "last_letter"
                answer = item.name[0] if kind == "first_letter" else item.name[-1]
                yield _ask(rng, kind, answer, *about)
        elif item.kind == "number":
            yield _ask(rng, "number", item.name, *about)
    if bars:
        yield from _bar_asks(rng, bars)


def _shape_asks(
    rng: np.random.Generator, shapes: list[SceneObject], bar_colors: set[str]
) -> Iterator[Ask]:
    names, colors = Counter(o.name for o in shapes), Counter(o.color for o in shapes)
    both = Counter((o.name, o.color) for o in shapes)
    count = len(shapes)
    for item in shapes:
        noun = _pick(rng, FILLERS["noun"] if item.color in bar_colors else (*SHAPE_NOUNS, "one"))
        word = SYNONYMS.get(item.name, item.name) if rng.random() < 0.15 else item.name
        about = (item.size_px, count, item.instances)
        refs = []
        if names[item.name] == 1:
            refs.append(f"the {word}")
            yield _ask(rng, "color_of", item.color, *about, ref=refs[-1])
        if colors[item.color] == 1:
            refs.append(f"the {item.color} {noun}")
            yield _ask(rng, "shape_of", item.name, *about, ref=refs[-1])
        if both[item.name, item.color] == 1:
            refs.append(f"the {item.color} {word}")
        if item.tag:
            about = _with_tag(item, count)
            if refs:
                yield _ask(rng, "tag", item.tag, *about, ref=_pick(rng, refs))
            yield _ask(rng, "tag_color", item.color, *about, tag=item.tag)
    if count > 1:
        yield from _extreme_asks(rng, sorted(shapes, key=lambda o: o.size_px))
    if rng.random() < COUNT_CHANCE.get(count, 0.0):
        marks = tuple(mark for o in shapes for mark in o.instances)
        yield _ask(rng, "count", str(count), min(o.size_px for o in shapes), count, marks)


def _extreme_asks(rng: np.random.Generator, order: list[SceneObject]) -> Iterator[Ask]:
    """Asks about the largest and the smallest shape where nobody could doubt which it is."""
    for kind, item, others, sign in (("largest", order[-1], order[:-1], 1),
                                     ("smallest", order[0], order[1:], -1)):  # fmt: skip
        # By eye a star is smaller than a square as wide: the areas must agree.
        clear = all(
            (item.size_px / other.size_px) ** sign >= MARGIN
            and (item.area / other.area) ** sign >= AREA_MARGIN
            for other in others
        )
        if clear:
            big = _pick(rng, SIZE_WORDS[kind])
            about = (item.size_px, len(order), item.instances)
            yield _ask(rng, kind, item.color, *about, big=big)
            if item.tag:
                yield _ask(rng, "tag_extreme", item.tag, *_with_tag(item, len(order)), big=big)


def _with_tag(item: SceneObject, count: int) -> tuple[float, int, tuple[int, ...]]:
    return min(item.size_px, item.tag_px), count, item.instances + item.tag_instances


def _bar_asks(rng: np.random.Generator, bars: list[SceneObject]) -> Iterator[Ask]:
    for item in bars:
        ref = f"the {item.color} {_pick(rng, FILLERS['bar'])}"
        size = min(item.size_px, item.unit_px)
        yield _ask(rng, "bar_height", str(item.value), size, len(bars), item.instances, ref=ref)
    second, top = sorted(bars, key=lambda o: o.value)[-2:]
    size = min(top.size_px, (top.value - second.value) * top.unit_px)
    marks = tuple(mark for o in bars for mark in o.instances)
    yield _ask(rng, "bar_tallest", top.color, size, len(bars), marks)


def _ask(
    rng: np.random.Generator, kind: str, answer: str, size_px: float, clutter: int,
    marks: tuple[int, ...], **given: str,
) -> Ask:  # fmt: skip
    one, two = rng.permutation(len(TEMPLATES[kind]))[:2]
    text, again = (_text(rng, TEMPLATES[kind][i], **given) for i in (one, two))
    return Ask(kind, text, again, answer, size_px, clutter, marks)


def _pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _text(rng: np.random.Generator, template: str, **given: str) -> str:
    for name in re.findall(r"\{(\w+)\}", template):
        template = template.replace("{" + name + "}", given.get(name) or _pick(rng, FILLERS[name]))
    return template if rng.random() < 0.8 else template.rstrip("?.")
