"""The metric of a whole source: what can be scored so is, the rest is told and left as it was."""

from pathlib import Path

import pytest

from training.errors import TrainingError
from training.sources.tasks import Ask, FileSource, scored_by_metric

OPTIONS = "Which?\nA. cat\nB. dog"


def source(*asks: Ask) -> FileSource:
    return FileSource("log", (("p", Path("p.png"), asks),), {}, ("3 records not audited",))


def asks_of(made: FileSource) -> tuple[Ask, ...]:
    return made.pictures[0][2]


def test_what_a_metric_cannot_score_stays_exact_and_is_told() -> None:
    made = scored_by_metric(
        source(
            Ask(OPTIONS, "B"), Ask("Where?", "here"), Ask("Who?", "me"), Ask("What?"),
            Ask(OPTIONS, "A", metric="anls"),
        ),
        "choice",
    )  # fmt: skip
    assert [ask.metric for ask in asks_of(made)] == ["choice", None, None, "choice", "anls"]
    assert made.notes() == [
        "3 records not audited",
        "2 questions from multiple choice: multiple choice needs its options in the question "
        "(A. ... B. ...)",
    ]


def test_agreement_forgets_what_was_told() -> None:
    told = Ask("What?", "a box", metadata={"references": ["a box", "box"], "model": "m"})
    (ask,) = asks_of(scored_by_metric(source(told), "agreement"))
    assert (ask.reference, ask.references, ask.metadata) == (None, (), {"model": "m"})


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(TrainingError, match="unknown metric"):
        scored_by_metric(source(Ask("What?")), "bleu")
