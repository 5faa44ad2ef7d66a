"""Features that are no array: the same predictor, whatever they lie in; bins are made once."""

from typing import Any

import numpy as np
import pytest

from router.predictor import boosting, chain, linear, matrix
from router.predictor.chain import ComplexityPredictor
from router.predictor.linear import fit_linear
from router.predictor.matrix import in_memory

N, F = 1200, 8
QUICK = {"n_estimators": 30, "learning_rate": 0.2, "chained": True, "min_child_samples": 20}


class Shelf:
    """Rows that are handed out only in slices; at most ``most`` of them at once."""

    def __init__(self, rows: np.ndarray, most: int | None = None) -> None:
        self.rows, self.most, self.asked = rows, most, 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.shape

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any) -> Any:
        found = self.rows[key]
        if not isinstance(key, slice):
            return Shelf(found, self.most)
        assert self.most is None or len(found) <= self.most
        return found.copy()


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, (n, 3) labels, and four questions a picture."""
    random = np.random.default_rng(0)
    X = random.normal(size=(N, F)).astype(np.float32)
    chance = 1.0 / (1.0 + np.exp(-2.0 * (X[:, :1] + np.array([-1.0, 0.0, 1.0]))))
    return X, (random.random(chance.shape) < chance).astype(float), np.arange(N) // 4


@pytest.mark.parametrize("calibration", ["none", "platt"])
@pytest.mark.parametrize("sampled", [200, 10_000])
def test_the_same_predictor_comes_of_an_array_and_of_slices(
    data: tuple, calibration: str, sampled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, Y, groups = data
    monkeypatch.setattr(boosting, "SAMPLED", sampled)
    monkeypatch.setattr(matrix, "BLOCK", 100)
    monkeypatch.setattr(boosting, "BLOCK", 100)
    weight = np.random.default_rng(1).random(N)
    made = [
        ComplexityPredictor(**QUICK, calibration=calibration).fit(rows, Y, weight, groups=groups)
        for rows in (X, Shelf(X, 100))
    ]
    assert made[0].model_texts_ == made[1].model_texts_
    assert made[0].calibrations_ == made[1].calibrations_
    assert (made[0].probe_row_ == made[1].probe_row_).all()
    assert (made[0].predict_proba(X) == made[1].predict_proba(Shelf(X, 100))).all()


def test_bounds_of_some_rows_serve_them_all(data: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    X, Y, groups = data
    whole = ComplexityPredictor(**QUICK).fit(X, Y, groups=groups)
    monkeypatch.setattr(boosting, "SAMPLED", 400)
    some = ComplexityPredictor(**QUICK).fit(X, Y, groups=groups)
    assert some.model_texts_ != whole.model_texts_
    chance = 1.0 / (1.0 + np.exp(-2.0 * (X[:, :1] + np.array([-1.0, 0.0, 1.0]))))
    far, near = (np.abs(each.predict_proba(X) - chance).mean() for each in (some, whole))
    assert far < near + 0.01


@pytest.mark.parametrize(("calibration", "datasets"), [("none", 3), ("platt", 9)])
def test_features_are_binned_once_for_all_actions(
    data: tuple, calibration: str, datasets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All rows, and the kept and the watched ones of every fold that is fitted."""
    X, Y, groups = data
    asked: list[int] = []

    def counting(matrix: Any, rows: np.ndarray, *more: Any, **named: Any) -> boosting.Binned:
        asked.append(len(rows))
        return boosting.binned(matrix, rows, *more, **named)

    monkeypatch.setattr(chain, "binned", counting)
    ComplexityPredictor(**QUICK, calibration=calibration).fit(X, Y, groups=groups)
    assert len(asked) == datasets
    assert sum(asked) == N * (datasets + 1) // 2


def test_what_is_not_finite_is_found_in_any_block(
    data: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, Y, _ = data
    monkeypatch.setattr(matrix, "BLOCK", 100)
    X = X.copy()
    X[1107, 3] = np.nan
    with pytest.raises(ValueError, match="row 1107, column 3 is nan"):
        ComplexityPredictor(**QUICK).fit(Shelf(X), Y)


def test_the_ridge_takes_evenly_spaced_rows_of_many(
    data: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    X, Y, _ = data
    monkeypatch.setattr(linear, "MOST_ROWS", 300)
    found = fit_linear(Shelf(X), Y, 20.0)
    assert (found.weights == fit_linear(X[::4], Y[::4], 20.0).weights).all()
    assert (in_memory(Shelf(X)) == X).all()
