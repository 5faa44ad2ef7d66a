"""Pooling against a plain loop, and the nesting that M3 rests on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3model.config import check_scales
from m3model.pooling import as_sent, pool_visual_tokens


def scales_of(side: int) -> list[int]:
    """Every scale that a grid of this side can be pooled to."""
    return [part * part for part in range(1, side + 1) if side % part == 0]


def loop_pool(grid: np.ndarray, side: int, out: int) -> np.ndarray:
    """Block means, one token after the other."""
    block = side // out
    tokens = []
    for row in range(out):
        for column in range(out):
            members = [
                grid[(row * block + i) * side + column * block + j]
                for i in range(block)
                for j in range(block)
            ]
            tokens.append(np.mean(members, axis=0))
    return np.stack(tokens)


@st.composite
def grids(draw: st.DrawFn) -> tuple[int, np.ndarray]:
    side = draw(st.integers(1, 12))
    width = draw(st.integers(1, 5))
    seed = draw(st.integers(0, 2**16))
    return side, np.random.default_rng(seed).normal(size=(side * side, width))


@given(grids())
@settings(max_examples=40, deadline=None)
def test_equals_a_loop_at_every_scale(case: tuple[int, np.ndarray]) -> None:
    side, grid = case
    for scale in scales_of(side):
        pooled = pool_visual_tokens(torch.from_numpy(grid)[None], scale)[0].numpy()
        np.testing.assert_allclose(pooled, loop_pool(grid, side, int(scale**0.5)), atol=1e-12)


@given(grids())
@settings(max_examples=40, deadline=None)
def test_coarse_from_fine_equals_once(case: tuple[int, np.ndarray]) -> None:
    side, array = case
    grid = torch.from_numpy(array)
    scales = scales_of(side)
    for fine in scales:
        for coarse in scales_of(int(fine**0.5)):
            twice = pool_visual_tokens(pool_visual_tokens(grid, fine), coarse)
            torch.testing.assert_close(twice, pool_visual_tokens(grid, coarse))


def test_keeps_dtype_and_leading_dimensions() -> None:
    grid = torch.randn(2, 3, 576, 4, dtype=torch.float16)
    pooled = pool_visual_tokens(grid, 9)
    assert pooled.shape == (2, 3, 9, 4)
    assert pooled.dtype == torch.float16


@pytest.mark.parametrize("scale", [0, -1, 2, 25, 49, 100, 256, 577, 2304, True, 9.0, "9"])
def test_refuses_what_does_not_divide(scale: object) -> None:
    with pytest.raises(ValueError, match=r"scale|pooled"):
        pool_visual_tokens(torch.zeros(1, 576, 2), scale)  # type: ignore[arg-type]


def test_refuses_a_grid_that_is_not_square() -> None:
    with pytest.raises(ValueError, match="12 grid tokens"):
        pool_visual_tokens(torch.zeros(1, 12, 2), 1)


@pytest.mark.parametrize("scales", [[], [2], [25], [9, 9], [True], [1, 4.0], [2304], [0]])
def test_scales_of_a_config_are_checked(scales: list[int]) -> None:
    with pytest.raises(ValueError, match="24x24"):
        check_scales(scales, 24)


def test_scales_come_out_ascending() -> None:
    assert check_scales([576, 1, 36], 24) == (1, 36, 576)


@pytest.mark.parametrize("value", [70_000.0, float("inf"), float("nan")])
def test_what_float16_does_not_hold_is_not_sent(value: float) -> None:
    tokens = torch.ones(4, 8)
    assert as_sent(tokens).dtype == torch.float16
    tokens[2, 3] = value
    with pytest.raises(ArithmeticError, match="65504"):
        as_sent(tokens)
