"""Nested visual tokens: all of M3 in one function.

A level of M3 is the average of the next finer one over 2x2 (from 36 to 9) or 3x3 (from 9 to 1)
tokens: section 3 of arXiv 2405.17430. It knows tensors, not models or which scales a config allows.
"""

from __future__ import annotations

from math import isqrt

import torch


def pool_visual_tokens(grid: torch.Tensor, scale: int) -> torch.Tensor:
    """The picture at `scale` visual tokens: (..., scale, D), row-major, dtype kept.

    Each token is the mean of one square block of the grid, so a coarse level may be pooled from
    any finer one.

    Args:
        grid: (..., S*S, D) projected features of a square grid, row-major.
        scale: number of tokens wanted, a square whose side divides S.

    Raises:
        ValueError: the grid is not square, or its side is not a multiple of the scale's.
    """
    if grid.ndim < 2:
        raise ValueError(f"a grid has shape (..., S*S, D), got {tuple(grid.shape)}")
    *lead, count, width = grid.shape
    side = isqrt(count)
    if isinstance(scale, bool) or not isinstance(scale, int) or scale < 1:
        raise ValueError(f"scale must be a positive whole number, got {scale!r}")
    out = isqrt(scale)
    if side * side != count or out * out != scale or out > side or side % out:
        raise ValueError(
            f"{count} grid tokens cannot be pooled to {scale}: sides must divide evenly"
        )
    if out == side:
        return grid
    block = side // out
    return (
        grid.reshape(*lead, out, block, out, block, width)
        .mean(dim=(-4, -2))
        .reshape(*lead, scale, width)
    )


def as_sent(tokens: torch.Tensor) -> torch.Tensor:
    """Visual tokens as they travel to the service's language model: in float16.

    Who labels what is served rounds alike, or near-equal answers would differ.

    Raises:
        ArithmeticError: a number that float16 does not hold.
    """
    sent = tokens.to(torch.float16)
    if not bool(sent.isfinite().all()):
        raise ArithmeticError(
            "the model's visual tokens are no numbers, or larger than the 65504 that float16 holds"
        )
    return sent
