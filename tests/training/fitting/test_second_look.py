"""Gates find what made the answers right; prices keep the target with both looks paid."""

import numpy as np
import pytest

from router.policy import calibrate_price, choose_many
from router.second_look import Gate, SecondLook
from training.figures.comparison import Questions
from training.fitting.second_look import (
    STARTS,
    after_first,
    ends_of,
    fit_gates,
    look_line,
    outcome,
    price_second_look,
    two_looks,
)
from training.progress import Steps, unseen

SCALES = ("1", "9", "36")
COSTS = (0.1, 0.25, 1.0)


def test_a_gate_learns_that_confidence_tells() -> None:
    rng = np.random.default_rng(0)
    values, sure = rng.uniform(0.05, 0.95, (2, 20_000, 3))
    right = (rng.random((20_000, 3)) < sure).astype(float)
    look = fit_gates(values, right, sure, SCALES)
    itself, finer = look.gates[0][0], look.gates[0][1]
    assert itself.confidence == pytest.approx(1.0, abs=0.06)
    assert abs(itself.first) + abs(itself.finer) + abs(itself.offset) < 0.1
    assert abs(finer.confidence) < 0.06  # the finer answer does not depend on this one's


def test_answers_always_right_give_finite_gates() -> None:
    rng = np.random.default_rng(0)
    values = rng.uniform(0.1, 0.9, (50, 3))
    look = fit_gates(values, np.ones((50, 3)), values, SCALES)
    assert look.p_right(values, 0, values[:, 0]).min() > 0.8


def test_both_looks_are_paid_and_the_last_answer_counts() -> None:
    scores = np.array([[0.0, 0.5, 1.0], [1.0, 0.0, 0.0]])
    right, spent = outcome(scores, np.array([0, 1]), np.array([2, 1]), COSTS)
    assert right.tolist() == [1.0, 0.0]
    assert spent.tolist() == [1.1, 0.25]


def test_arrays_end_where_single_requests_do() -> None:
    rng = np.random.default_rng(1)
    gates = tuple(tuple(Gate(*rng.normal(size=4)) for _ in range(3 - s)) for s in range(2))
    look = SecondLook(SCALES, gates, 0.0, 0.1)
    values, sure = rng.random((2, 300, 3))
    starts = rng.integers(0, 3, 300)
    ends = ends_of(look, after_first(look, values, starts, sure), starts, COSTS, look.price)
    assert len(set((ends - starts).tolist())) == 3
    for row, start in enumerate(starts):
        one = look.escalate(values[row].tolist(), start, sure[row, start], COSTS[start:])
        assert ends[row] == (start if one is None else one)


def test_a_second_look_reads_more_of_this_picture_than_the_first() -> None:
    eager = Gate(0.0, 0.0, 0.0, 9.0)
    stay = Gate(0.0, 0.0, 0.0, -9.0)
    look = SecondLook(SCALES, ((stay, eager, Gate(0.0, 0.0, 0.0, 8.0)), (stay, eager)), 0.0, 0.0)
    costs = np.array([[0.1, 0.25, 1.0], [0.3, 0.25, 1.0], [0.25, 0.25, 1.0]])
    starts = np.zeros(3, dtype=np.intp)
    known = after_first(look, np.full((3, 3), 0.5), starts, np.full((3, 3), 0.5))
    for price in (0.0, 0.1):
        assert ends_of(look, known, starts, costs, price).tolist() == [1, 2, 2]
    right, spent = outcome(np.eye(3), starts, np.array([1, 2, 2]), costs)
    assert right.tolist() == [0.0, 0.0, 1.0]
    assert spent.tolist() == pytest.approx([0.35, 1.3, 1.25])


def simulated(seed: int, n: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose confidence is the chance of being right, rising with the scale."""
    rng = np.random.default_rng(seed)
    sure = np.sort(rng.beta(0.6, 0.3, (n, 3)), axis=1)
    return (rng.random((n, 3)) < sure).astype(float), sure


def test_the_prices_keep_the_target_and_cost_less_than_one_look() -> None:
    (scores, sure), (fit_scores, fit_sure) = simulated(0), simulated(1)
    values = np.tile(fit_scores.mean(axis=0), (len(scores), 1))  # a router that knows nothing
    pictures = np.repeat(np.arange(500), 4)
    look, steps = fit_gates(values, fit_scores, fit_sure, SCALES), Steps(unseen, STARTS)
    found = price_second_look(
        look, values, scores, sure, pictures, COSTS, target=0.95, steps=steps
    )  # fmt: skip
    assert found.feasible
    starts = choose_many(values, COSTS, found.look.start_price)
    known = after_first(found.look, values, starts, sure)
    ends = ends_of(found.look, known, starts, COSTS, found.look.price)
    right, spent = outcome(scores, starts, ends, COSTS)
    assert right.mean() == pytest.approx(found.accuracy)
    assert spent.mean() == pytest.approx(found.cost)
    assert right.mean() >= 0.95 * scores[:, -1].mean()
    assert found.looked_again == pytest.approx((ends != starts).mean())
    single = calibrate_price(values, scores, COSTS, pictures, target=0.95)
    assert found.cost < single.cost  # the confidence tells what the values cannot


def test_an_impossible_target_is_not_feasible() -> None:
    scores, sure = simulated(0, 200)
    look, steps = fit_gates(sure, scores, sure, SCALES), Steps(unseen, STARTS)
    found = price_second_look(
        look, sure, scores, sure, np.arange(200), COSTS, target=1.5, steps=steps
    )  # fmt: skip
    assert not found.feasible
    assert found.looked_again == 0.0
    assert found.accuracy == found.finest_accuracy


def test_two_looks_by_hand() -> None:
    # Three questions, scales 1, 9 and 576; gates that repeat the confidence at once.
    sure = Gate(0.0, 0.0, 1.0, 0.0)
    gates = ((sure, Gate(0, 0, 0, 4.0), Gate(0, 0, 0, 5.0)), (sure, sure))
    look = SecondLook(("1", "9", "576"), gates, start_price=1.0, price=0.1)
    values = np.array([[0.9, 0.9, 0.9], [0.9, 0.9, 0.9], [0.0, 0.0, 3.0]])
    confidence = np.array([[0.99, 0.5, 0.5], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]])
    scores = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]])
    tokens = np.array([1.0, 9.0, 576.0])
    on = Questions(
        scores, np.arange(3), tokens, tokens / 576, tokens + 1000.0, tokens + 50.0,
        resamples=10, encode_flops=1000.0, encode_ms=50.0,
    )  # fmt: skip
    did = two_looks("two", look, values, confidence, on)
    assert did.first.tolist() == [0, 0, 2]
    assert did.picks.tolist() == [0, 1, 2]
    assert did.score.tolist() == [1.0, 1.0, 1.0]
    assert did.spent(tokens).tolist() == [1.0, 10.0, 576.0]
    summary = did.summary(on)
    assert summary["visual_tokens"] == pytest.approx(587 / 3)
    assert summary["flops"] == pytest.approx(587 / 3 + 1000)  # the encode once
    assert summary["gpu_ms"] == pytest.approx(587 / 3 + 50)
    line = look_line("two", look, values, confidence, on)
    here = np.flatnonzero(np.isclose(line.price, 1.0))
    assert line.mean("gpu_ms") == pytest.approx(line.mean("visual_tokens") + 50)
    assert all(line.picks[k].tolist() == [0, 1, 2] for k in here)
    part = line.only(np.array([False, True, False]), on.only(np.array([False, True, False])))
    assert part.picks.shape == part.first.shape == (len(line.price), 1)
