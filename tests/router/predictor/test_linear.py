"""The linear half of a predictor: against scikit-learn, row by row, through a folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from router import ComplexityPredictor, Policy, Router
from router.errors import RouterFileError
from router.features.schema import feature_schema
from router.predictor.linear import LinearScores, fit_linear

SCALES = (1, 9, 36)
SCHEMA = feature_schema(SCALES, 6, 8)
RNG = np.random.default_rng(5)
X = RNG.standard_normal((400, len(SCHEMA.names))).astype(np.float32)
X[:, 3] = 2.0  # a feature that never varies
Y = 1.0 / (1.0 + np.exp(-X[:, :1] - np.array([-1.0, 0.0, 1.5])))
LINEAR = fit_linear(X, Y, strength=20.0)


def router_with(linear: LinearScores | None) -> Router:
    predictor = ComplexityPredictor(n_estimators=10, chained=True, calibration="none").fit(X, Y)
    predictor.linear_ = linear
    return Router(predictor, SCHEMA, Policy((0.03, 0.25, 1.0), 0.1))


def test_it_is_the_ridge_regression_of_the_library() -> None:
    hard = (RNG.random(400) < Y[:, 1]).astype(float)
    ours = fit_linear(X, hard[:, None], strength=20.0)(X)[:, 0]
    standard = (X - X.mean(axis=0)) / np.where(X.std(axis=0) > 1e-6, X.std(axis=0), 1.0)
    theirs = LogisticRegression(C=1 / 20, max_iter=300).fit(standard, hard)
    assert ours == pytest.approx(theirs.decision_function(standard), abs=1e-2)


def test_a_row_says_alone_what_it_says_among_others() -> None:
    together = LINEAR(X)
    alone = np.concatenate([LINEAR(row[None]) for row in X])
    assert (together == alone).all()


def test_contributions_add_up_and_the_mean_is_taken() -> None:
    with_it, without = router_with(LINEAR).predictor, router_with(None).predictor
    mean = 0.5 * (without.raw_scores(X) + LINEAR(X))
    assert with_it.raw_scores(X) == pytest.approx(mean)
    assert with_it.contributions(X).sum(axis=-1) == pytest.approx(mean)


def test_a_folder_keeps_it_and_refuses_a_damaged_one(tmp_path: Path) -> None:
    router = router_with(LINEAR)
    again = Router.from_pretrained(router.save_pretrained(tmp_path))
    assert again.version == router.version != router_with(None).version
    assert (again.predictor.raw_scores(X) == router.predictor.raw_scores(X)).all()
    file = tmp_path / "calibration.json"
    for change in ({"offset": [0.0, 0.0]}, {"scale": [0.0] * X.shape[1]}, {"mean": "x"}):
        stored = json.loads(file.read_text())
        damaged = {**stored, "linear": {**stored["linear"], **change}}
        file.write_text(json.dumps(damaged))
        with pytest.raises(RouterFileError, match=r"calibration\.json is damaged"):
            Router.from_pretrained(tmp_path)
        file.write_text(json.dumps(stored))
