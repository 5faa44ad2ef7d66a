"""Boosters that go on from given log odds, and predictors whose scales are chained."""

from pathlib import Path

import numpy as np
import pytest

from router.features.schema import feature_schema
from router.policy import Policy
from router.predictor.boosting import Rows, shift_to, train
from router.predictor.chain import ComplexityPredictor
from router.router import Router

PARAMETERS = {
    "objective": "cross_entropy", "learning_rate": 0.2, "num_leaves": 7, "verbosity": -1,
    "deterministic": True, "force_row_wise": True, "num_threads": 1,
}  # fmt: skip
QUICK = {"n_estimators": 60, "learning_rate": 0.1}


def logistic(z: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-z))


def questions(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, true P(scale suffices) of three scales, outcomes."""
    rng = np.random.default_rng(seed)
    need = rng.uniform(0.0, 3.0, n)
    X = np.column_stack([need, rng.normal(size=(n, 3))]).astype(np.float32)
    p = logistic(4.0 * (np.arange(3) + 0.5 - need[:, None]))
    return X, p, (rng.random(p.shape) < p).astype(float)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_shift_gives_the_mean_of_the_labels(weighted: bool) -> None:
    rng = np.random.default_rng(0)
    start, y = rng.normal(0.0, 3.0, 200), rng.random(200)
    weight = rng.random(200) if weighted else None
    p = logistic(start + shift_to(start, y, weight))
    assert np.average(p, weights=weight) == pytest.approx(np.average(y, weights=weight), abs=1e-7)


def test_shift_by_hand() -> None:
    assert shift_to(np.full(4, 2.0), np.array([1.0, 0.0, 0.0, 0.0])) == pytest.approx(
        np.log(1 / 3) - 2.0, abs=1e-6
    )


def test_a_start_that_says_everything_leaves_only_the_shift() -> None:
    X, p, _ = questions(500, 1)
    z = np.log(p[:, 1] / (1.0 - p[:, 1]))
    booster = train(Rows(X, p[:, 1], start=z - 0.7), PARAMETERS, 5)
    added = booster.predict(X, raw_score=True)
    np.testing.assert_allclose(added, 0.7, atol=0.05)


def test_going_on_fits_what_is_left() -> None:
    X, p, _ = questions(800, 2)
    start = 2.0 * X[:, 1].astype(float)
    booster = train(Rows(X, p[:, 1], start=start), PARAMETERS, 150)
    again = type(booster)(model_str=booster.model_to_string())
    got = logistic(start + again.predict(X, raw_score=True))
    assert np.abs(got - p[:, 1]).mean() < 0.06


@pytest.mark.parametrize("calibration", ["platt", "none"])
def test_a_chained_predictor_finds_the_probabilities(calibration: str) -> None:
    X, _, Y = questions(1800, 3)
    fresh, p, _ = questions(500, 4)
    made = ComplexityPredictor(**QUICK, chained=True, calibration=calibration)
    made.fit(X, Y, groups=np.arange(len(X)) // 3)
    assert np.abs(made.predict_proba(fresh) - p).mean() < 0.07
    sums = np.stack([b.predict(fresh, raw_score=True) for b in made.boosters_], 1).cumsum(axis=1)
    np.testing.assert_allclose(made.raw_scores(fresh), sums, atol=1e-12)
    parts = made.contributions(fresh[:10])
    np.testing.assert_allclose(parts.sum(axis=2), made.raw_scores(fresh[:10]), atol=1e-10)


def test_equal_scales_are_learnt_once() -> None:
    X, p, _ = questions(900, 5)
    Y = np.repeat(p[:, :1], 3, axis=1)
    trees = {
        chained: [
            booster.num_trees()
            for booster in ComplexityPredictor(**QUICK, chained=chained).fit(X, Y).boosters_
        ]
        for chained in (False, True)
    }
    assert trees[False][1] == trees[False][0]
    made = ComplexityPredictor(**QUICK, chained=True, calibration="none").fit(X, Y)
    raw = made.raw_scores(X)
    assert np.abs(raw[:, 2] - raw[:, 1]).mean() < 0.3


def test_a_scale_that_never_varies_does_not_break_the_chain() -> None:
    X, p, Y = questions(1500, 6)
    Y[:, 1] = 1.0
    made = ComplexityPredictor(**QUICK, chained=True).fit(X, Y)
    got = made.predict_proba(X)
    assert (got[:, 1] == 1.0).all()
    assert np.abs(got[:, 2] - p[:, 2]).mean() < 0.07


def test_a_saved_chained_router_says_the_same(tmp_path: Path) -> None:
    schema = feature_schema((1, 9, 36), 6, 8)
    rng = np.random.default_rng(7)
    X = rng.normal(size=(400, len(schema.names))).astype(np.float32)
    Y = logistic(X[:, :1] + np.array([-1.0, 0.0, 1.0]))
    router = Router(
        ComplexityPredictor(**QUICK, chained=True).fit(X, Y), schema, Policy((0.1, 0.3, 1.0), 0.1)
    )
    back = Router.from_pretrained(router.save_pretrained(tmp_path / "router"))
    np.testing.assert_array_equal(back.predict_values(X), router.predict_values(X))
    one = back.route(X[0]).p_suffices
    assert one is not None
    np.testing.assert_allclose(list(one.values()), router.predict_values(X[:1])[0], atol=1e-12)
