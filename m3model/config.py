"""`M3Config`: a LLaVA config plus the scales a checkpoint was trained for.

It checks what the rest of the package relies on (every scale is a square whose side divides the
patch grid; the image token lies inside the embedding table). Beside it the shapes of LLaVA-1.5, to
plan with, and the hash that names a model folder. It knows nothing about a call's scale: that is an
argument of every call.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import field
from math import isqrt
from numbers import Integral
from pathlib import Path
from typing import Any

from transformers import AutoConfig, LlavaConfig

DEFAULT_SCALES = (1, 9, 36, 144, 576)
CLIP_L_336_VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
# Vicuna's shapes by their names in the checkpoints' names.
VICUNA = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40},
}


class M3Config(LlavaConfig):
    """LLaVA's configuration plus `scales` and `text_vocab_size`.

    Args:
        scales: visual tokens a picture may have, any order; kept ascending. Default: those of
            1/9/36/144/576 that the patch grid can be pooled to.
        text_vocab_size: rows of the vocabulary that text may use. Rows at or above it were added
            (for `<image>`), have no meaning as answers and never win. Default: the whole
            vocabulary.
    """

    model_type = "m3"

    scales: list[int] = field(default_factory=list)
    text_vocab_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if getattr(self, "text_config", None) is None:
            # transformers builds a default instance to see what differs; 32000 + 1 row for <image>.
            setattr(self, "text_config", {"model_type": "llama", "vocab_size": 32001})  # noqa: B010
            self.text_vocab_size = self.text_vocab_size or 32000
        super().__post_init__(**kwargs)
        rows = self.text_config.vocab_size
        if not 0 <= self.image_token_index < rows:
            raise ValueError(
                f"image_token_id {self.image_token_index} is outside the vocabulary of {rows} "
                "rows: the embedding table needs a row for the image token"
            )
        self.text_vocab_size = rows if self.text_vocab_size is None else self.text_vocab_size
        if not 0 < self.text_vocab_size <= rows:
            raise ValueError(f"text_vocab_size {self.text_vocab_size} is not within 1..{rows}")
        fitting = [scale for scale in DEFAULT_SCALES if _divides(scale, self.grid_side)]
        self.scales = list(check_scales(self.scales or fitting, self.grid_side))

    @property
    def grid_side(self) -> int:
        """Patches along one side of a picture (24 for 336-pixel pictures with 14-pixel patches)."""
        return int(self.vision_config.image_size) // int(self.vision_config.patch_size)

    @property
    def hidden_size(self) -> int:
        """Width D of a visual token after the projector."""
        return int(self.text_config.hidden_size)

    def check_scale(self, scale: object) -> int:
        """`scale` as a plain int.

        Raises:
            ValueError: it is not one of `scales`; the message names them. Booleans and floats are
                not scales.
        """
        if (
            isinstance(scale, Integral)
            and not isinstance(scale, bool)
            and int(scale) in self.scales
        ):
            return int(scale)
        raise ValueError(
            f"unknown scale {scale!r}: this model knows {', '.join(map(str, self.scales))}"
        )


def check_scales(scales: Iterable[int], grid_side: int) -> tuple[int, ...]:
    """The scales ascending, each checked against the patch grid.

    Raises:
        ValueError: empty, repeated, not whole numbers, not squares, or a side that does not
            divide `grid_side`.
    """
    listed = list(scales)
    wrong = [s for s in listed if not _divides(s, grid_side)]
    if wrong or not listed or len(set(listed)) != len(listed):
        raise ValueError(
            f"scales {listed} do not fit a grid of {grid_side}x{grid_side}: each must be a "
            "different square number whose side divides the grid's"
            + (f"; wrong: {wrong}" if wrong else "")
        )
    return tuple(sorted(int(s) for s in listed))


def _divides(scale: object, grid_side: int) -> bool:
    if not isinstance(scale, Integral) or isinstance(scale, bool) or scale < 1:
        return False
    side = isqrt(int(scale))
    return side * side == scale and side <= grid_side and grid_side % side == 0


AutoConfig.register(M3Config.model_type, M3Config, exist_ok=True)


def llava_shape(size: str) -> M3Config:
    """The shape of LLaVA-1.5 with Vicuna of `size` ("7b", "13b"), to plan with: no weights.

    Raises:
        KeyError: another size.
    """
    text = VICUNA[size]
    return M3Config(
        vision_config={**CLIP_L_336_VISION, "model_type": "clip_vision_model"},
        text_config={
            **text, "model_type": "llama", "vocab_size": 32001,
            "num_attention_heads": text["hidden_size"] // 128,
            "max_position_embeddings": 4096,
        },
        image_token_index=32000,
        text_vocab_size=32000,
        dtype="bfloat16",
    )  # fmt: skip


def hash_model(model: Path) -> str:
    """Return 16 hex digits that change with a model folder's weights, config or readout."""
    digest = hashlib.sha256()
    for path in sorted([model / "config.json", *model.glob("*.safetensors")]):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]
