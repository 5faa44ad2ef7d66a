"""What stands in a prompt for its pictures: each read at the scale or focus that the call names.

It knows tensors and which levels a config allows; it does not know models or ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from m3model.config import M3Config
from m3model.focus import Focus, focus_visual_tokens
from m3model.pooling import pool_visual_tokens

Scale = int | Focus | Sequence[int | Focus]
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
    """Visual tokens per picture, (n_i, D) each; empty for a call without pictures.

    Args:
        config: names the allowed scales, which are also the levels of a focus.
        grids: (G*G, D) per picture, or None.
        scale: a scale or a focus for all pictures, or one per picture.

    Raises:
        ValueError: unknown scale or level, pictures without a scale, a scale without pictures, or
            numbers that differ.
    """
    if grids is None:
        if scale is not None and (not isinstance(scale, Sequence) or len(scale)):
            raise ValueError(f"scale {scale!r} without a picture: pass pixel_values or image_grids")
        return []
    if scale is None:
        raise ValueError(
            "pictures need a scale (visual tokens per picture): one of "
            f"{', '.join(map(str, config.scales))}, a Focus between two of them, or one per picture"
        )
    scales = list(scale) if isinstance(scale, (list, tuple)) else [scale] * len(grids)
    if len(scales) != len(grids):
        raise ValueError(
            f"{len(scales)} scales for {len(grids)} pictures: give one for all, or one per picture"
        )
    return [
        focus_visual_tokens(grid, check_focus(config, each))
        if isinstance(each, Focus)
        else pool_visual_tokens(grid, config.check_scale(each))
        for grid, each in zip(grids, scales, strict=True)
    ]


def check_focus(config: M3Config, focus: Focus) -> Focus:
    """`focus` as it is.

    Raises:
        ValueError: one of its levels is not a scale of the model; the message names them.
    """
    for level in (focus.coarse, focus.fine):
        if level not in config.scales:
            raise ValueError(
                f"unknown level {level} of a focus from {focus.coarse} to {focus.fine}: this model "
                f"knows {', '.join(map(str, config.scales))}"
            )
    return focus


def count_tokens(config: M3Config, scale: int | Focus) -> int:
    """Visual tokens of a picture that is read so.

    Raises:
        ValueError: unknown scale, or level of a focus.
    """
    if isinstance(scale, Focus):
        return check_focus(config, scale).visual_tokens
    return config.check_scale(scale)


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
