"""Exact match after a mild normalisation: whether an answer is right where nothing else is said.

The rule (it is the definition of "right" everywhere in this repository): both texts are
lower-cased, runs of white space become one space, punctuation and white space at both ends go away,
and a leading article (a, an, the) is dropped. ``"The Red Star."`` equals ``"red star"``; ``"12"``
does not equal ``"12 cm"``. Nothing else is forgiven: no synonyms, no digits for number words.

Knows texts; does not know models, scales or files.
"""

from __future__ import annotations

import string

ARTICLES = ("a ", "an ", "the ")
_EDGE = string.punctuation + string.whitespace


def normalise(text: str) -> str:
    """Return the text as exact match compares it.

    >>> normalise(" The  Red Star. ")
    'red star'
    """
    text = " ".join(text.lower().split())
    # "-5" and "+" lose nothing that matters only if something is left: an answer that is all
    # punctuation ("?") stays itself, otherwise every such answer would equal the empty one.
    stripped = text.strip(_EDGE) or text
    for article in ARTICLES:
        if stripped.startswith(article):
            return stripped[len(article) :].strip(_EDGE) or stripped
    return stripped


def exact_match(answer: str, reference: str) -> bool:
    """Return whether the answer equals the reference after :func:`normalise`."""
    return normalise(answer) == normalise(reference)
