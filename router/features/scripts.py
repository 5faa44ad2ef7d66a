"""Which scripts a question is written in: what a router fitted on others knows nothing about.

A sentence without blanks is one word to the features, and sign by sign none to a tokenizer of
another alphabet, so predictions about it are sure of themselves and mean nothing. Knows text; knows
nothing of pictures, predictors or languages: Latin letters are Latin in every language.
"""

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable
from functools import cache

LATIN = ("LATIN",)  # what routers were fitted on before they said so
# Different questions that are partly in a script: fewer teach nothing of it.
LEAST_SHARE, LEAST_QUESTIONS = 0.01, 20


def scripts_in(text: str) -> Counter[str]:
    """Return how many letters of each script a text has, by the first word of Unicode's names.

    >>> dict(scripts_in("board 牌子 Щ"))
    {'LATIN': 5, 'CJK': 2, 'CYRILLIC': 1}
    """
    letters = [each for each in unicodedata.normalize("NFKC", text) if each.isalpha()]
    return Counter(map(_script, letters))


def unlike(text: str, known: Collection[str]) -> bool:
    """Return whether a question is mostly in scripts that are not known, or has no words at all."""
    found = scripts_in(text)
    if not found:
        return not any(each.isdigit() for each in text)
    return 2 * sum(found[script] for script in known) < found.total()


def taught_by(questions: Iterable[str]) -> tuple[str, ...]:
    """Return the scripts that enough of the different questions are written in: `LEAST_SHARE` of
    them and `LEAST_QUESTIONS`. Where all are few, half of them are enough.
    """
    asked = set(questions)
    found = Counter(script for question in asked for script in scripts_in(question))
    enough = max(LEAST_SHARE * len(asked), min(LEAST_QUESTIONS, len(asked) / 2))
    return tuple(sorted(each for each, n in found.items() if n >= enough))


@cache
def _script(letter: str) -> str:
    return unicodedata.name(letter, "UNNAMED").split()[0]
