"""Metrics worked by hand, and the definition of a right answer."""

import numpy as np
import pytest

from training.figures import metrics as m
from training.scoring import exact_match, normalise

# Four questions, three scales: right from the coarsest on; from the middle on; only at the coarsest
# (lost again: non-monotone); at none.
SCORES = np.array([[1, 1, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]], float)
TOKENS = np.array([1.0, 9.0, 36.0])


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("Red", "red"), (" red. ", "red"), ("the red star", "Red  star!"), ("A", "a"),
        ("12", "12."), ("?", "?"), ("an apple", "apple"), ("l'été", "L'ÉTÉ"),
    ],
)  # fmt: skip
def test_exact_match(answer: str, reference: str) -> None:
    assert exact_match(answer, reference)


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("12", "12 cm"),
        ("red", "dark red"),
        ("", "a"),
        ("?", "!"),
        ("3", "three"),
        ("theater", "ater"),
    ],
)
def test_no_match(answer: str, reference: str) -> None:
    assert not exact_match(answer, reference)


def test_normalise_is_idempotent() -> None:
    for text in ("The  Red Star.", "a", "", " ... ", "an the a", "'quoted'"):
        assert normalise(normalise(text)) in (normalise(text), normalise(normalise(text)))


def test_oracles() -> None:
    assert m.any_correct_picks(SCORES, TOKENS).tolist() == [0, 1, 0, 0]  # unsolvable: the coarsest
    assert m.strict_picks(SCORES, TOKENS).tolist() == [0, 1, 0, 0]
    lucky = np.array([[1, 0, 1]], float)
    assert m.any_correct_picks(lucky, TOKENS).tolist() == [0]
    assert m.strict_picks(lucky, TOKENS).tolist() == [2]


# Two questions, three actions, the first of them a focus: dear for the one, cheap for the other.
FOCUS_TOKENS = np.array([[20.0, 9, 36], [5, 9, 36]])


def test_the_cheapest_is_told_by_each_question() -> None:
    right = np.array([[1, 1, 1], [1, 1, 1]], float)
    assert m.any_correct_picks(right, FOCUS_TOKENS).tolist() == [1, 0]
    assert m.any_correct_picks(0 * right, FOCUS_TOKENS).tolist() == [1, 0]
    # The action in the middle is wrong: at 9 tokens the first does better, at 5 it was luck.
    wrong = np.array([[1, 0, 1], [1, 0, 1]], float)
    assert m.strict_picks(wrong, FOCUS_TOKENS).tolist() == [0, 2]
    assert m.non_monotone_share(wrong, FOCUS_TOKENS) == 0.5
    picks = np.array([0, 0])
    found = m.regret(right, picks, FOCUS_TOKENS, m.paid(FOCUS_TOKENS, picks))
    assert (found["over"], found["over_tokens"]) == (0.5, 11 / 2)
    wasted = m.regret(0 * right, picks, FOCUS_TOKENS, m.paid(FOCUS_TOKENS, picks))
    assert wasted["unsolvable_tokens"] == 11 / 2


def test_every_look_of_every_setting_is_paid() -> None:
    picks, first = np.array([[2, 0], [0, 2]]), np.array([[0, 0], [0, 0]])
    assert m.paid(FOCUS_TOKENS, picks).tolist() == [[36, 5], [20, 36]]
    assert m.paid(FOCUS_TOKENS, picks, first, shared=2.0).tolist() == [[54, 5], [20, 39]]


def test_shares() -> None:
    assert m.unsolvable_share(SCORES) == 0.25
    assert m.non_monotone_share(SCORES, TOKENS) == 0.25


def test_harm_and_rescue() -> None:
    picks = np.array([2, 0, 0, 0])  # right, lost, gained, wrong either way
    harm, rescue = m.harm_and_rescue(SCORES, picks)
    assert (harm, rescue) == (0.25, 0.25)


def test_regret() -> None:
    picks = np.array([2, 0, 0, 2])
    found = m.regret(SCORES, picks, TOKENS, TOKENS[picks])
    assert found == {
        "under": 0.25,  # question 1
        "over": 0.25,  # question 0 at 36 where 1 was right
        "over_tokens": 35 / 4,
        "unsolvable_tokens": 35 / 4,  # question 3 at 36 where nothing helps
    }


def test_priced_regret() -> None:
    picks = np.array([2, 0, 0, 2])
    found = m.priced_regret(SCORES, picks, TOKENS, 0.01)
    # 36 for 1 token; wrong at 1 where 9 is worth 0.91; the best choice; 35 wasted on the hopeless.
    assert found["over"] == pytest.approx(0.35 / 4)
    assert found["under"] == pytest.approx((0.91 + 0.01) / 4)
    assert found["unsolvable"] == pytest.approx(0.35 / 4)
    assert found["total"] == pytest.approx(0.35 / 2 + 0.92 / 4)


def test_hull_drops_what_mixing_beats() -> None:
    cost, accuracy = m.hull(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.2, 0.3, 0.6, 0.5]))
    assert cost.tolist() == [1.0, 3.0]
    assert accuracy.tolist() == [0.2, 0.6]


def test_cost_at_accuracy_interpolates_on_the_hull() -> None:
    cost, accuracy = np.array([1.0, 3.0]), np.array([0.2, 0.6])
    assert m.cost_at_accuracy(cost, accuracy, 0.4) == pytest.approx(2.0)
    assert m.cost_at_accuracy(cost, accuracy, 0.1) == 1.0
    assert m.cost_at_accuracy(cost, accuracy, 0.7) is None
    assert m.accuracy_at_cost(cost, accuracy, 2.0) == pytest.approx(0.4)
    assert m.accuracy_at_cost(cost, accuracy, 0.5) is None
    assert m.accuracy_at_cost(cost, accuracy, 99.0) == pytest.approx(0.6)


def test_gap_recovered() -> None:
    baseline = (np.array([1.0, 3.0]), np.array([0.2, 0.6]))
    oracle = (np.array([1.0, 3.0]), np.array([0.4, 0.8]))
    assert m.gap_recovered((2.0, 0.5), baseline, oracle) == pytest.approx(0.5)
    assert m.gap_recovered((2.0, 0.3), baseline, oracle) == pytest.approx(-0.5)
    assert m.gap_recovered((0.5, 0.3), baseline, oracle) is None
    assert m.gap_recovered((2.0, 0.5), baseline, baseline) is None


def test_clustered_interval_is_wider_than_independent() -> None:
    # 100 clusters of 10 equal values: only 100 independent numbers.
    rng = np.random.default_rng(0)
    values = np.repeat(rng.normal(size=100), 10)
    clustered = m.clustered_interval(values, np.repeat(np.arange(100), 10))
    independent = m.clustered_interval(values, np.arange(1000))
    assert clustered.mean == pytest.approx(values.mean())
    width, narrow = clustered.high - clustered.low, independent.high - independent.low
    assert width == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.15)
    assert width / narrow == pytest.approx(10**0.5, rel=0.15)


def test_clustered_interval_weighs_questions_not_pictures() -> None:
    values = np.array([1.0, 0.0, 0.0, 0.0])
    found = m.clustered_interval(values, np.array([0, 1, 1, 1]), resamples=4000)
    assert found.mean == 0.25
    assert (found.low, found.high) == (0.0, 1.0)


def test_calibration_error_and_brier() -> None:
    predicted = np.array([0.2, 0.2, 0.8, 0.8])
    outcome = np.array([0.0, 1.0, 1.0, 1.0])
    # Two bins: |0.2 - 0.5| and |0.8 - 1.0|, half of the mass each.
    assert m.calibration_error(predicted, outcome, bins=2) == pytest.approx(0.25)
    assert m.brier(predicted, outcome) == pytest.approx((0.04 + 0.64 + 0.04 + 0.04) / 4)
    assert m.calibration_error(outcome, outcome) == 0.0


def test_luck_corrected_takes_luck_away() -> None:
    costs = TOKENS / 36
    # Pure luck: what one repeat gets right the other gets wrong.
    first = np.array([[1, 0, 0], [0, 1, 0]], float)
    assert m.luck_corrected(first, first[::-1], costs, TOKENS)[0] == 0.0
    # No luck: both repeats agree, so the oracle keeps its choice and its tokens.
    accuracy, tokens = m.luck_corrected(first, first, costs, TOKENS)
    assert (accuracy, tokens) == (1.0, 5.0)


def test_luck_correction_takes_every_pair_of_repeats() -> None:
    nan = [np.nan] * 3
    repeats = np.array(
        [[[1, 1, 1], [1, 1, 1], [0, 0, 1]], [[0, 1, 0], [1, 0, 0], nan], [[1, 1, 1], nan, nan]]
    )
    accuracy, tokens = m.luck_corrected_over(repeats, TOKENS / 36, TOKENS)
    # First question, six ordered pairs: right but where the coarsest, chosen on one of the two
    # equal wordings, meets the third (2 of 6). Second: never. Third: no pair, left out.
    assert accuracy == pytest.approx((4 / 6 + 0) / 2)
    assert tokens == pytest.approx(((4 * 1 + 2 * 36) / 6 + (9 + 1) / 2) / 2)
