"""When a canary is called failing, by hand and by simulation."""

from __future__ import annotations

import random

import pytest

from serve.arms.guard import Guard


def requests_until_failing(canary: float, live: float, n: int, seed: int = 0) -> int | None:
    """Returns after how many of the canary's requests it is failing, of n at a share of a tenth."""
    draw, guard, its = random.Random(seed), Guard(), 0
    for _ in range(n):
        ours = draw.random() < 0.1
        its += ours
        if guard.saw(ours, draw.random() < (canary if ours else live)):
            return its
    return None


def test_one_that_always_fails_is_noticed_at_once() -> None:
    guard = Guard()
    told = []
    for _ in range(30):
        guard.saw(False, False)
        told.append(guard.saw(True, True))
    # By hand: M -> (M + 1) x 1.891 is above a million for the first time after 21 steps.
    assert told.index(True) == 20
    assert guard.saw(False, False)  # it stays so


def test_late_failure_is_noticed_as_fast() -> None:
    guard = Guard()
    for _ in range(5000):
        guard.saw(False, False)
        assert not guard.saw(True, False)
    told = []
    for _ in range(30):
        guard.saw(False, False)
        told.append(guard.saw(True, True))
    assert told.index(True) <= 20


@pytest.mark.parametrize("rate", [0.0, 0.02, 0.5, 1.0])
def test_one_that_fails_no_more_often_is_left_alone(rate: float) -> None:
    for seed in range(5):
        assert requests_until_failing(rate, rate, 20_000, seed) is None


def test_one_that_fails_more_often_is_found() -> None:
    for seed in range(5):
        found = requests_until_failing(0.5, 0.02, 20_000, seed)
        assert found is not None
        assert found < 400


def test_without_the_other_arm_nothing_is_said() -> None:
    guard = Guard()
    assert not any(guard.saw(True, True) for _ in range(100))
