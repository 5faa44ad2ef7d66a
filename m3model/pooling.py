"""Nested visual tokens: all of M3 in one function, and the same for the pictures of one call.

It knows tensors and which scales a config allows, not models.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any

import torch

from m3model.config import M3Config

Scale = int | Sequence[int]
# LLaVA's own ways of passing pictures, which know no scale.
_FOREIGN = (
    "mm_encoder_outputs",
    "image_sizes",
    "vision_feature_layer",
    "vision_feature_select_strategy",
)


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


def pool_pictures(
    config: M3Config, grids: Sequence[torch.Tensor] | None, scale: Scale | None
) -> list[torch.Tensor]:
    """Visual tokens per picture, (scale_i, D) each; empty for a call without pictures.

    Args:
        config: names the allowed scales.
        grids: (G*G, D) per picture, or None.
        scale: one number for all pictures, or one per picture.

    Raises:
        ValueError: unknown scale, pictures without a scale, a scale without pictures, or numbers
            that differ.
    """
    if grids is None:
        if scale is not None and (not isinstance(scale, Sequence) or len(scale)):
            raise ValueError(f"scale {scale!r} without a picture: pass pixel_values or image_grids")
        return []
    if scale is None:
        raise ValueError(
            "pictures need a scale (visual tokens per picture): one of "
            f"{', '.join(map(str, config.scales))}, or one per picture"
        )
    scales = list(scale) if isinstance(scale, (list, tuple)) else [scale] * len(grids)
    if len(scales) != len(grids):
        raise ValueError(
            f"{len(scales)} scales for {len(grids)} pictures: give one number, or one per picture"
        )
    return [
        pool_visual_tokens(grid, config.check_scale(each))
        for grid, each in zip(grids, scales, strict=True)
    ]


def token_counts(config: M3Config, visual_tokens: Sequence[torch.Tensor]) -> list[int]:
    """Tokens of each picture.

    Raises:
        ValueError: a tensor that is not (tokens, D), or empty.
    """
    shapes = [tuple(tokens.shape) for tokens in visual_tokens]
    if any(len(s) != 2 or not s[0] or s[1] != config.hidden_size for s in shapes):
        raise ValueError(
            f"visual tokens of a picture have shape (tokens, {config.hidden_size}), got {shapes}"
        )
    return [shape[0] for shape in shapes]


def refuse_foreign_pictures(kwargs: dict[str, Any]) -> None:
    """Takes LLaVA's own picture arguments out of `kwargs` where they are None.

    Raises:
        ValueError: one of them is set: honoured it cannot be, and ignored it must not be.
    """
    given = [name for name in _FOREIGN if kwargs.pop(name, None) is not None]
    if given:
        raise ValueError(
            f"{', '.join(given)}: M3 takes pictures as pixel_values or image_grids, with a scale"
        )
