"""The decision rule against brute force, and the price against what it promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from router.policy import (
    Policy,
    calibrate_price,
    candidate_prices,
    choose,
    choose_many,
    frontier,
    token_costs,
)

SCALES = (1, 9, 36, 144, 576)
COSTS = token_costs(SCALES)

probability = st.floats(0.0, 1.0, width=32)
values_of_5 = st.lists(probability, min_size=5, max_size=5)
prices = st.floats(0.0, 5.0)


def brute(values: list[float], costs: tuple[float, ...], price: float, allowed: list[bool]) -> int:
    """The rule as a sentence: the best utility, of equals the cheapest, of those the coarsest."""
    options = [k for k in range(len(costs)) if allowed[k]]
    best = max(values[k] - price * costs[k] for k in options)
    winners = [k for k in options if values[k] - price * costs[k] == best]
    least = min(costs[k] for k in winners)
    return next(k for k in winners if costs[k] == least)


@settings(deadline=None)  # a busy machine is no failure
@given(values_of_5, prices, st.lists(st.booleans(), min_size=5, max_size=5).filter(any))
def test_choose_is_the_brute_force_argmax(
    values: list[float], price: float, allowed: list[bool]
) -> None:
    costs = (0.3, 0.1, 0.1, 0.5, 1.0)  # costs need not ascend
    assert choose(values, costs, price, allowed) == brute(values, costs, price, allowed)


@settings(deadline=None)
@given(values_of_5, prices, st.integers(SCALES[0], 3000))
def test_choose_never_exceeds_the_cap(values: list[float], price: float, cap: int) -> None:
    assert SCALES[choose(values, COSTS, price, [s <= cap for s in SCALES])] <= cap


@settings(deadline=None)
@given(values_of_5, prices, prices)
def test_a_higher_price_never_buys_more(values: list[float], one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert COSTS[choose(values, COSTS, high)] <= COSTS[choose(values, COSTS, low)]


@settings(deadline=None)
@given(arrays.arrays(np.float64, (7, 5), elements=probability), prices)
def test_choose_many_is_choose_row_by_row(values: np.ndarray, price: float) -> None:
    costs = (0.3, 0.1, 0.1, 0.5, 1.0)
    each = [choose(row, costs, price) for row in values]
    assert choose_many(values, costs, price).tolist() == each


def test_choose_by_hand() -> None:
    assert choose([0.2, 0.6, 0.7, 0.9, 0.8], COSTS, 0.0) == 3  # not the finest: the best
    assert choose([0.2, 0.6, 0.7, 0.9, 1.0], COSTS, 0.1) == 4
    assert choose([0.2, 0.6, 0.7, 0.9, 1.0], COSTS, 0.2) == 3  # 0.1 gain for 0.75 cost
    assert choose([0.5, 0.5, 0.5, 0.5, 0.5], COSTS, 0.0) == 0  # a tie goes to the cheaper
    assert choose([0.2, 0.6, 0.7, 0.9, 1.0], COSTS, 0.0, [True, True, False, False, False]) == 1


def test_choose_refuses_what_it_cannot_decide() -> None:
    with pytest.raises(ValueError, match="NaN"):
        choose([0.1, float("nan")], (0.1, 1.0), 0.5)
    with pytest.raises(ValueError, match="no scale is allowed"):
        choose([0.1, 0.2], (0.1, 1.0), 0.5, [False, False])
    with pytest.raises(ValueError, match="finite"):
        choose_many(np.array([[0.1, np.nan]]), (0.1, 1.0), 0.5)


@pytest.mark.parametrize(
    "bad",
    [
        {"costs": (), "price": 0.1},
        {"costs": (0.1, -1.0), "price": 0.1},
        {"costs": (0.1, float("nan")), "price": 0.1},
        {"costs": (0.1, 1.0), "price": float("nan")},
        {"costs": (0.1, 1.0), "price": float("inf")},
    ],
)
def test_a_policy_is_checked(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        Policy(**bad)  # type: ignore[arg-type]


def test_the_finest_only_policy_keeps_the_cap() -> None:
    policy = Policy(COSTS, 0.0, finest_only=True)
    assert policy.choose([1.0, 0.0, 0.0, 0.0, 0.0]) == 4
    assert policy.choose([1.0, 0.0, 0.0, 0.0, 0.0], [True, True, True, False, False]) == 2


def traffic(n: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values that are the true probabilities, outcomes drawn from them, 5 questions a picture."""
    rng = np.random.default_rng(seed)
    need = rng.normal(0.0, 2.0, n)
    p = 1.0 / (1.0 + np.exp(need[:, None] - np.array([-1.0, 0.0, 1.0, 2.0, 2.5])))
    return p, (rng.random(p.shape) < p).astype(float), np.arange(n) // 5


def test_frontier_is_the_policy_run_at_each_price() -> None:
    p, y, _ = traffic(400)
    curve = frontier(p, y, COSTS, scales=SCALES)
    assert np.isfinite(np.stack([curve.price, curve.accuracy, curve.cost])).all()
    assert (np.diff(curve.price) > 0).all()
    assert (np.diff(curve.cost) <= 1e-12).all()
    for i in range(0, len(curve.price), 37):
        picks = [choose(row, COSTS, curve.price[i]) for row in p]
        assert curve.accuracy[i] == pytest.approx(y[np.arange(400), picks].mean())
        assert curve.cost[i] == pytest.approx(np.asarray(COSTS)[picks].mean())
        assert curve.cost[i] == pytest.approx(np.asarray(COSTS)[picks].mean())
        assert curve.visual_tokens[i] == pytest.approx(np.asarray(SCALES)[picks].mean())
    assert curve.visual_tokens[-1] == 1.0  # above every break-even price all go to the coarsest


def test_calibrate_price_keeps_the_target_and_takes_the_cheapest_that_does() -> None:
    p, y, pictures = traffic()
    found = calibrate_price(p, y, COSTS, pictures, target=0.99, z=0.0)
    assert found.feasible
    assert found.accuracy >= 0.99 * found.finest_accuracy
    curve = frontier(p, y, COSTS)
    reaching = curve.accuracy >= 0.99 * y[:, -1].mean() - 1e-12
    assert found.cost == pytest.approx(curve.cost[reaching].min())
    assert found.cost < 0.5
    picks = choose_many(p, COSTS, found.price)
    assert np.asarray(COSTS)[picks].mean() == pytest.approx(found.cost)


def test_calibrate_price_is_dearer_with_more_safety_and_a_higher_target() -> None:
    p, y, pictures = traffic()
    plain = calibrate_price(p, y, COSTS, pictures, z=0.0)
    safe = calibrate_price(p, y, COSTS, pictures, z=2.0)
    lax = calibrate_price(p, y, COSTS, pictures, z=0.0, target=0.9)
    assert lax.cost < plain.cost < safe.cost
    assert safe.margin > 0.0


def test_the_margin_is_the_clustered_standard_error() -> None:
    # 40 pictures of 5 equal questions: 200 rows say no more than 40 do.
    rng = np.random.default_rng(1)
    y = np.repeat((rng.random((40, 2)) < [0.5, 0.6]).astype(float), 5, axis=0)
    values = np.tile([0.5, 0.4], (200, 1))
    only = np.array([0.0])
    found = calibrate_price(
        values, y, (0.1, 1.0), np.arange(200) // 5, target=0.0, z=1.0, prices=only
    )
    by_picture = y[::5, 0]
    assert found.margin == pytest.approx(by_picture.std(ddof=1) / np.sqrt(40))


def test_an_infeasible_target_means_the_finest_scale_always() -> None:
    # Values that lie: the finest is right, the coarsest is believed.
    y = np.tile([0.0, 1.0], (50, 1))
    values = np.tile([1.0, 0.0], (50, 1))
    found = calibrate_price(values, y, (0.1, 1.0))
    assert not found.feasible
    assert (found.price, found.accuracy, found.cost) == (0.0, 1.0, 1.0)
    policy = found.policy((0.1, 1.0))
    assert policy.finest_only
    assert policy.choose(values[0]) == 1


@pytest.mark.parametrize("constant", [0.0, 0.5, 1.0])
def test_prices_are_finite_where_nothing_varies(constant: float) -> None:
    same = np.full((20, 3), constant)
    assert candidate_prices(same, (0.1, 0.3, 1.0)).tolist() == [0.0]
    found = calibrate_price(same, same, (0.1, 0.3, 1.0))
    assert found.price == 0.0
    # Where the finest scale is never right every price loses nothing, and none is any good.
    assert found.feasible == (constant > 0)
    assert found.cost == pytest.approx(0.1 if constant else 1.0)


@settings(deadline=None)
@given(
    arrays.arrays(np.float64, (12, 3), elements=probability),
    arrays.arrays(np.float64, (12, 3), elements=st.sampled_from([0.0, 1.0])),
    st.floats(0.5, 1.0),
)
def test_calibrate_price_is_never_nan_and_keeps_its_word(
    values: np.ndarray, outcomes: np.ndarray, target: float
) -> None:
    costs = (0.05, 0.3, 1.0)
    found = calibrate_price(values, outcomes, costs, np.arange(12) // 3, target=target)
    assert np.isfinite([found.price, found.accuracy, found.cost, found.margin]).all()
    policy = found.policy(costs)
    picks = [policy.choose(row) for row in values]
    reached = outcomes[np.arange(12), picks].mean()
    assert reached == pytest.approx(found.accuracy)
    assert reached >= target * outcomes[:, -1].mean() + found.margin - 1e-9


def test_shapes_that_do_not_fit_are_named() -> None:
    p, y, _ = traffic(10)
    with pytest.raises(ValueError, match="groups for 10 rows"):
        calibrate_price(p, y, COSTS, np.arange(9))
    with pytest.raises(ValueError, match="differ"):
        frontier(p, y[:, :4], COSTS)
    with pytest.raises(ValueError, match=r"expected \(n, 4\)"):
        frontier(p, y, COSTS[:4])
