"""The trees as arrays against LightGBM's own predictions, bit for bit."""

import re

import lightgbm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.predictor.trees import MAX_LEAVES, table_of

ODD = (0.0, -0.0, 1e-36, -1e-36, 1e-35, -1e-35, 1.1e-35, -1.1e-35, 1e-40, 3e38, -3e38, 0.5, -0.5)


def booster(
    X: np.ndarray, y: np.ndarray, n_trees: int, num_leaves: int,
    categorical: list[int] | str = "auto", **more: object,
) -> lightgbm.Booster:  # fmt: skip
    params = {
        "objective": "cross_entropy", "num_leaves": num_leaves, "min_data_in_leaf": 1,
        "min_sum_hessian_in_leaf": 0.0, "max_bin": 31, "verbosity": -1, "num_threads": 1, **more,
    }  # fmt: skip
    data = lightgbm.Dataset(X, y, params=params, categorical_feature=categorical)
    return lightgbm.train(params, data, num_boost_round=n_trees)


def expected(boosters: list[lightgbm.Booster], X: np.ndarray) -> np.ndarray:
    return np.stack([b.predict(X, raw_score=True) for b in boosters], axis=1)


@given(
    seed=st.integers(0, 2**31),
    trees=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    num_leaves=st.integers(2, MAX_LEAVES),
    n=st.integers(1, 70),
)
@settings(max_examples=25, deadline=None)
def test_scores_are_lightgbms_to_the_last_bit(
    seed: int, trees: list[int], num_leaves: int, n: int
) -> None:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((120, 4)).astype(np.float32)
    X[:, 1] = rng.integers(-2, 3, len(X))  # ties, and a bin of its own for zero
    X[:, 2] = rng.choice(ODD, len(X))
    boosters = [booster(X, rng.random(len(X)), count, num_leaves) for count in trees]
    texts = [one.model_to_string() for one in boosters]
    table = table_of(texts)
    assert table is not None
    lines = re.findall(r"^threshold=(.+)$", "\n".join(texts), re.MULTILINE)
    at_thresholds = np.array(" ".join(lines).split(), np.float32)
    asked = rng.choice(np.concatenate([X.ravel(), at_thresholds, np.float32(ODD)]), (n, 4))
    asked = np.where(rng.random((n, 4)) < 0.3, np.nextafter(asked, np.float32(np.inf)), asked)
    asked = asked.astype(np.float32)
    got = table(asked)
    np.testing.assert_array_equal(got, expected(boosters, asked))
    np.testing.assert_array_equal(np.concatenate([table(row[None]) for row in asked]), got)


def test_blocks_of_rows_and_trees_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 5)).astype(np.float32)
    boosters = [booster(X, rng.random(len(X)), count, 15) for count in (20, 7)]
    table = table_of([one.model_to_string() for one in boosters])
    assert table is not None
    whole = table(X)
    np.testing.assert_array_equal(whole, expected(boosters, X))
    for rows, tree_rows, splits in ((7, 30, 50), (1, 1, 1), (200, 10**9, 10**9)):
        monkeypatch.setattr("router.predictor.trees._ROWS_AT_ONCE", rows)
        monkeypatch.setattr("router.predictor.trees._TREE_ROWS_AT_ONCE", tree_rows)
        monkeypatch.setattr("router.predictor.trees._SPLITS_AT_ONCE", splits)
        np.testing.assert_array_equal(table(X), whole)


def test_a_constant_label_is_a_tree_without_a_split() -> None:
    X = np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32)
    constant = booster(X, np.ones(50), 1, 7, min_sum_hessian_in_leaf=1e-3)
    assert "num_leaves=1" in constant.model_to_string()
    for boosters in ([constant], [constant, booster(X, X[:, 0] ** 2 % 1, 5, 7)]):
        table = table_of([one.model_to_string() for one in boosters])
        assert table is not None
        np.testing.assert_array_equal(table(X), expected(boosters, X))


def test_no_rows_give_no_scores() -> None:
    X = np.random.default_rng(0).standard_normal((60, 3)).astype(np.float32)
    table = table_of([booster(X, X[:, 0] > 0, 3, 4).model_to_string()] * 2)
    assert table is not None
    assert table(X[:0]).shape == (0, 2)


def test_what_a_table_cannot_hold_is_said() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((400, 3)).astype(np.float32), rng.random(400)
    X[:, 2] = rng.integers(0, 6, len(X))
    ordinary = booster(X, y, 2, 15).model_to_string()
    usual = {"min_data_in_leaf": 5, "min_sum_hessian_in_leaf": 1e-3}
    odd = [
        booster(X, y, 2, MAX_LEAVES + 1).model_to_string(),
        booster(X, 0.1 + 0.8 * (X[:, 2] % 3 == 0), 2, 15, [2], **usual).model_to_string(),
        booster(X, y, 2, 15, **usual, linear_tree=True).model_to_string(),
        ordinary.replace("decision_type=2", "decision_type=6", 1),  # zero counts as missing
    ]
    for text in odd:
        assert table_of([ordinary, text]) is None
    X[::7, 0] = np.nan  # missing values in the data change nothing for rows that have none
    seen = booster(X, y, 5, 15)
    table = table_of([seen.model_to_string()])
    assert table is not None
    asked = np.nan_to_num(X)
    np.testing.assert_array_equal(table(asked), expected([seen], asked))
