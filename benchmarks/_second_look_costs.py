"""What one look and the encode cost, three ways of counting: tokens, m3-mini's and 7B's operations.

Knows model configs; does not know policies.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from m3model import M3Config, default_model_path, request_cost
from m3model.official import CLIP_L_336_VISION


class Cost(NamedTuple):
    """What one look costs at each scale (K,), and the encode once; the finest request is 1."""

    look: NDArray[np.float64]
    encode: float


def costs() -> dict[str, Cost]:
    """Return the ways of counting, at 40 tokens of text and 8 of answer; 7B is LLaVA-1.5's."""
    mini = M3Config.from_pretrained(default_model_path())
    text = {
        "model_type": "llama", "vocab_size": 32001, "hidden_size": 4096, "num_hidden_layers": 32,
        "intermediate_size": 11008, "num_attention_heads": 32,
    }  # fmt: skip
    seven = M3Config(
        vision_config={**CLIP_L_336_VISION, "model_type": "clip_vision_model"},
        text_config=text, image_token_index=32000, text_vocab_size=32000,
    )  # fmt: skip

    def operations(config: M3Config) -> Cost:
        asked = [request_cost(config, s) for s in config.scales]
        look = np.array([c.prefill_flops + c.decode_flops for c in asked])
        return Cost(look / asked[-1].flops, asked[-1].encode_flops / asked[-1].flops)

    tokens = np.array(mini.scales, float)
    return {
        "visual tokens": Cost(tokens / tokens[-1], 0.0),
        "operations, m3-mini": operations(mini),
        "operations, 7B": operations(seven),
    }
