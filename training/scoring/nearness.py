"""Answers that are nearly right: by letters (ANLS), by words (F1), by amount (relaxed accuracy).

Each is the best over the references. Knows texts; knows nothing of models or files.
"""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence

from training.scoring.exact import normalise

ANLS_LEAST = 0.5  # what is less alike counts as another answer
TOLERANCE = 0.05  # of the reference's amount
_AMOUNT = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?%?")
# One word each: a sentence without blanks would be right or wrong as a whole.
_UNSPACED = re.compile(r"([\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff])")
_NO_MARKS = str.maketrans("", "", string.punctuation)


def anls(answer: str, references: Sequence[str]) -> float:
    """Return the normalised Levenshtein similarity, 0 below one half (DocVQA, ST-VQA).

    Case and white space do not count.

    >>> anls("Hermes", ["hermes ", "Zeus"])
    1.0
    """
    said = " ".join(answer.lower().split())
    return max(_alike(said, " ".join(each.lower().split())) for each in references)


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Return the F1 of the words of answer and reference (SQuAD): no marks, case or articles.

    Characters of scripts that are written without blanks are words of their own.

    >>> round(token_f1("a red fire truck", ["the red truck"]), 2)
    0.8
    """
    said = _words(answer)
    return max(_f1(said, _words(each)) for each in references)


def relaxed_accuracy(answer: str, references: Sequence[str]) -> float:
    """Return whether an amount is within 5 % of the reference's (ChartQA); else exact match.

    A percentage is its hundredth. Nothing is near zero but zero.

    >>> relaxed_accuracy("104.9", ["100"]), relaxed_accuracy("105.1", ["100"])
    (1.0, 0.0)
    """
    return float(any(_near(answer, each) for each in references))


def _alike(said: str, wanted: str) -> float:
    longer = max(len(said), len(wanted))
    if longer == 0:
        return 1.0
    # As many letters as the lengths differ by must change: most wrong answers end here.
    if abs(len(said) - len(wanted)) > (1 - ANLS_LEAST) * longer:
        return 0.0
    alike = 1.0 - _edits(said, wanted) / longer
    return alike if alike >= ANLS_LEAST else 0.0


def _edits(a: str, b: str) -> int:
    """Return the Levenshtein distance."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
        before = row
    return before[-1]


def _words(text: str) -> Counter[str]:
    spaced = _UNSPACED.sub(r" \1 ", text.lower().translate(_NO_MARKS))
    return Counter(word for word in spaced.split() if word not in ("a", "an", "the"))


def _f1(said: Counter[str], wanted: Counter[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    both = (said & wanted).total()
    return 2 * both / (said.total() + wanted.total())


def _near(answer: str, reference: str) -> bool:
    said, wanted = _amount(answer), _amount(reference)
    if said is None or wanted is None:
        return normalise(answer) == normalise(reference)
    # Both ends of the tolerance are in, whatever the last bit says.
    return abs(said - wanted) <= TOLERANCE * abs(wanted) * (1 + 1e-12)


def _amount(text: str) -> float | None:
    text = text.strip().removesuffix(".")
    if _AMOUNT.fullmatch(text) is None:
        return None
    amount = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    return amount if math.isfinite(amount) else None
