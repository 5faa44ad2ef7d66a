"""The predictor benchmark over scales and foci: bases, descriptions and eliminations by hand."""

import numpy as np
import predictors
import pytest
from _predictors import chained, elimination, kinds, mixed
from _predictors import splits as parts

from router.actions import Action, ActionSpace, CellRule

SPACE = ActionSpace(
    (
        Action("1", 1),
        Action("9", 9, base="1"),
        Action("9+144@500x6", 9, 144, CellRule(500, "none", 6), "9"),
        Action("1+144@350wx9", 1, 144, CellRule(350, "row", 9), "1"),
        Action("144", 144, base="9"),
        Action("576", 576, base="144"),
    )
)
SMALL = {**kinds.SETTINGS, "min_data_in_leaf": 20, "learning_rate": 0.2}
REACH = np.array([0.5, 1.0, 2.0, 1.5, 2.5, 3.0])  # what an action can answer


def questions(pictures: int, seed: int) -> parts.Part:
    """Four questions a picture; feature 0 tells which reach suffices, feature 1 is noise."""
    rng = np.random.default_rng(seed)
    need = rng.uniform(0.0, 3.0, 4 * pictures)
    soft = 1.0 / (1.0 + np.exp(-4.0 * (REACH - need[:, None])))
    scores = (rng.random(soft.shape) < soft).astype(float)
    cells = rng.integers(1, 6, len(need))
    tokens = np.tile(np.array([1, 9, 9, 1, 144, 576], float), (len(need), 1))
    tokens[:, 2:4] += 4.0 * cells[:, None]
    X = np.stack([need, rng.normal(size=len(need))], axis=1).astype(np.float32)
    groups = np.array([f"made/{round(each)}" for each in need])
    return parts.Part(X, scores, soft, tokens, np.repeat(np.arange(pictures), 4), groups)


@pytest.fixture(scope="module")
def splits() -> parts.Splits:
    three = (questions(250, 1), questions(100, 2), questions(100, 3))
    return parts.resampled(*three, SPACE, seed=0)


@pytest.mark.parametrize("name", list(mixed.FOCI))
def test_every_kind_finds_what_a_question_needs(name: str, splits: parts.Splits) -> None:
    values = mixed.FOCI[name](splits, 0, SMALL)
    assert values.test.shape == splits.test.scores.shape
    adds, need = values.test[:, 4] - values.test[:, 0], splits.test.X[:, 0]
    assert adds[(need > 1.0) & (need < 2.0)].mean() > adds[need < 0.3].mean() + 0.15
    assert values.parameters > 0
    figures = parts.judge(values, splits)
    assert figures["tokens_at_0.95"] is not None
    mixture = predictors.fixed_mixture(splits.test, SPACE)
    assert figures["tokens_at_0.95"] < mixture["tokens_at_0.95"]
    assert "tokens_at_0.995" in figures


def test_a_focus_starts_where_the_forest_says(splits: parts.Splits) -> None:
    assert chained.own(splits) == (-1, 0, 1, 0, 1, 4)
    assert chained.fine_level(splits) == (-1, 0, 4, 4, 1, 4)
    # About 9 + 12 and 1 + 12 tokens: of what stands before them, 9 and the other focus are nearest.
    assert chained.like_tokens(splits) == (-1, 0, 1, 1, 1, 4)


def test_the_plan_stands_behind_the_features(splits: parts.Splits) -> None:
    told = chained.planned(splits).test
    np.testing.assert_array_equal(told.X[:, :2], splits.test.X)
    np.testing.assert_array_equal(told.X[:, 2:], splits.test.tokens[:, 2:4])


def test_rows_tell_the_action_and_what_it_takes(splits: parts.Splits) -> None:
    part = splits.test.take(np.array([5]))
    rows = mixed._rows(part, SPACE, [1, 3])
    x, tokens = part.X[0], part.tokens[0]
    np.testing.assert_allclose(rows[0], [*x, 9, 0, 0, 0, 0, np.log(9)], rtol=1e-6)
    np.testing.assert_allclose(rows[1], [*x, 1, 144, 350, 1, 9, np.log(tokens[3])], rtol=1e-6)


def test_what_is_needless_goes_first_by_hand() -> None:
    """The first focus is right for 13 tokens where the second is; that one takes 5."""
    scores = np.tile(np.array([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]], float), (50, 1))
    tokens = np.tile(np.array([1, 9, 13, 5, 144, 576], float), (100, 1))
    part = parts.Part(
        np.zeros((100, 1), np.float32), scores, scores, tokens, np.arange(100),
        np.full(100, "made/one"),
    )  # fmt: skip
    values = parts.Values(scores, scores, 1, 0.0, 0.0)
    rows = list(elimination.eliminated([values], part, SPACE.names))
    assert [row["without"] for row in rows] == ["9+144@500x6", "1+144@350wx9"]
    # 99 % lies on the line from half of the questions right (at 5, then at 144) to all (576).
    for row, at in zip(rows, (5.0, 144.0), strict=True):
        low, high = (1 + at) / 2, (576 + at) / 2
        assert row["tokens_at_0.99"] == pytest.approx(low + 0.98 * (high - low), rel=0.01)
