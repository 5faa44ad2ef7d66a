"""Boosters that start from each other: against sums and fits by hand, chains as before."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.predictor.boosting import Rows, train
from router.predictor.chain import ComplexityPredictor
from router.predictor.forest import fitting_order, summed

QUICK = {"n_estimators": 15, "learning_rate": 0.2, "min_child_samples": 10, "num_leaves": 7}
BASES = (-1, 3, 0, 0, 1)  # the second starts from the fourth, which comes later


def data(n: int = 800, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 5)).astype(np.float32)
    need = 1.5 * X[:, 0] + X[:, 1] * (X[:, 2] > 0)
    p = 1.0 / (1.0 + np.exp(need[:, None] - np.array([-1.0, 0.5, 0.2, 0.4, 2.0])))
    return X, rng.random(p.shape) < p, np.arange(n) // 5


@pytest.fixture(scope="module")
def fitted() -> ComplexityPredictor:
    X, Y, groups = data()
    return ComplexityPredictor(**QUICK, bases=BASES).fit(X, Y, groups=groups)


@given(st.permutations(range(7)), st.lists(st.integers(0, 6), min_size=7, max_size=7))
def test_every_action_is_fitted_after_its_base(order: list[int], steps: list[int]) -> None:
    bases = [-1] * 7
    for place, action in enumerate(order):
        if place and steps[place] < 6:
            bases[action] = order[steps[place] % place]
    found = fitting_order(bases)
    assert sorted(found) == list(range(7))
    for action, base in enumerate(bases):
        assert base < 0 or found.index(base) < found.index(action)
    assert fitting_order((-1, 0, 1, 2)) == (0, 1, 2, 3)
    assert fitting_order(BASES) == (0, 3, 1, 2, 4)


@pytest.mark.parametrize("bases", [(0,), (1, 0), (-1, 2, 3, 1), (-1, 5), (-2, -1)])
def test_bases_that_lead_nowhere_are_refused(bases: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"circle|indices"):
        fitting_order(bases)
    X, Y, groups = data(60)
    predictor = ComplexityPredictor(**QUICK, bases=bases)
    with pytest.raises(ValueError, match=r"circle|indices"):
        predictor.fit(X, Y[:, : len(bases)], groups=groups)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_sums_go_down_to_the_first_base(seed: int, n: int) -> None:
    scores = np.random.default_rng(seed).standard_normal((n, 5))
    found = summed(scores, BASES, fitting_order(BASES))
    for row, sums in zip(scores, found, strict=True):
        for action in range(5):
            line, at = 0.0, action
            while at >= 0:
                line, at = line + row[at], BASES[at]
            assert sums[action] == pytest.approx(line, rel=1e-12, abs=1e-12)
    alone = [summed(row[None], BASES, fitting_order(BASES))[0] for row in scores]
    np.testing.assert_array_equal(np.stack(alone), found)
    parts = np.stack([scores, 2 * scores], axis=2)
    np.testing.assert_array_equal(
        summed(parts, BASES, fitting_order(BASES)), np.stack([found, 2 * found], axis=2)
    )


@pytest.mark.parametrize("calibration", ["platt", "none"])
@pytest.mark.parametrize("constant", [None, 0, 2])
def test_a_chain_is_the_forest_of_a_line(calibration: str, constant: int | None) -> None:
    X, Y, groups = data(400)
    labels = Y[:, :4].astype(float)
    if constant is not None:
        labels[:, constant] = 1.0
    options = {**QUICK, "calibration": calibration}
    chain = ComplexityPredictor(**options, chained=True).fit(X, labels, groups=groups)
    line = ComplexityPredictor(**options, bases=(-1, 0, 1, 2)).fit(X, labels, groups=groups)
    assert line.model_texts_ == chain.model_texts_
    assert line.calibrations_ == chain.calibrations_
    assert line.bases_ == chain.bases_ == (-1, 0, 1, 2)
    np.testing.assert_array_equal(line.predict_proba(X), chain.predict_proba(X))
    single = ComplexityPredictor(**options).fit(X, labels, groups=groups)
    roots = ComplexityPredictor(**options, bases=(-1,) * 4).fit(X, labels, groups=groups)
    np.testing.assert_array_equal(roots.raw_scores(X), roots.table_(X))
    np.testing.assert_array_equal(roots.predict_proba(X), single.predict_proba(X))


def test_boosters_are_those_of_a_hand_loop_from_their_bases() -> None:
    X, Y, _ = data(500)
    options = {**QUICK, "n_folds": 0}  # nothing but the boosters on all rows
    made = ComplexityPredictor(**options, bases=BASES).fit(X, Y)
    said: dict[int, np.ndarray] = {}
    for action in (0, 3, 1, 2, 4):
        start = None if BASES[action] < 0 else said[BASES[action]]
        rows = Rows(np.ascontiguousarray(X), Y[:, action].astype(float), None, start)
        booster = train(rows, made.parameters(), 15)
        assert booster.model_to_string() == made.model_texts_[action]
        added = booster.predict(X, raw_score=True, num_threads=1)
        said[action] = added if start is None else start + added
        np.testing.assert_allclose(made.raw_scores(X)[:, action], said[action], rtol=1e-12)


def test_calibrations_are_fitted_on_the_sums_of_unseen_pictures(
    fitted: ComplexityPredictor,
) -> None:
    X, Y, _ = data(3000, seed=1)
    p = fitted.predict_proba(X)
    assert np.abs(p.mean(axis=0) - Y.mean(axis=0)).max() < 0.05
    assert all(0.3 < c.slope < 2.0 for c in fitted.calibrations_)
    single = ComplexityPredictor(**QUICK).fit(*data()[:2], groups=data()[2])
    assert fitted.score(X, Y) > single.score(X, Y) - 0.01


def test_one_row_is_the_batch_and_contributions_follow_the_bases(
    fitted: ComplexityPredictor,
) -> None:
    X = data(60, seed=2)[0]
    assert fitted.table_ is not None
    batch = fitted.raw_scores(X)
    np.testing.assert_array_equal(np.stack([fitted.raw_scores(x[None])[0] for x in X]), batch)
    parts = fitted.contributions(X)
    assert parts.shape == (60, 5, 6)
    np.testing.assert_allclose(parts.sum(axis=2), batch, atol=1e-10)
    fitted.table_, table = None, fitted.table_
    np.testing.assert_array_equal(fitted.raw_scores(X), batch)
    fitted.table_ = table


def test_bases_that_say_something_else_are_refused() -> None:
    X, Y, groups = data(60)
    with pytest.raises(ValueError, match="one of them"):
        ComplexityPredictor(chained=True, bases=BASES).fit(X, Y, groups=groups)
    with pytest.raises(ValueError, match="2 bases for 5 actions"):
        ComplexityPredictor(bases=(-1, 0)).fit(X, Y, groups=groups)
