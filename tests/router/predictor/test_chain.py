"""The predictor learns what is there, refuses what it cannot read, and is the same every time."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold

from router.errors import FeatureMismatch
from router.predictor.calibration import Calibration, constant, fit_calibration
from router.predictor.chain import ComplexityPredictor

QUICK = {"n_estimators": 40, "learning_rate": 0.2, "min_child_samples": 10, "num_leaves": 7}


def data(n: int = 1500, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features, true P(suffices) at three scales, drawn labels, pictures of five questions."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, 6)).astype(np.float32)
    need = 1.5 * X[:, 0] + X[:, 1] * (X[:, 2] > 0)
    p = 1.0 / (1.0 + np.exp(need[:, None] - np.array([-1.0, 0.5, 2.0])))
    return X, p, rng.random(p.shape) < p, np.arange(n) // 5


@pytest.fixture(scope="module")
def fitted() -> ComplexityPredictor:
    X, _, Y, groups = data()
    return ComplexityPredictor(**QUICK).fit(X, Y, groups=groups)


def test_it_learns_the_probabilities(fitted: ComplexityPredictor) -> None:
    X, p, Y, _ = data(2000, seed=1)
    got = fitted.predict_proba(X)
    assert got.shape == (2000, 3)
    assert ((got >= 0) & (got <= 1)).all()
    assert np.abs(got - p).mean() < 0.1
    assert np.abs(got.mean(axis=0) - Y.mean(axis=0)).max() < 0.03
    guess = np.tile(Y.mean(axis=0), (2000, 1))
    assert ((got - p) ** 2).mean() < 0.25 * ((guess - p) ** 2).mean()


def test_soft_labels_teach_more_than_drawn_ones() -> None:
    X, p, Y, groups = data(600)
    fresh, truth, _, _ = data(2000, seed=2)
    soft = ComplexityPredictor(**QUICK).fit(X, p, groups=groups).predict_proba(fresh)
    hard = ComplexityPredictor(**QUICK).fit(X, Y, groups=groups).predict_proba(fresh)
    assert ((soft - truth) ** 2).mean() < 0.6 * ((hard - truth) ** 2).mean()


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_a_constant_column_gives_that_constant(value: float) -> None:
    X, _, Y, groups = data(300)
    labels = Y.astype(float)
    labels[:, 2] = value
    predictor = ComplexityPredictor(**QUICK).fit(X, labels, groups=groups)
    assert (predictor.predict_proba(X)[:, 2] == value).all()
    assert predictor.calibrations_[2].one(3.7) == value
    assert len(predictor.boosters_) == 3
    assert np.ptp(predictor.predict_proba(X)[:, 0]) > 0.3


def test_all_columns_constant() -> None:
    X, _, _, _ = data(50)
    predictor = ComplexityPredictor().fit(X, np.tile([0.0, 1.0], (50, 1)))
    assert predictor.predict_proba(X).tolist() == [[0.0, 1.0]] * 50


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_raise(fitted: ComplexityPredictor, bad: float) -> None:
    X, _, Y, _ = data(50)
    X[7, 3] = bad
    with pytest.raises(ValueError, match="row 7, column 3"):
        fitted.predict_proba(X)
    with pytest.raises(ValueError, match="row 7, column 3"):
        ComplexityPredictor().fit(X, Y)


def test_wrong_shapes_and_labels_raise(fitted: ComplexityPredictor) -> None:
    X, _, Y, _ = data(50)
    with pytest.raises(FeatureMismatch, match="got 5 features, the predictor was fitted on 6"):
        fitted.predict_proba(X[:, :5])
    with pytest.raises(ValueError, match=r"\(n, F\)"):
        fitted.predict_proba(X[0])
    with pytest.raises(ValueError, match="labels"):
        ComplexityPredictor().fit(X, Y[:49])
    with pytest.raises(ValueError, match="labels"):
        ComplexityPredictor().fit(X, Y[:, 0])
    for wrong in (2.0, -0.1, np.nan):
        labels = Y.astype(float)
        labels[0, 0] = wrong
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            ComplexityPredictor().fit(X, labels)
    with pytest.raises(ValueError, match="groups"):
        ComplexityPredictor().fit(X, Y, groups=np.arange(49))
    with pytest.raises(ValueError, match="weights"):
        ComplexityPredictor().fit(X, Y, sample_weight=-np.ones(50))
    with pytest.raises(NotFittedError, match="call fit first"):
        ComplexityPredictor().predict_proba(X)
    assert fitted.predict_proba(X[:0]).shape == (0, 3)


def test_fitting_twice_gives_the_same_text(fitted: ComplexityPredictor) -> None:
    X, _, Y, groups = data()
    again = clone(fitted).fit(X, Y, groups=groups)
    assert again.model_texts_ == fitted.model_texts_
    assert again.calibrations_ == fitted.calibrations_
    other = ComplexityPredictor(**QUICK, seed=1).fit(X, Y, groups=groups)
    assert other.model_texts_ != fitted.model_texts_


@pytest.mark.parametrize("calibration", ["none", "platt", "isotonic"])
def test_weights_count(calibration: str) -> None:
    X = np.zeros((400, 2), dtype=np.float32)
    Y = np.repeat([[1.0], [0.0]], 200, axis=0)
    weight = np.repeat([3.0, 1.0], 200)
    predictor = ComplexityPredictor(**QUICK, calibration=calibration)
    predictor.fit(X, Y, sample_weight=weight)
    assert predictor.predict_proba(X[:1])[0, 0] == pytest.approx(0.75, abs=0.02)


def test_noise_teaches_nothing_because_scores_come_from_unseen_pictures() -> None:
    X, _, _, groups = data(600)
    Y = np.repeat(np.random.default_rng(0).random((120, 2)) < 0.4, 5, axis=0)
    X[:, 0] = groups  # a feature that betrays the picture, as a background may
    predictor = ComplexityPredictor(**QUICK).fit(X, Y, groups=groups)
    assert predictor.predict_proba(X).std(axis=0).max() < 0.1
    np.testing.assert_allclose(predictor.predict_proba(X).mean(0), Y.mean(0), atol=0.05)


def test_folds_share_no_picture_and_leave_no_row_out() -> None:
    groups = np.array([f"picture {n % 37}" for n in range(400)])
    folds = ComplexityPredictor(n_folds=4)._folds(400, groups)
    assert sorted(np.concatenate(folds)) == list(range(400))
    pictures = [set(groups[fold]) for fold in folds]
    assert sum(map(len, pictures)) == len(set.union(*pictures)) == 37
    assert ComplexityPredictor(n_folds=0)._folds(400, groups) == []
    assert ComplexityPredictor(n_folds=4)._folds(400, np.arange(400) % 7) == []


def test_too_few_pictures_for_folds_still_fit() -> None:
    X, _, Y, _ = data(30)
    predictor = ComplexityPredictor(n_estimators=3, min_child_samples=2)
    predictor.fit(X, Y, groups=np.arange(30) % 3)
    assert [calibration.kind for calibration in predictor.calibrations_] == ["none"] * 3
    assert [booster.num_trees() for booster in predictor.boosters_] == [3] * 3


def test_it_is_a_scikit_learn_estimator() -> None:
    X, _, Y, groups = data(300)
    search = GridSearchCV(
        ComplexityPredictor(**QUICK), {"num_leaves": [2, 7]}, cv=GroupKFold(3), refit=True
    )
    search.fit(X, Y, groups=groups)
    assert search.best_params_["num_leaves"] in (2, 7)
    assert search.best_score_ > -0.7  # log loss below that of a coin
    assert search.best_estimator_.predict_proba(X).shape == (300, 3)
    assert ComplexityPredictor(seed=3).get_params()["seed"] == 3


@pytest.mark.parametrize("kind", ["none", "platt", "isotonic"])
def test_one_row_is_the_batch(kind: str) -> None:
    X, _, Y, groups = data(600)
    predictor = ComplexityPredictor(**QUICK, calibration=kind).fit(X, Y, groups=groups)
    batch = predictor.predict_proba(X[:100])
    for row, expected in zip(X[:100], batch, strict=True):
        raw = predictor.unchecked_scores(row[None])[0].tolist()
        got = [c.one(z) for c, z in zip(predictor.calibrations_, raw, strict=True)]
        assert got == expected.tolist()


def test_trees_too_large_for_a_table_predict_by_themselves() -> None:
    X, _, Y, _ = data(600)
    large = ComplexityPredictor(n_estimators=3, num_leaves=40, min_child_samples=2).fit(X, Y)
    assert large.table_ is None
    expected = [booster.predict(X, raw_score=True) for booster in large.boosters_]
    np.testing.assert_array_equal(large.raw_scores(X), np.stack(expected, axis=1))


def test_contributions_add_up_to_the_raw_score() -> None:
    X, _, Y, _ = data(600)
    predictor = ComplexityPredictor(**QUICK).fit(X, Y)
    parts = predictor.contributions(X[:20])
    assert parts.shape == (20, Y.shape[1], X.shape[1] + 1)
    np.testing.assert_allclose(parts.sum(axis=2), predictor.raw_scores(X[:20]), atol=1e-10)
    with pytest.raises(FeatureMismatch):
        predictor.contributions(X[:, 1:])


def test_platt_is_the_logistic_regression_on_the_score() -> None:
    rng = np.random.default_rng(0)
    raw = rng.normal(0.0, 2.0, 4000)
    labels = (rng.random(4000) < 1.0 / (1.0 + np.exp(-(0.5 * raw - 1.0)))).astype(float)
    got = fit_calibration("platt", raw, labels)
    reference = LogisticRegression(C=np.inf).fit(raw[:, None], labels)
    assert got.slope == pytest.approx(reference.coef_[0, 0], abs=5e-3)
    assert got.offset == pytest.approx(reference.intercept_[0], abs=5e-3)


def test_a_score_that_points_the_wrong_way_gives_the_base_rate() -> None:
    rng = np.random.default_rng(0)
    raw = rng.normal(0.0, 1.0, 1000)
    labels = (rng.random(1000) < 1.0 / (1.0 + np.exp(raw))).astype(float)
    got = fit_calibration("platt", raw, labels)
    assert got.slope == 0.0
    assert got.one(5.0) == pytest.approx(labels.mean(), abs=0.01)


def test_calibration_stays_finite_on_separable_and_tiny_sets() -> None:
    raw = np.linspace(-5, 5, 100)
    got = fit_calibration("platt", raw, (raw > 0).astype(float))
    assert np.isfinite([got.slope, got.offset]).all()
    assert got.one(5.0) > 0.99
    assert got.one(-800.0) == 0.0  # no overflow
    assert fit_calibration("platt", raw[:5], np.ones(5)).kind == "none"
    assert fit_calibration("isotonic", raw, np.ones(100)).kind == "none"


@pytest.mark.parametrize(
    "made",
    [
        Calibration("none"),
        constant(1.0),
        Calibration("platt", slope=0.1 + 0.2, offset=-1 / 3),
        Calibration("isotonic", x=(-1.0, 0.5), y=(0.0, 1 / 3)),
    ],
)
def test_calibrations_survive_json(made: Calibration) -> None:
    assert Calibration.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "magic"},
        {"slope": float("nan")},
        {"kind": "isotonic"},
        {"kind": "isotonic", "x": [0.0, 1.0], "y": [0.5, 0.4]},
        {"kind": "isotonic", "x": [0.0, 1.0], "y": [0.5]},
        {"kind": "constant", "y": [1.5]},
        {"kind": "constant", "y": []},
    ],
)
def test_numbers_that_are_no_calibration_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="calibration"):
        Calibration.from_json(Calibration("none").to_json() | change)
