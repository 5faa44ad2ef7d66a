"""Asks a generated question again in other words, with the same meaning.

Finds the template that made a text, keeps what it refers to and fills another template of the same
kind. Knows the templates; does not know pictures. A text that no template explains stays unworded.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import cache

import numpy as np

from training.scene_templates import FILLERS, TEMPLATES

_FIELD = re.compile(r"\{(\w+)\}")
MAX_TRIES = 40


def reword(
    rng: np.random.Generator, kind: str, text: str, taken: Collection[str] = ()
) -> str | None:
    """Return the question by another template, none of ``taken``; None where there is none.

    What the question refers to ("the red star") keeps its words: they are what makes it unambiguous
    in its picture.
    """
    read = _read(kind, text)
    if read is None:
        return None
    template, given = read
    usable = [
        other
        for other in TEMPLATES[kind]
        if other != template and set(_FIELD.findall(other)) <= given.keys() | FILLERS.keys()
    ]
    for _ in range(MAX_TRIES if usable else 0):
        said = usable[int(rng.integers(len(usable)))]
        for name in _FIELD.findall(said):
            words = FILLERS.get(name, ())
            word = given[name] if name in given else words[int(rng.integers(len(words)))]
            said = said.replace("{" + name + "}", word, 1)
        if said not in taken:
            return said
    return None


def _read(kind: str, text: str) -> tuple[str, dict[str, str]] | None:
    """Return the template of the text and the fields that are no free choice of words."""
    for template, pattern in _patterns(kind):
        found = pattern.fullmatch(text.rstrip("?."))
        if found is not None:
            return template, found.groupdict()
    return None


@cache
def _patterns(kind: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    # The template with the most words of its own first: what it leaves open is the least.
    texts = sorted(TEMPLATES.get(kind, ()), key=lambda t: -len(_FIELD.sub("", t)))
    return tuple((text, re.compile(_pattern(text.rstrip("?.")))) for text in texts)


def _pattern(template: str) -> str:
    seen: set[str] = set()
    parts = []
    for position, part in enumerate(_FIELD.split(template)):
        if position % 2 == 0:
            parts.append(re.escape(part))
        elif part in FILLERS:
            parts.append("(?:" + "|".join(map(re.escape, sorted(set(FILLERS[part])))) + ")")
        elif part in seen:
            parts.append(f"(?P={part})")
        else:
            seen.add(part)
            parts.append(f"(?P<{part}>.+)")
    return "".join(parts)
