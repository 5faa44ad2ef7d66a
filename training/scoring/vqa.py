"""VQA accuracy: how many of (usually ten) people gave this answer.

As defined with VQA v2 (visualqa.org/evaluation): both texts are brought to one form; against every
nine of the ten references an answer is min(matches / 3, 1) right, and the mean over the ten choices
counts. Forms: lower case; number words are digits; no articles; contractions have their apostrophe;
punctuation but for apostrophes and colons is a space, or nothing where it stands beside one; a
comma between digits is nothing, as is a full stop without a digit behind it.
Knows texts; knows nothing of models or files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

LEAST_REFERENCES = 4  # below, no answer at all could be wholly right
_DIGITS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-<>@`,?!'
_NUMBER_COMMA = re.compile(r"(?<=\d),(?=\d)")
_FULL_STOP = re.compile(r"\.(?!\d)")
# Stems by ending: a missing apostrophe is put back, but not where a word is left (were, well).
_ENDINGS = {
    "n't": "ai are ca could did does do had has have is might must need ought sha should was were "
    "wo would",
    "'ve": "could i might must not should they we what where who would you",
    "'s": "he how she that there what when where who why somebody someone something",
    "'d": "he how it there they where who you someone something",
    "'ll": "how it they what who why you somebody someone something",
    "'re": "there they what why you",
}
_WHOLE = ("i'm", "ma'am", "o'clock", "'twas", "y'all")


def vqa_accuracy(answer: str, references: Sequence[str]) -> float:
    """Return how right an answer is beside the answers of several people.

    >>> round(vqa_accuracy("two", ["2"] * 3 + ["3"] * 7), 2)  # of nine, 3 or 2 agree
    0.9
    """
    said, n = vqa_form(answer), len(references)
    matches = sum(vqa_form(reference) == said for reference in references)
    with_it = min(1.0, (matches - 1) / 3)  # a matching person left out
    without = min(1.0, matches / 3)
    return (matches * with_it + (n - matches) * without) / n


@cache
def vqa_form(text: str) -> str:
    """Return the text as VQA accuracy compares it."""
    text = " ".join(text.split())
    text = _punctuation_gone(text).lower()
    words = [_DIGITS.get(word, word) for word in text.split()]
    words = [word for word in words if word not in _ARTICLES]
    known = _contractions()
    return " ".join(known.get(word, word) for word in words)


def _punctuation_gone(text: str) -> str:
    in_number = _NUMBER_COMMA.search(text) is not None
    bare = text
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if beside_space or in_number else " ")
    return _FULL_STOP.sub("", bare)


@cache
def _contractions() -> dict[str, str]:
    made = [stem + ending for ending, stems in _ENDINGS.items() for stem in stems.split()]
    made += _WHOLE
    return {whole.replace("'", ""): whole for whole in made}
