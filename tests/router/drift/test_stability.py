"""Population stability: worked by hand, against a plain loop, and how often it is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.drift.population import BINS, Population, deciles, effective_units
from router.drift.stability import (
    LEAST_CHOICES,
    chi_square_quantile,
    collapsed,
    psi,
    smoothed,
    stability,
)


def population(rows: np.ndarray, units: float | None = None) -> Population:
    edges, shares = deciles(rows)
    return Population("p", units or float(len(rows)), edges, shares, 0.1, {"1": 1.0}, {"1": 0.5})


def test_the_index_by_hand() -> None:
    """(0.5 - 0.25) ln 2 + (0.25 - 0.25) ln 1 + (0.25 - 0.5) ln 0.5 = 0.5 ln 2."""
    now = np.array([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]])
    before = np.array([[0.25, 0.25, 0.5], [0.25, 0.25, 0.5]])
    assert psi(now, before).tolist() == pytest.approx([0.5 * math.log(2), 0.0])


def test_half_a_question_in_every_bin_by_hand() -> None:
    """3 of 4 questions in the first of two bins: (3 + 0.5) / (4 + 1) and (1 + 0.5) / 5."""
    [found] = smoothed(np.array([[0.75, 0.25, *[0.0] * (BINS - 2)]]), 4.0, np.array([2]))
    assert found[:2].tolist() == [0.7, 0.3]
    assert np.isnan(found[2:]).all()


def test_deciles_by_hand() -> None:
    """100 numbers have tenths at 10, 20, ...; few values share bins; a constant has its own."""
    rows = np.stack([np.arange(1, 101), np.repeat([0.0, 1.0], [70, 30]), np.full(100, 7.0)], axis=1)
    edges, shares = deciles(rows)
    assert edges[0] == tuple(range(10, 100, 10))
    assert shares[0] == (0.1,) * 10
    assert (edges[1], shares[1]) == ((0.0,), (0.7, 0.3))
    assert edges[2] == pytest.approx((7.0 - 7 / 256, 7.0 + 7 / 256))
    assert shares[2] == (0.0, 1.0, 0.0)
    told = population(rows)
    bins = told.bins(np.array([[10.0, 0.0, 7.0], [10.5, 0.5, 6.9], [200.0, -1.0, 7.1]]))
    assert bins.tolist() == [[0, 0, 1], [1, 1, 0], [9, 0, 2]]


def test_what_rounding_exchanges_shares_a_bin() -> None:
    """Cosines near 1 and a constant, as one processor computes them and as 16 bits round them."""
    rng = np.random.default_rng(0)
    near = 1.0 - 10.0 ** rng.uniform(-6, -1, size=4000)
    rows = np.stack([near, 1.0 + rng.normal(0, 2e-7, size=4000)], axis=1).astype(np.float32)
    told = population(rows)
    rounded = np.round(rows * 256) / 256
    found = stability(told, told.counts(rounded), 4000.0)
    assert not found.moved.any()
    assert found.index.max() < 0.1
    assert len(told.edges[0]) == 2
    assert stability(told, told.counts(rows * np.float32(0.9)), 4000.0).moved.all()


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60))
def test_every_training_row_is_counted_where_it_was(values: list[float]) -> None:
    rows = np.array(values, np.float32)[:, None]
    told = population(rows)
    counts = told.counts(rows)[0][: len(told.shares[0])]
    assert counts.sum() == len(values)
    assert counts / len(values) == pytest.approx(told.shares[0], abs=1e-5)


def test_the_file_tells_the_same(tmp_path_factory: pytest.TempPathFactory) -> None:
    rng = np.random.default_rng(0)
    told = population(rng.normal(size=(500, 600)).astype(np.float32))
    content = told.to_bytes()
    assert Population.from_bytes(content) == told
    assert len(content) < 110_000
    for damaged in (b"{}", content[:-9], content.replace(b'"format": 1', b'"format": 2')):
        with pytest.raises(ValueError, match=r"."):
            Population.from_bytes(damaged)


def test_against_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    before = rng.normal(size=(400, 3)).astype(np.float32)
    now = rng.normal(0.3, 1.2, size=(300, 3)).astype(np.float32)
    told = population(before)
    found = stability(told, told.counts(now), 300.0)
    for place in range(3):
        edges, total = np.float32(told.edges[place]), 0.0
        for low, high in zip((-np.inf, *edges), (*edges, np.inf), strict=True):
            p = (sum(low < x <= high for x in before[:, place]) + 0.5) / (400 + 5)
            q = (sum(low < x <= high for x in now[:, place]) + 0.5) / (300 + 5)
            total += (q - p) * math.log(q / p)
        assert found.index[place] == pytest.approx(max(total - 9 * (1 / 300 + 1 / 400), 0.0))


def test_quantiles_of_a_chi_square() -> None:
    """As tables have them: 95 % of 2 and 9 degrees, 99.9 % of 9."""
    assert chi_square_quantile(np.array([2, 9]), 0.95) == pytest.approx([5.991, 16.919], rel=0.02)
    assert chi_square_quantile(np.array([9]), 0.999) == pytest.approx([27.877], rel=0.02)


def test_a_hundred_questions_about_one_picture_are_one() -> None:
    assert effective_units(np.array([1] * 50)) == 50
    assert effective_units(np.array([100])) == 1
    assert effective_units(np.array([5] * 40)) == 40
    assert effective_units(np.array([])) == 0


@pytest.mark.parametrize(("questions", "each"), [(200, 1), (1000, 1), (1000, 5)])
def test_the_same_population_raises_no_alarm(questions: int, each: int) -> None:
    """Of 60 windows with 281 features each none sounds: 281 at odds of 1 in 1000 together, and a
    shift that matters besides. Normal, skewed, rare and constant features; questions that share a
    picture count once."""
    rng = np.random.default_rng(questions + each)

    def draw(n: int) -> np.ndarray:
        rows = rng.normal(size=(n, 281))
        rows[:, 50:100] = np.exp(rows[:, 50:100])
        rows[:, 100:150] = rng.poisson(1.0, size=(n, 50))
        rows[:, 150:160] = rng.random((n, 10)) < 0.02
        rows[:, 160:165] = 3.0
        return rows.astype(np.float32)

    told = population(draw(3000))
    alarms = 0
    for _ in range(60):
        rows = np.repeat(draw(questions // each), each, axis=0)
        worth = effective_units(np.full(questions // each, each))
        alarms += bool(stability(told, told.counts(rows), worth).moved.any())
    assert alarms == 0


def test_without_the_correction_small_windows_would_alarm() -> None:
    """What the threshold guards against: of 60 questions some feature's plain index is over 0.2."""
    rng = np.random.default_rng(5)
    told = population(rng.normal(size=(3000, 281)))
    found = stability(told, told.counts(rng.normal(size=(60, 281))), 60.0)
    share = told.counts(rng.normal(size=(60, 281))) / 60
    plain = psi(smoothed(share, 60.0, told.n_bins), smoothed(told.expected, 3000.0, told.n_bins))
    assert (plain > 0.2).sum() > 20
    assert not found.moved.any()


def test_what_has_moved_is_named() -> None:
    """One standard deviation further is an index of 0.9 or so; a constant that varies is seen."""
    rng = np.random.default_rng(2)
    before, now = rng.normal(size=(3000, 50)), rng.normal(size=(200, 50))
    before[:, 7] = 4.0
    now[:, 7] = 5.0
    now[:, 3] += 1.0
    told = population(before)
    found = stability(told, told.counts(now), 200.0)
    assert np.flatnonzero(found.moved).tolist() == [3, 7]
    assert found.worst(5) == [7, 3]
    assert 0.6 < found.index[3] < 1.1
    few = stability(told, told.counts(now[:20]), 20.0)
    assert not few.moved.any()


def test_collapse_by_hand() -> None:
    spread = {"1": 0.3, "9": 0.4, "36": 0.3}
    assert collapsed({"1": 196, "9": 4}, spread, LEAST_CHOICES) == "1"
    assert collapsed({"1": 195, "9": 5}, spread, LEAST_CHOICES) is None
    assert collapsed({"1": 196, "9": 4}, spread, LEAST_CHOICES - 1) is None
    assert collapsed({"1": 200}, {"1": 0.95, "9": 0.05}, 200) is None  # it was so when fitted
    assert collapsed({}, spread, 500) is None
