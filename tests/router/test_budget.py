"""One cap for several pictures: the sharing against all choices there are."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.policy import Policy, best_shares, choose, even_shares, token_costs

SCALES = (1, 9, 36, 144, 576)
IRREGULAR = (1, 9, 10, 36)  # a small step above a large one
POLICY = Policy(token_costs(SCALES), 0.1)

value = st.floats(0.0, 1.0, width=32)
rows = st.lists(st.lists(value, min_size=5, max_size=5), min_size=1, max_size=4)
pin = st.none() | st.none() | st.sampled_from(SCALES)


def brute_force(
    policy: Policy, values: list[list[float]], pins: list[int | None], cap: int
) -> tuple[float, int]:
    """The greatest sum of value - price * cost within the cap, and the fewest tokens that give it;
    sums in the order of the pictures, a pinned one counts nothing."""
    sums = []
    for picks in itertools.product(range(5), repeat=len(values)):
        if any(p is not None and SCALES[k] != p for k, p in zip(picks, pins, strict=True)):
            continue
        tokens = sum(SCALES[k] for k in picks)
        if tokens <= cap:
            sums.append((gain(policy, values, pins, picks), -tokens))
    best, tokens = max(sums)
    return best, -tokens


def gain(
    policy: Policy, values: list[list[float]], pins: list[int | None], picks: tuple[int, ...]
) -> float:
    total = 0.0
    for row, fixed, k in zip(values, pins, picks, strict=True):
        total += 0.0 if fixed is not None else row[k] - policy.price * policy.costs[k]
    return total


@settings(deadline=None, max_examples=300)
@given(rows, st.data())
def test_shares_are_the_best_of_all_choices_within_the_cap(
    values: list[list[float]], data: st.DataObject
) -> None:
    pins = data.draw(st.lists(pin, min_size=len(values), max_size=len(values)))
    least = sum(1 if p is None else p for p in pins)
    cap = least + data.draw(st.integers(0, 200) | st.integers(0, 576 * len(values)))
    policy = Policy(POLICY.costs, data.draw(st.sampled_from([0.0, 0.1, 1.0, -0.1])))
    shares = best_shares(policy, values, SCALES, pins, cap)
    assert sum(shares) <= cap
    assert all(p in (None, share) for p, share in zip(pins, shares, strict=True))
    best, tokens = brute_force(policy, values, pins, cap)
    free = best_shares(policy, values, SCALES, pins)
    if sum(free) <= cap:
        assert shares == free
        best = max(best, gain(policy, values, pins, tuple(map(SCALES.index, free))))
        tokens = sum(free)
    found = gain(policy, values, pins, tuple(map(SCALES.index, shares)))
    assert found == pytest.approx(best, abs=1e-12)
    # Of sums that rounding makes equal, another may have been the greater.
    assert sum(shares) == tokens or found == pytest.approx(best, abs=1e-15 * len(values))


@settings(deadline=None)
@given(rows)
def test_without_a_cap_each_picture_gets_what_it_would_get_alone(values: list[list[float]]) -> None:
    alone = tuple(SCALES[choose(row, POLICY.costs, 0.1)] for row in values)
    assert best_shares(POLICY, values, SCALES, [None] * len(values)) == alone
    assert best_shares(POLICY, values, SCALES, [None] * len(values), sum(alone)) == alone


@settings(deadline=None)
@given(rows, st.integers(4, 2304))
def test_a_shared_scale_is_never_better(values: list[list[float]], cap: int) -> None:
    pins: list[int | None] = [None] * len(values)
    shares = best_shares(POLICY, values, SCALES, pins, cap)
    mean = [sum(column) for column in zip(*values, strict=True)]
    allowed = [scale * len(values) <= cap for scale in SCALES]
    one = choose(mean, [cost * len(values) for cost in POLICY.costs], 0.1, allowed)
    mixed = gain(POLICY, values, pins, tuple(map(SCALES.index, shares)))
    assert mixed >= gain(POLICY, values, pins, (one,) * len(values)) - 1e-12


def test_by_hand() -> None:
    plain, written = [0.9, 0.95, 0.95, 0.95, 0.95], [0.1, 0.2, 0.3, 0.6, 0.9]
    free = Policy(POLICY.costs, 0.0)
    assert best_shares(free, [plain, written], SCALES, [None, None]) == (9, 576)
    assert best_shares(free, [plain, written], SCALES, [None, None], 300) == (9, 144)
    assert best_shares(free, [plain, written], SCALES, [None, None], 150) == (1, 144)
    assert best_shares(free, [plain, written], SCALES, [36, None], 150) == (36, 36)
    all_or_nothing = [0.1, 0.1, 0.1, 0.1, 0.9]
    assert best_shares(free, [all_or_nothing] * 2, SCALES, [None, None], 1000) == (576, 1)
    assert best_shares(free, [plain, plain], SCALES, [None, None], 12) == (9, 1)
    worse_when_finer = [0.5, 0.4, 0.3, 0.2, 0.1]
    assert best_shares(free, [worse_when_finer, written], SCALES, [None, None], 200) == (1, 144)


@settings(deadline=None)
@given(st.lists(pin, min_size=1, max_size=4), st.integers(0, 2304))
def test_even_shares_leave_nobody_coarser_than_they_must(pins: list[int | None], more: int) -> None:
    cap = sum(1 if p is None else p for p in pins) + more
    shares = even_shares(SCALES, pins, cap)
    choices = itertools.product(*(SCALES if p is None else (p,) for p in pins))
    assert sum(shares) <= cap
    assert sorted(shares) == max(sorted(c) for c in choices if sum(c) <= cap)
    assert all(p in (None, share) for p, share in zip(pins, shares, strict=True))


@given(st.integers(3, 120))
def test_even_shares_take_scales_of_any_distance(cap: int) -> None:
    choices = itertools.product(IRREGULAR, repeat=3)
    best = max(sorted(c) for c in choices if sum(c) <= cap)
    shares = even_shares(IRREGULAR, [None] * 3, cap)
    assert sorted(shares) == best
    assert list(shares) == sorted(shares, reverse=True)  # of equals the first is finer


def test_the_finest_always_is_shared_evenly() -> None:
    finest = Policy(POLICY.costs, 0.0, finest_only=True)
    values = [[1.0, 0.0, 0.0, 0.0, 0.0]] * 2
    assert best_shares(finest, values, SCALES, [None, None]) == (576, 576)
    assert best_shares(finest, values, SCALES, [None, None], 800) == (576, 144)
    assert best_shares(finest, values, SCALES, [None, 9], 300) == (144, 9)


def test_what_cannot_fit_is_refused() -> None:
    values = [[0.1] * 5] * 2
    for pins, cap in (([None, None], 1), ([576, None], 576), ([9, 9], 17)):
        with pytest.raises(ValueError, match="do not fit the cap"):
            best_shares(POLICY, values, SCALES, pins, cap)
        with pytest.raises(ValueError, match="do not fit the cap"):
            even_shares(SCALES, pins, cap)
    with pytest.raises(ValueError, match="NaN"):
        best_shares(POLICY, [[float("nan")] * 5, [0.1] * 5], SCALES, [None, None], 10)


def test_eight_pictures_are_exact_too() -> None:
    """All choices of two halves, joined at every way to part the cap: not the same programme."""
    draw = random.Random(0)
    values = [sorted(draw.random() for _ in SCALES) for _ in range(8)]

    def best_of_half(half: list[list[float]]) -> dict[int, float]:
        best: dict[int, float] = {}
        for picks in itertools.product(range(5), repeat=4):
            tokens = sum(SCALES[k] for k in picks)
            total = gain(POLICY, half, [None] * 4, picks)
            best[tokens] = max(total, best.get(tokens, total))
        return best

    first, second = best_of_half(values[:4]), best_of_half(values[4:])
    for cap in (8, 100, 313, 1000, 2001, 4607):
        wanted = max(a + b for s, a in first.items() for t, b in second.items() if s + t <= cap)
        shares = best_shares(POLICY, values, SCALES, [None] * 8, cap)
        found = gain(POLICY, values, [None] * 8, tuple(map(SCALES.index, shares)))
        assert found == pytest.approx(wanted, abs=1e-12)
        assert sum(shares) <= cap
