"""Multiple choice: which option an answer names, and the same question with its options moved.

Options stand in the question, one a line ("A. a cat", "(B) a dog") or in one line ("(A) a cat
(B) a dog"). What is scored is the option, not its letter: moving the options tells a model that
knows from one that likes the letter A. Knows texts; knows nothing of models or files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from training.scoring.exact import normalise

_LINES = re.compile(r"^[ \t]*\(?([A-Z])[.):][ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_IN_LINE = re.compile(r"\(([A-Z])\)\s*(\S.*?)(?=[\s,;]*(?:\([A-Z]\)|\n|$))")
_LETTER = re.compile(r"\(([A-Z])\)|([A-Z])(?=[).:,]|$)|\(?([a-z])[).:]?$")
_NAMED = re.compile(r"\b(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*\(?([A-Z])\b(?!')")
_BEFORE_WORDS = re.compile(r"([A-Z])\s+(.+)")


@dataclass(frozen=True)
class Option:
    """An option of a question: its letter, its words, and where in the question these stand."""

    letter: str
    words: str
    start: int
    end: int


def options_of(question: str) -> tuple[Option, ...]:
    """Return the options that stand in a question, lettered from A on; none if it has fewer than 2.

    >>> [option.words for option in options_of("What is it?\\nA. a cat\\nB. a dog")]
    ['a cat', 'a dog']
    """
    for pattern in (_LINES, _IN_LINE):
        found = [Option(m[1], m[2], *m.span(2)) for m in pattern.finditer(question)]
        starts = [place for place, option in enumerate(found) if option.letter == "A"]
        if not starts:
            continue
        run = found[starts[-1] :]
        in_order = [o for place, o in enumerate(run) if o.letter == chr(ord("A") + place)]
        if len(in_order) == len(run) >= 2:
            return tuple(run)
    return ()


def chosen(answer: str, options: Sequence[Option]) -> int | None:
    """Return which option an answer names: by its letter, its words, or both; None if none or two.

    >>> chosen("B", options_of("What?\\n(A) cat\\n(B) dog"))
    1
    """
    said = answer.strip()
    words = [normalise(option.words) for option in options]
    if words.count(normalise(said)) == 1:
        return words.index(normalise(said))
    letters = {option.letter: place for place, option in enumerate(options)}
    for found in (_LETTER.match(said), _NAMED.search(said)):
        letter = "" if found is None else next(filter(None, found.groups())).upper()
        if letter in letters:
            return letters[letter]
    # "A cat" begins with a letter or an article: a letter only before its own words.
    led = _BEFORE_WORDS.match(said)
    if led and led[1] in letters and words[letters[led[1]]] == normalise(led[2]):
        return letters[led[1]]
    whole = [rf"(?<!\w){re.escape(each)}(?!\w)" for each in words]
    inside = [place for place, each in enumerate(whole) if re.search(each, normalise(said))]
    return inside[0] if len(inside) == 1 else None


def choice_accuracy(answer: str, references: Sequence[str], question: str) -> float:
    """Return whether an answer names the option that a reference names."""
    options = options_of(question)
    said = chosen(answer, options)
    return float(said is not None and any(chosen(each, options) == said for each in references))


def moved(question: str, reference: str, places: int) -> tuple[str, str]:
    """Return the question with every option so many letters later, and its reference.

    The last options come first. Over as many moves as there are options each option stands at
    each letter once.

    Raises:
        ValueError: no options, or a reference that names none.
    """
    options = options_of(question)
    right = chosen(reference, options)
    if not options or right is None:
        raise ValueError("the question needs options (A. ... B. ...) and a reference naming one")
    n = len(options)
    text, end = [], 0
    for place, option in enumerate(options):
        text += [question[end : option.start], options[(place - places) % n].words]
        end = option.end
    said = reference.strip()
    if normalise(said) == normalise(options[right].words):
        return "".join([*text, question[end:]]), reference
    letter = options[(right + places) % n].letter
    return "".join([*text, question[end:]]), re.sub(r"[A-Za-z]", letter, said, count=1)
