"""Random cuts: within the levels, near what is relevant, wide, and the same from the same seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.cuts import MOST_CELLS, draw_cut, level_shares

SCALES = (1, 9, 36, 144, 576)


def maps(seed: int, questions: int, side: int = 24) -> np.ndarray:
    """Each question looks at one patch, and fades from there."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:side, :side]
    at = random.integers(0, side, (questions, 2))
    distance = [np.hypot(rows - r, columns - c).ravel() for r, c in at]
    return np.exp(-np.stack(distance) / 2).astype(np.float32)


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 9), st.sampled_from([SCALES, SCALES[:4], (9, 144)])
)
@settings(max_examples=80, deadline=None)
def test_cuts_keep_to_the_levels_and_their_limits(
    seed: int, questions: int, scales: tuple[int, ...]
) -> None:
    relevance = maps(seed % 1000, questions, side=int(scales[-1] ** 0.5))
    cut = draw_cut(relevance, scales, np.random.default_rng(seed))
    assert {cut.focus.coarse, cut.focus.fine} <= set(scales)
    assert len(cut.focus.cells) <= max(MOST_CELLS)
    assert cut.weights.shape == (questions,)
    assert 1 <= (cut.weights == 1).sum() <= min(3, questions)
    assert ((cut.weights == 1) | (cut.weights == 0.25)).all()
    again = draw_cut(relevance, scales, np.random.default_rng(seed))
    assert again.focus == cut.focus
    assert (again.weights == cut.weights).all()


def test_the_patch_asked_about_is_nearly_always_fine() -> None:
    held, sizes, levels = [], Counter(), Counter()
    for seed in range(600):
        relevance = maps(seed, 1)
        focus = draw_cut(relevance, SCALES, np.random.default_rng(seed)).focus
        across = int((focus.fine / 4) ** 0.5)
        row, column = divmod(int(relevance[0].argmax()), 24)
        held.append(row * across // 24 * across + column * across // 24 in focus.cells)
        sizes[len(focus.cells) > 8] += 1
        levels[focus.coarse, focus.fine] += 1
    assert np.mean(held) > 0.97
    assert min(sizes.values()) > 100  # few cells and many
    for pair, share in level_shares(SCALES).items():
        assert levels[pair] / 600 == pytest.approx(share, abs=0.07)


def test_truth_serves_some_draws_where_it_is_known() -> None:
    relevance, truth = np.full((1, 576), 0.5, np.float32), np.zeros((1, 576), bool)
    truth[0, 0] = True
    alone = 0
    for seed in range(300):
        told = draw_cut(relevance, SCALES, np.random.default_rng(seed), truth).focus
        untold = draw_cut(relevance, SCALES, np.random.default_rng(seed)).focus
        assert (told.coarse, told.fine) == (untold.coarse, untold.fine)
        alone += told != untold
    assert 20 < alone < 80  # 15 in 100, less those that come out alike


def test_levels_follow_the_scales_of_any_checkpoint() -> None:
    shares = level_shares(SCALES)
    assert max(shares, key=shares.get) == (36, 576)  # type: ignore[arg-type]
    assert sum(shares.values()) == pytest.approx(1)
    assert set(level_shares((36, 144))) == {(36, 144)}
    assert set(level_shares((1, 4, 16, 64))) == {
        (1, 64), (4, 64), (16, 64), (1, 16), (4, 16),
    }  # fmt: skip
    for scales in ((576,), (1, 9), ()):
        with pytest.raises(ValueError, match="leave no room for a cut"):
            level_shares(scales)
