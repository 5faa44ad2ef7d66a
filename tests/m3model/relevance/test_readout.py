"""The relevance readout against its formula, and its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from m3model import RelevanceReadout

D, R, V = 6, 3, 11


@pytest.fixture
def readout() -> RelevanceReadout:
    random = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    return RelevanceReadout(draw(D), draw(D), draw(D, R), draw(V, R), draw(V), draw(1))


def test_equals_the_formula(readout: RelevanceReadout) -> None:
    grid = np.random.default_rng(1).normal(size=(16, D)).astype(np.float32)
    ids = [3, 3, 7]
    normed = torch.nn.functional.layer_norm(
        torch.from_numpy(grid),
        (D,),
        torch.from_numpy(readout.norm_weight),
        torch.from_numpy(readout.norm_bias),
    )
    words = torch.from_numpy(readout.token_table[ids]).sum(0)
    logits = normed @ torch.from_numpy(readout.patch_proj) @ words
    wanted = torch.sigmoid(logits + float(readout.token_bias[ids].sum() + readout.bias[0]))
    got = readout.map(grid, ids)
    assert got.dtype == np.float32
    assert got.shape == (16,)
    np.testing.assert_allclose(got, wanted.numpy(), atol=1e-6)


def test_large_values_stay_finite(readout: RelevanceReadout) -> None:
    steep = RelevanceReadout(
        readout.norm_weight,
        readout.norm_bias,
        1e6 * readout.patch_proj,
        readout.token_table,
        readout.token_bias,
        readout.bias,
    )
    values = steep.map(np.random.default_rng(1).normal(size=(9, D)), [1])
    assert np.isfinite(values).all()
    assert values.min() >= 0
    assert values.max() <= 1


def test_without_a_question_only_the_bias_speaks(readout: RelevanceReadout) -> None:
    values = readout.map(np.ones((4, D), dtype=np.float32), [])
    np.testing.assert_allclose(values, 1 / (1 + np.exp(-readout.bias[0])), rtol=1e-6)


def test_file(readout: RelevanceReadout, tmp_path: Path) -> None:
    assert RelevanceReadout.from_pretrained(tmp_path) is None
    path = readout.save(tmp_path)
    again = RelevanceReadout.from_pretrained(tmp_path)
    assert again is not None
    np.testing.assert_array_equal(again.patch_proj, readout.patch_proj)
    save_file({"bias": readout.bias}, path)
    with pytest.raises(ValueError, match=r"relevance\.safetensors holds"):
        RelevanceReadout.from_pretrained(tmp_path)


def test_bad_input(readout: RelevanceReadout) -> None:
    grid = np.zeros((4, D), dtype=np.float32)
    with pytest.raises(ValueError, match="question ids"):
        readout.map(grid, [V])
    with pytest.raises(ValueError, match="grid must have shape"):
        readout.map(np.zeros((4, D + 1)), [1])
    with pytest.raises(ValueError, match="wrong shape"):
        RelevanceReadout(
            readout.norm_weight[:-1],
            readout.norm_bias,
            readout.patch_proj,
            readout.token_table,
            readout.token_bias,
            readout.bias,
        )
