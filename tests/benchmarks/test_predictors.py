"""The predictor benchmark: splits by picture, kinds that learn, figures worked by hand."""

from pathlib import Path

import numpy as np
import predictors
import pytest
from _predictors import chained as chain
from _predictors import kinds
from _predictors import splits as parts

from router.actions import uniform_space

SPACE = uniform_space((1, 9, 36))
SMALL = {**kinds.SETTINGS, "min_data_in_leaf": 20, "learning_rate": 0.2}


def tokens(scores: np.ndarray) -> np.ndarray:
    return np.broadcast_to(np.array(SPACE.scales, float), scores.shape)


def questions(pictures: int, seed: int) -> parts.Part:
    """Four questions a picture; feature 0 tells which scale suffices, feature 1 is noise."""
    rng = np.random.default_rng(seed)
    need = rng.uniform(0.0, 3.0, 4 * pictures)
    soft = 1.0 / (1.0 + np.exp(-4.0 * (np.arange(3) + 0.5 - need[:, None])))
    X = np.stack([need, rng.normal(size=len(need))], axis=1).astype(np.float32)
    scores = (rng.random(soft.shape) < soft).astype(float)
    return parts.Part(
        X, scores, soft, tokens(scores), np.repeat(np.arange(pictures), 4), kinds_of(need)
    )


def kinds_of(need: np.ndarray) -> np.ndarray:
    """A type that tells roughly what is needed."""
    return np.array([f"made/{round(each)}" for each in need])


@pytest.fixture(scope="module")
def splits() -> parts.Splits:
    three = (questions(250, 1), questions(100, 2), questions(100, 3))
    return parts.resampled(*three, SPACE, seed=0)


def test_no_picture_is_both_learnt_and_watched(splits: parts.Splits) -> None:
    learnt, watched = set(splits.train.pictures), set(splits.watched.pictures)
    assert not learnt & watched
    assert len(watched) == 25
    assert len(learnt) == 225


def test_a_seed_draws_the_same_pictures_again_and_another_seed_others() -> None:
    three = (questions(50, 1), questions(10, 2), questions(10, 3))
    first, again, other = (parts.resampled(*three, SPACE, s, 20) for s in (4, 4, 5))
    assert set(first.train.pictures) == set(again.train.pictures) != set(other.train.pictures)
    assert len(set(first.train.pictures) | set(first.watched.pictures)) == 20


@pytest.mark.parametrize("name", list(chain.ALL_KINDS))
def test_every_kind_finds_what_a_question_needs(name: str, splits: parts.Splits) -> None:
    values = chain.ALL_KINDS[name](splits, 0, SMALL)
    assert values.test.shape == splits.test.scores.shape
    assert np.isfinite(values.test).all()
    # What the finest scale adds to the coarsest must be seen where only the finest suffices.
    adds = values.test[:, 2] - values.test[:, 0]
    need = splits.test.X[:, 0]
    assert adds[(need > 1.2) & (need < 2.2)].mean() > adds[need < 0.3].mean() + 0.15
    figures = parts.judge(values, splits)
    mixture = predictors.fixed_mixture(splits.test, SPACE)
    assert figures["tokens_at_0.95"] is not None
    assert figures["tokens_at_0.95"] < mixture["tokens_at_0.95"]
    assert values.parameters > 0


def test_judging_a_perfect_predictor_by_hand() -> None:
    """Right from 1, from 9, from 36, never: with full knowledge 1 + 9 + 36 + 1 tokens."""
    scores = np.array([[1, 1, 1], [0, 1, 1], [0, 0, 1], [0, 0, 0]], float)
    scores = np.tile(scores, (50, 1))
    part = parts.Part(
        np.zeros((200, 1), np.float32), scores, scores, tokens(scores), np.arange(200),
        np.full(200, "made/one"),
    )  # fmt: skip
    values = parts.Values(scores, scores, 1, 0.0, 0.0)
    figures = parts.judge(values, parts.Splits(part, part, part, part, SPACE))
    assert figures["accuracy"] == pytest.approx(0.75)
    assert figures["visual_tokens"] == pytest.approx((1 + 9 + 36 + 1) / 4)
    # 95 % of 0.75 is reached by a mixture with (9 + 1 + 9 ...): the hull from (2.75, .5) on.
    share = (0.95 * 0.75 - 0.5) / 0.25
    low = (1 + 9 + 1 + 1) / 4
    assert figures["tokens_at_0.95"] == pytest.approx(low + share * (47 / 4 - low), abs=0.02)


def test_summary_gives_mean_and_spread_and_none_for_what_a_seed_never_reached() -> None:
    found = parts.summary([{"a": 1.0, "b": None}, {"a": 3.0, "b": 2.0}])
    assert found == {"a": {"mean": 2.0, "spread": pytest.approx(2**0.5)}, "b": None}


def test_predictors_are_chosen_by_calibration_figures_only() -> None:
    at = {"mean": 8.0, "spread": 0.0}
    cells = {f"calibration_tokens_at_{s:g}": at for s in parts.SHARES}
    assert parts.calibration_tokens(cells) == pytest.approx(8.0)
    assert parts.calibration_tokens({**cells, "calibration_tokens_at_0.99": None}) == np.inf


def test_every_group_is_left_out_once_and_tried_alone_with_the_question() -> None:
    sets = predictors.feature_sets(("picture", "relevance", "question"))
    assert sets["without relevance"] == ("picture", "question")
    assert sets["question + relevance"] == ("question", "relevance")
    assert sets["question alone"] == ("question",)
    assert len(sets) == 1 + 3 + 2 + 1


def test_the_plot_is_written(tmp_path: Path) -> None:
    cell = {"mean": 20.0, "spread": 1.0}
    figures = {f"tokens_at_{s:g}": cell for s in parts.SHARES}
    curve = [{"pictures": n, "figures": figures} for n in (100, 250)]
    mixture = {f"tokens_at_{s:g}": 30.0 for s in parts.SHARES}
    predictors.plot(curve, mixture, tmp_path / "new" / "plot.png")
    assert (tmp_path / "new" / "plot.png").read_bytes().startswith(b"\x89PNG")
