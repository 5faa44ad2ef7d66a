"""Multiple choice: the option counts, whatever letter it stands at."""

import pytest

from training.scoring.choices import choice_accuracy, chosen, moved, options_of

LINES = "Which animal?\nA. a cat\nB. the dog\nC. horse\nAnswer with the option's letter."
IN_LINE = "Which animal? Options: (A) a cat, (B) the dog (C) horse\nAnswer."


@pytest.mark.parametrize("question", [LINES, IN_LINE])
def test_options_are_found(question: str) -> None:
    assert [option.words for option in options_of(question)] == ["a cat", "the dog", "horse"]
    assert [option.letter for option in options_of(question)] == ["A", "B", "C"]


@pytest.mark.parametrize(
    "question", ["What is it?", "A. only one", "B. two\nC. three", "A. x\nC. y"]
)
def test_no_options(question: str) -> None:
    assert options_of(question) == ()


@pytest.mark.parametrize(
    ("answer", "option"),
    [
        ("B", 1), ("B.", 1), ("(B)", 1), ("(B) the dog", 1), ("b", 1), ("B. the dog", 1),
        ("The dog.", 1), ("B the dog", 1), ("The answer is B", 1), ("Option (C)", 2),
        ("A cat", 0),  # the words of A, not the letter before others
        ("A horse", 2),  # an article
        ("It is a horse, I think", 2), ("cat or horse", None), ("E", None), ("", None),
        ("the answer is a horse", 2),
    ],
)  # fmt: skip
def test_what_an_answer_names(answer: str, option: int | None) -> None:
    assert chosen(answer, options_of(LINES)) == option


def test_moved_options_keep_the_answer() -> None:
    question, reference = moved(LINES, "B", 1)
    assert question == LINES.replace(
        "A. a cat\nB. the dog\nC. horse", "A. horse\nB. a cat\nC. the dog"
    )
    assert reference == "C"
    assert choice_accuracy("C", [reference], question) == 1.0
    assert choice_accuracy("B", [reference], question) == 0.0  # the old letter is another option
    assert moved(IN_LINE, "(B)", 1)[1] == "(C)"
    assert moved(LINES, "the dog", 2)[1] == "the dog"


@pytest.mark.parametrize("question", [LINES, IN_LINE])
@pytest.mark.parametrize("right", [0, 1, 2])
def test_every_option_stands_at_every_letter_once(question: str, right: int) -> None:
    """Always answering A is right once in three moves, knowing the animal always."""
    words = options_of(question)[right].words
    turned = [moved(question, "ABC"[right], places) for places in range(3)]
    assert turned[0] == (question, "ABC"[right])
    assert sum(choice_accuracy("A", [reference], asked) for asked, reference in turned) == 1
    assert all(choice_accuracy(words, [reference], asked) == 1 for asked, reference in turned)


def test_a_reference_must_name_an_option() -> None:
    with pytest.raises(ValueError, match="options"):
        moved("What is it?", "B", 1)
    with pytest.raises(ValueError, match="options"):
        moved(LINES, "a bird", 1)
