"""Measures of answers against their published definitions, by tables worked by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.errors import TrainingError
from training.scoring import METRICS, agreement_of, metric_of
from training.scoring.nearness import anls, relaxed_accuracy, token_f1
from training.scoring.vqa import vqa_accuracy, vqa_form

WORDS = st.text(alphabet="ab 0.,'Ü猫", max_size=8)


# visualqa.org/evaluation: min(matches / 3, 1), averaged over every nine of the ten people.
@pytest.mark.parametrize(
    ("matches", "accuracy"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)]
)
def test_vqa_accuracy_is_that_of_nine_of_ten_people(matches: int, accuracy: float) -> None:
    people = ["yes"] * matches + ["no"] * (10 - matches)
    assert vqa_accuracy("Yes.", people) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("The Dog", "dog"), ("two", "2"), ("None", "0"), ("an apple", "apple"),
        ("dont", "don't"), ("its", "its"), ("were", "were"), ("oclock", "o'clock"),
        ("100,978", "100978"),  # no space for a comma between digits
        ("1.5", "1.5"), ("St. Mary", "st mary"), ("end.", "end"),
        ("black/white", "black white"), ("black, white", "black white"), ("t-shirt", "t shirt"),
        ("10:30", "10:30"), ("man's", "man's"),  # colons tell times, apostrophes possession
        ("a\n b\t c", "b c"), ("what?", "what"),
    ],
)  # fmt: skip
def test_vqa_forms(text: str, form: str) -> None:
    assert vqa_form(text).strip() == form


# Biten et al. 2019: 1 - NL where NL, the edits by the longer length, is below one half.
@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("Coca Cola", ["coca  cola"], 1.0),
        ("kitten", ["sitting"], 1 - 3 / 7),
        ("abc", ["xyz"], 0.0),
        ("ab", ["abcd"], 0.5),  # as DocVQA's program has it: only below one half is nothing
        ("ab", ["abcde"], 0.0),
        ("", ["a"], 0.0),
        ("coffee", ["tea", "coffe"], 1 - 1 / 6),  # the best reference counts
    ],
)
def test_anls(answer: str, references: list[str], score: float) -> None:
    assert anls(answer, references) == pytest.approx(score)


# ChartQA (Masry et al. 2022): amounts within 5 % of the reference, else exact match.
@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("95", "100", True), ("94.9", "100", False), ("105", "100", True), ("105.1", "100", False),
        ("-95", "-100", True), ("95", "-100", False), ("12.", "12", True), ("0", "0.0", True),
        ("0.001", "0", False), ("51%", "50%", True), ("0.5", "50%", True), ("50", "50%", False),
        ("Germany", "germany", True), ("German", "Germany", False), ("inf", "inf", True),
        ("nan", "1", False), ("1_0", "10", False), ("2.1", "2", True), (".105", "0.1", True),
    ],
)  # fmt: skip
def test_relaxed_accuracy(answer: str, reference: str, right: bool) -> None:
    assert relaxed_accuracy(answer, [reference]) == float(right)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("the red, red rose", "Red rose!", 2 * 2 / (3 + 2)),
        ("rock-n-roll", "rocknroll", 1.0),
        ("cat", "dog", 0.0), ("the", "a", 1.0), ("the", "cat", 0.0),
        ("猫が", "猫", 2 * 1 / 3),  # written without blanks: by character
    ],
)  # fmt: skip
def test_token_f1(answer: str, reference: str, score: float) -> None:
    assert token_f1(answer, [reference]) == pytest.approx(score)


@given(st.sampled_from(sorted(METRICS)), WORDS, st.lists(WORDS, min_size=4, max_size=6))
def test_scores_lie_between_0_and_1(name: str, answer: str, references: list[str]) -> None:
    score = METRICS[name].score(answer, references, "Which?\nA. ab\nB. b")
    assert 0.0 <= score <= 1.0


@given(st.sampled_from(sorted(set(METRICS) - {"choice"})), WORDS)
def test_an_answer_agrees_with_itself(name: str, answer: str) -> None:
    assert METRICS[name].score(answer, [answer] * 10, "") == 1.0
    assert agreement_of(name).score(answer, [answer], "") == 1.0


def test_what_cannot_be_scored_says_why() -> None:
    assert metric_of(None).name == "exact_match"
    assert METRICS["vqa"].why_not(["a"] * 10, "") is None
    assert "here is 1" in str(METRICS["vqa"].why_not(["a"], ""))
    assert "options" in str(METRICS["choice"].why_not(["A"], "What is it?"))
    assert "no option" in str(METRICS["choice"].why_not(["E"], "What?\nA. cat\nB. dog"))
    with pytest.raises(TrainingError, match="unknown metric 'bleu': use one of exact_match"):
        metric_of("bleu")


def test_agreement_is_named_after_its_measure() -> None:
    assert agreement_of(None).name == "agreement"
    assert agreement_of("vqa").name == "agreement"
    assert agreement_of("token_f1").name == "agreement/token_f1"
    question = "What?\nA. cat\nB. dog"
    assert agreement_of("choice").score("dog", ["B"], question) == 1.0
    assert agreement_of("choice").score("no idea", ["No idea."], question) == 1.0
