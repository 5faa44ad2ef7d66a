"""The measures by name: what is stored with an answer's score, and from which score on it is right.

Knows the measures; knows nothing of models, actions, files or records.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from training.errors import TrainingError
from training.scoring.choices import choice_accuracy, chosen, options_of
from training.scoring.exact import exact_match
from training.scoring.nearness import anls, relaxed_accuracy, token_f1
from training.scoring.vqa import LEAST_REFERENCES, vqa_accuracy

EXACT = "exact_match"
AGREEMENT = "agreement"  # with the anchor's answer, where nobody told the right one
THRESHOLD = 0.5  # of every measure: whole ones are 0 or 1, graded ones say so themselves


@dataclass(frozen=True)
class Metric:
    """One measure: its name, what it is in words, and the score of an answer in [0, 1].

    ``score`` takes answer, references and question. ``graded``: a wrong answer may score too, so
    the likelihood of the reference says less than the score does.
    """

    name: str
    words: str
    score: Callable[[str, Sequence[str], str], float]
    graded: bool = False
    threshold: float = THRESHOLD

    def why_not(self, references: Sequence[str], question: str) -> str | None:
        """Return why a question cannot be scored so, or None."""
        if self.name == "vqa" and len(references) < LEAST_REFERENCES:
            return (
                f"VQA accuracy is of ten references a question (at least {LEAST_REFERENCES}), "
                f"here {'is' if len(references) == 1 else 'are'} {len(references)}"
            )
        if self.name == "choice":
            options = options_of(question)
            if not options:
                return "multiple choice needs its options in the question (A. ... B. ...)"
            if any(chosen(each, options) is None for each in references):
                return "the reference names no option"
        return None


def _exact(answer: str, references: Sequence[str], question: str) -> float:
    return float(any(exact_match(answer, each) for each in references))


METRICS = {
    metric.name: metric
    for metric in (
        Metric(EXACT, "exact match", _exact),
        Metric("vqa", "VQA accuracy", lambda a, r, q: vqa_accuracy(a, r), graded=True),
        Metric("anls", "ANLS", lambda a, r, q: anls(a, r), graded=True),
        Metric("relaxed", "relaxed accuracy (5 %)", lambda a, r, q: relaxed_accuracy(a, r)),
        Metric("choice", "multiple choice", choice_accuracy),
        Metric("token_f1", "token F1", lambda a, r, q: token_f1(a, r), graded=True),
    )
}


def metric_of(name: str | None) -> Metric:
    """Return the measure of that name; None is exact match, as rows of before have it.

    Raises:
        TrainingError: there is none.
    """
    found = METRICS.get(EXACT if name is None else name)
    if found is None:
        raise TrainingError(f"unknown metric {name!r}: use one of {', '.join(METRICS)}")
    return found


def agreement_of(name: str | None) -> Metric:
    """Return the measure of how much two answers of a model agree, after the one of that name.

    Two answers are no ten people: agreement after VQA is exact match.
    """
    metric = metric_of(EXACT if name == "vqa" else name)
    told = AGREEMENT if metric.name == EXACT else f"{AGREEMENT}/{metric.name}"
    words = "agreement with the finest"
    if metric.name != EXACT:
        words += f" by {metric.words}"

    def agrees(answer: str, references: Sequence[str], question: str) -> float:
        if metric.name == "choice" and chosen(references[0], options_of(question)) is None:
            return _exact(answer, references, question)
        return metric.score(answer, references, question)

    return Metric(told, words, agrees, metric.graded, metric.threshold)
