"""Fits of made data, each in a process of its own: the same choices, and bounded memory a row."""

from pathlib import Path

import fit_scale
import numpy as np
import pytest
from _scale.made import BLOCK, schema_of, write_made

from training.oracle.data import read_oracle

WIDTH = 300


def test_made_data_are_oracle_data(tmp_path: Path) -> None:
    rows = BLOCK + 10
    data = read_oracle([write_made(tmp_path / "a", rows, 20)], schema=schema_of(20))
    assert len(data) == rows
    assert data.n_pictures == -(-rows // 4)
    assert len(list((tmp_path / "a").glob("oracle-*.parquet"))) == 2
    assert set(data.groups.tolist()) == {"made/colour", "made/word", "made/bar"}
    means = data.scores.mean(axis=0)
    assert (np.diff(means) > 0.05).all()
    assert 0.7 < means[-1] < 0.95
    assert abs(float(np.corrcoef(data.features[:, 0], data.scores[:, 2])[0, 1])) > 0.2


@pytest.mark.slow
def test_a_streamed_fit_decides_as_one_in_memory_and_takes_little_a_row(tmp_path: Path) -> None:
    """Of a row, bins and labels stay, not its 300 numbers: 1200 bytes."""
    small = fit_scale.measure(4_000, WIDTH, tmp_path / "small", alone=True)
    large = fit_scale.measure(40_000, WIDTH, tmp_path / "large")
    assert large["choices_equal"] == 1.0
    assert large["same_router"]
    took = [report["streamed"]["gb_above_constant"] for report in (small, large)]
    # The allowed 8 kB a row of 600 features; what bins need for a moment does not grow beyond.
    assert (took[1] - took[0]) * 1e9 / 36_000 < 8_000 * WIDTH / 600 + 2_000
