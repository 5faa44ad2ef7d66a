"""Costs that depend on the question: every array function against the same thing row by row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from router.certificate.proof import picture_losses, price_family
from router.policy import (
    Policy,
    calibrate_price,
    candidate_prices,
    choose,
    choose_many,
    costs_of_row,
    frontier,
    row_costs,
    token_costs,
)

SCALES = (1, 9, 36, 144, 576)
COSTS = token_costs(SCALES)
GPU = (0.4, 0.4, 0.45, 0.7, 1.3)  # a line with bends, level at its cheap end

probability = st.floats(0.0, 1.0, width=32)
few = st.sampled_from([0.0, 0.25, 0.5, 1.0])  # so that there are ties


def brute(values: np.ndarray, costs: np.ndarray, price: float) -> int:
    """The best utility, of equals the cheapest of this row, of those the first."""
    utilities = [v - price * c for v, c in zip(values.tolist(), costs.tolist(), strict=True)]
    winners = [k for k, u in enumerate(utilities) if u == max(utilities)]
    return min(winners, key=lambda k: (costs[k], k))


@settings(deadline=None)
@given(
    arrays.arrays(np.float64, (6, 4), elements=few | probability),
    arrays.arrays(np.float64, (6, 4), elements=few | probability),
    st.sampled_from([0.0, 0.5, 1.0]) | st.floats(-2.0, 5.0),
)
def test_choices_are_the_brute_force_ones(
    values: np.ndarray, costs: np.ndarray, price: float
) -> None:
    expected = [brute(v, c, price) for v, c in zip(values, costs, strict=True)]
    assert choose_many(values, costs, price).tolist() == expected
    assert [choose(v, c, price) for v, c in zip(values, costs, strict=True)] == expected
    policy = Policy((0.1, 1.0), price)
    assert [policy.choose(v, None, c) for v, c in zip(values, costs, strict=True)] == expected


@settings(deadline=None)
@given(
    arrays.arrays(np.float64, (8, 5), elements=probability),
    arrays.arrays(np.float64, (8, 5), elements=st.sampled_from([0.0, 1.0])),
)
def test_equal_rows_are_the_costs_of_all(values: np.ndarray, outcomes: np.ndarray) -> None:
    rows = np.tile(COSTS, (8, 1))
    # Quantiles of the same break-even prices in another order may differ in the last bit.
    np.testing.assert_allclose(candidate_prices(values, rows), candidate_prices(values, COSTS))
    grid = candidate_prices(values, COSTS)
    one, other = (frontier(values, outcomes, c, prices=grid) for c in (COSTS, rows))
    for name in ("price", "accuracy", "cost", "visual_tokens"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-12)
    found, same = (calibrate_price(values, outcomes, c, prices=grid) for c in (COSTS, rows))
    assert found.price == same.price
    assert found.cost == pytest.approx(same.cost)


def traffic(n: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Values, outcomes, tokens of six actions (two of them foci), pictures."""
    rng = np.random.default_rng(0)
    p = 1.0 / (1.0 + np.exp(rng.normal(0, 2, n)[:, None] - np.array([-1, 0, 1, 1, 2, 2.5])))
    tokens = np.tile([1, 9, 0, 36, 0, 576], (n, 1))
    tokens[:, 2] = 9 + 4 * rng.integers(0, 13, n)
    tokens[:, 4] = 36 + 4 * rng.integers(0, 49, n)
    return p, (rng.random(p.shape) < p).astype(float), tokens, np.arange(n) // 4


def test_the_curve_is_the_policy_run_row_by_row() -> None:
    p, y, tokens, _ = traffic()
    costs = row_costs(tokens, SCALES, COSTS)
    curve = frontier(p, y, costs, scales=tokens)
    assert (np.diff(curve.cost) <= 1e-12).all()  # what a certificate's family rests on
    assert len(curve.price) > 100
    for i in range(0, len(curve.price), 41):
        picks = [brute(v, c, curve.price[i]) for v, c in zip(p, costs, strict=True)]
        rows = np.arange(len(p))
        assert curve.accuracy[i] == pytest.approx(y[rows, picks].mean())
        assert curve.cost[i] == pytest.approx(costs[rows, picks].mean())
        assert curve.visual_tokens[i] == pytest.approx(tokens[rows, picks].mean())
    cheapest = costs.min(axis=1).mean()
    assert curve.cost[-1] == pytest.approx(cheapest)  # above every break-even price


def test_the_price_keeps_the_target_on_rows_of_their_own_cost() -> None:
    p, y, tokens, pictures = traffic(2000)
    costs = row_costs(tokens, SCALES, COSTS)
    found = calibrate_price(p, y, costs, pictures, target=0.99, z=0.0)
    assert found.feasible
    picks = choose_many(p, costs, found.price)
    assert costs[np.arange(len(p)), picks].mean() == pytest.approx(found.cost)
    assert y[np.arange(len(p)), picks].mean() >= 0.99 * y[:, -1].mean()
    never = calibrate_price(1 - p, y, costs, pictures, target=1.0, z=5.0, prices=np.array([9.0]))
    assert (never.feasible, never.cost) == (False, 1.0)


def test_losses_by_picture_take_rows_of_costs() -> None:
    p, y, tokens, pictures = traffic()
    costs = row_costs(tokens, SCALES, COSTS)
    prices = price_family(COSTS)
    losses = picture_losses(p, y, costs, pictures, prices, "harm")
    assert losses.shape == (len(prices) + 1, pictures.max() + 1)
    assert not losses[0].any()  # always the anchor, which is the last action
    middle = len(prices) // 2
    picks = np.array([brute(v, c, prices[middle]) for v, c in zip(p, costs, strict=True)])
    harm = (y[:, -1] > 0.5) & (y[np.arange(len(y)), picks] < 0.5)
    assert losses[middle + 1].mean() == pytest.approx(harm.mean())


@settings(deadline=None)
@given(st.lists(st.integers(1, 576), min_size=1, max_size=12), st.sampled_from([COSTS, GPU]))
def test_costs_lie_on_the_line_through_the_scales(
    tokens: list[int], costs: tuple[float, ...]
) -> None:
    found = row_costs(np.array(tokens), SCALES, costs)
    np.testing.assert_allclose(found, np.interp(tokens, SCALES, costs), rtol=1e-12)
    assert costs_of_row(tokens, SCALES, costs) == tuple(found.tolist())  # to the last bit
    twice = row_costs(np.array([tokens, tokens[::-1]]), SCALES, costs)
    assert twice.tolist() == [found.tolist(), found.tolist()[::-1]]
    order = np.argsort(tokens, kind="stable")
    assert (np.diff(found[order]) >= 0).all()
    if costs is COSTS:
        np.testing.assert_allclose(found, np.array(tokens) / 576, rtol=1e-12)


def test_a_scale_costs_what_it_is_said_to() -> None:
    for costs in (COSTS, GPU):
        assert row_costs(np.array(SCALES), SCALES, costs).tolist() == list(costs)
        assert costs_of_row(SCALES, SCALES, costs) == costs
    assert row_costs(np.array([[7]]), (7,), (0.5,)).tolist() == [[0.5]]
    for wrong in ([0], [577]):
        with pytest.raises(ValueError, match="beyond the scales"):
            row_costs(np.array(wrong), SCALES, COSTS)
        with pytest.raises(ValueError, match="beyond the scales"):
            costs_of_row(wrong, SCALES, COSTS)
    with pytest.raises(ValueError, match="2 costs for 5 scales"):
        row_costs(np.array([9]), SCALES, (0.1, 0.2))


def test_costs_that_do_not_fit_are_named() -> None:
    p, y, tokens, _ = traffic(10)
    costs = row_costs(tokens, SCALES, COSTS)
    with pytest.raises(ValueError, match=r"expected \(9, 6\) values"):
        choose_many(p, costs[:9], 0.1)
    with pytest.raises(ValueError, match=r"expected \(10, 5\) values"):
        frontier(p, y, costs[:, :5])
    with pytest.raises(ValueError, match="costs must be finite"):
        choose_many(p, np.where(tokens == 9, np.inf, costs), 0.1)
