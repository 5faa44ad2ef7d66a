"""What fresh audits may say: hand-worked numbers, and how often a sound router is accused."""

from __future__ import annotations

import numpy as np
import pytest

from training.drift.audits import calibration, exceeds
from training.promotion.weighing import DELTA


def test_calibration_by_hand() -> None:
    """Two bins of twenty: gaps of -0.5 and 0.5, none of which varies within its bin.

    With no spread nothing is taken off: the error is half of 0.5 and half of 0.5.
    """
    predicted = np.array([0.4, 0.4, 0.6, 0.6])
    outcome = np.array([0.9, 0.9, 0.1, 0.1])
    error, low, high = calibration(np.repeat(predicted, 10), np.repeat(outcome, 10), np.arange(40))
    assert (error, low, high) == pytest.approx((0.5, 0.5, 0.5))


@pytest.mark.parametrize("each", [1, 4])
def test_true_probabilities_are_hardly_ever_accused(each: int) -> None:
    """Of 200 sets of 600 questions none is found 0.05 off, whether each picture has one question
    or four that all come out alike; and the error beyond chance is next to nothing on average."""
    rng, lows, errors = np.random.default_rng(each), [], []
    for _ in range(200):
        p = rng.random(600 // each)
        outcome = (rng.random(len(p)) < p).astype(float)
        units = np.repeat(np.arange(len(p)), each)
        error, low, _ = calibration(np.repeat(p, each), np.repeat(outcome, each), units)
        errors.append(error)
        lows.append(low)
    assert max(lows) < 0.05
    assert np.mean(errors) < 0.02


def test_wrong_probabilities_are_found() -> None:
    """0.2 too sure everywhere."""
    rng = np.random.default_rng(3)
    p = rng.uniform(0.2, 1.0, size=600)
    outcome = (rng.random(600) < p - 0.2).astype(float)
    error, low, high = calibration(p, outcome, np.arange(600))
    assert low > 0.05
    assert low < error < high
    assert error == pytest.approx(0.2, abs=0.06)


def test_a_certificate_that_holds_is_hardly_ever_called_broken() -> None:
    """At the edge of its bound: of 400 sets of 800 pictures at most 2 % by the bets; at three times
    the bound nearly all are found."""
    rng = np.random.default_rng(0)
    false = [
        exceeds((rng.random(800) < 0.02).astype(float), 0.02, DELTA, "harm") for _ in range(400)
    ]
    assert np.mean(false) <= DELTA
    true = [exceeds((rng.random(800) < 0.06).astype(float), 0.02, DELTA, "harm") for _ in range(50)]
    assert np.mean(true) > 0.9


def test_a_drop_may_be_negative() -> None:
    """Rescues offset losses: 10 % lost and 10 % rescued is a drop of nothing."""
    rng = np.random.default_rng(1)
    losses = rng.permutation(np.repeat([1.0, -1.0, 0.0], [80, 80, 640]))
    assert not exceeds(losses, 0.02, DELTA, "drop")
    assert exceeds(np.abs(losses), 0.02, DELTA, "drop")
