"""Whether scores can teach, price, certify or judge anything; refused with the reason if not.

Scores that say nothing make every policy look ideal: where all answers are wrong nothing can be
lost, and where every action earns the same the cheapest one is best. Both come from a metric that
does not fit the answers (sentences under exact match) far more often than from easy or hopeless
questions, so they are an error to mend, not data to learn from.

Where the lines lie. The finest scale must be right on `LEAST_RIGHT` of the questions: below 5 % a
harm of 5 % is no promise, and a model that answers a fifth of 30 questions, the fewest that are
fitted, falls below it in one of 90 draws. Answers that agree with the finest's count as right, so
data without a reference are never refused for that. That no action differs from another on any of
30 questions is no chance either. One kind of question is only warned of, from `FEW` questions on: a
model may really be unable to do it. Knows scores; knows nothing of routers, prices or files.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.errors import ScoresSayNothing
from training.figures.metrics import Array
from training.fitting.references import of_one_kind, speaking
from training.oracle.data import OracleData, scored_by

LEAST_RIGHT = 0.05  # of the questions, by the finest scale
FEW = 10  # questions of one kind, below which its share says nothing


def check_telling(data: OracleData) -> None:
    """Refuse scores of which nothing can be learnt.

    Where some questions have a reference and enough do, theirs: agreement would hide that no answer
    ever matched one.

    Raises:
        ScoresSayNothing: the finest scale is right on next to none, or no action differs.
    """
    part = of_one_kind(data, speaking(data))
    why = why_untelling(part.scores, scored_by(part))
    if why is not None:
        raise ScoresSayNothing(why)


def why_untelling(scores: Array, how: str) -> str | None:
    """Return why scores (n, A) say nothing, the finest scale last; None where they do.

    Args:
        how: in words, what right means.
    """
    n, right = len(scores), float(scores[:, -1].mean())
    if right < LEAST_RIGHT:
        return (
            f"the finest scale is right on {right:.1%} of {n} questions (scored by {how}), so "
            "nothing could be lost and nothing can be learnt: check that the references can be "
            "answered word for word, choose another metric, or leave the references out to score "
            "by agreement with the finest scale"
        )
    if np.all(scores == scores[:, -1:]):
        return (
            f"every action scores the same on each of {n} questions (scored by {how}; the finest "
            f"scale is right on {right:.1%}), so these scores cannot tell actions apart: collect "
            "harder questions, or choose another metric"
        )
    return None


def untelling_kinds(data: OracleData) -> dict[str, float]:
    """Return the kinds ("dataset/kind") that the finest scale hardly ever answers: their share."""
    known = data.has_reference  # elsewhere the finest is right by agreement with itself
    names, kind = np.unique(data.groups[known], return_inverse=True)
    counts = np.bincount(kind)
    right = np.bincount(kind, data.scores[known, -1]) / counts
    low = np.flatnonzero((right < LEAST_RIGHT) & (counts >= FEW))
    return {str(names[place]): float(right[place]) for place in low}


def warnings(data: OracleData) -> list[str]:
    """Return what a person should look at before believing what is learnt from these scores."""
    said = [
        f"the finest scale is right on {share:.1%} of the questions of kind {kind}: no figure "
        "about them means anything, look at how they are scored"
        for kind, share in untelling_kinds(data).items()
    ]
    alone = [_one_class(column) for column in data.scores[:, :-1].T]
    for way in ("right", "wrong"):
        names = [n for n, found in zip(data.space.names, alone, strict=False) if found == way]
        if names:
            said.append(
                f"every answer at {', '.join(names)} is {way}: about that nothing can be learnt"
            )
    return said


def _one_class(scores: NDArray[np.float64]) -> str | None:
    if np.all(scores >= 1.0):
        return "right"
    return "wrong" if np.all(scores <= 0.0) else None
