"""The pictures of one call and their scales: one pooled tensor per picture, or a clear refusal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from m3model.config import M3Config
from m3model.pooling import pool_visual_tokens

Scale = int | Sequence[int]
# LLaVA's own ways of passing pictures, which know no scale.
_FOREIGN = (
    "mm_encoder_outputs",
    "image_sizes",
    "vision_feature_layer",
    "vision_feature_select_strategy",
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
