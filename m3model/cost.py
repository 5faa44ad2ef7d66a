"""What a request costs, computed from a model's shape: floating-point operations and cache bytes.

One multiply-add is two operations; causal attention counts half; norms, activations and softmax
are left out. It knows shapes, not hardware: how long the operations take is another question.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m3model.config import M3Config

_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class RequestCost:
    """Operations of the three parts of a request and its cache.

    `kv_bytes` is the cache once the prompt is read; each answer token adds `kv_bytes_per_token`.
    """

    encode_flops: float
    prefill_flops: float
    decode_flops: float
    kv_bytes: int
    kv_bytes_per_token: int

    @property
    def flops(self) -> float:
        """All operations of the request."""
        return self.encode_flops + self.prefill_flops + self.decode_flops


def request_cost(
    config: M3Config,
    visual_tokens: int,
    text_tokens: int = 40,
    answer_tokens: int = 8,
    *,
    pictures: int = 1,
) -> RequestCost:
    """The cost of one request whose pictures have `visual_tokens` tokens in all.

    Args:
        config: the model's shape.
        visual_tokens: visual tokens that reach the language model, all pictures together.
        text_tokens: prompt tokens besides them.
        answer_tokens: tokens generated; the first comes with the prompt's pass.
        pictures: pictures encoded for this request (0 when their features were cached).

    Raises:
        ValueError: a negative count, or nothing to read.
    """
    if (
        min(visual_tokens, text_tokens, answer_tokens, pictures) < 0
        or visual_tokens + text_tokens < 1
    ):
        raise ValueError(
            f"counts must not be negative and the prompt not empty: visual {visual_tokens}, "
            f"text {text_tokens}, answer {answer_tokens}, pictures {pictures}"
        )
    prompt = visual_tokens + text_tokens
    steps = max(answer_tokens - 1, 0)
    read = (
        prompt * steps + steps * (steps + 1) // 2
    )  # cached tokens looked at by all decode steps together
    per_token = kv_bytes_per_token(config)
    return RequestCost(
        encode_flops=pictures * encode_flops(config),
        prefill_flops=prefill_flops(config, prompt),
        decode_flops=steps * (_linear_flops(config) + _head_flops(config))
        + _attention_flops(config) * read,
        kv_bytes=prompt * per_token,
        kv_bytes_per_token=per_token,
    )


def encode_flops(config: M3Config) -> float:
    """Operations for one picture: patches, the layers up to the feature layer, projector."""
    vision, side = config.vision_config, config.grid_side
    width, inner = vision.hidden_size, vision.intermediate_size
    layer = config.vision_feature_layer
    deepest = max(
        _depth(n, vision.num_hidden_layers) for n in ([layer] if isinstance(layer, int) else layer)
    )
    patches, positions = side * side, side * side + 1
    embed = 2 * patches * 3 * vision.patch_size**2 * width
    linear = 2 * positions * (4 * width * width + 2 * width * inner)
    attention = 4 * positions * positions * width
    return float(embed + deepest * (linear + attention)) + projector_flops(config)


def projector_flops(config: M3Config) -> float:
    """Operations of the projector on one picture's whole grid."""
    layers = 1 if isinstance(config.vision_feature_layer, int) else len(config.vision_feature_layer)
    width = config.hidden_size
    return float(
        2
        * config.grid_side**2
        * (layers * config.vision_config.hidden_size * width + width * width)
    )


def prefill_flops(config: M3Config, prompt_tokens: int) -> float:
    """Operations of the language model for reading a prompt (logits of its last position only)."""
    pairs = prompt_tokens * prompt_tokens / 2
    return (
        prompt_tokens * _linear_flops(config)
        + _attention_flops(config) * pairs
        + _head_flops(config)
    )


def kv_bytes_per_token(config: M3Config) -> int:
    """Cache bytes of one token, in the model's dtype (16 bits where the config has none)."""
    text = config.text_config
    dtype = str(
        getattr(config, "dtype", None) or getattr(text, "dtype", None) or "bfloat16"
    ).removeprefix("torch.")
    return 2 * text.num_hidden_layers * _kv_heads(config) * _head_dim(config) * _BYTES.get(dtype, 2)


def _linear_flops(config: M3Config) -> float:
    text = config.text_config
    width, attended = text.hidden_size, text.num_attention_heads * _head_dim(config)
    attention = 2 * width * attended + 2 * width * _kv_heads(config) * _head_dim(config)
    return float(2 * text.num_hidden_layers * (attention + 3 * width * text.intermediate_size))


def _attention_flops(config: M3Config) -> float:
    """Operations per (query, key) pair over all layers: scores and weighted values."""
    text = config.text_config
    return float(4 * text.num_attention_heads * _head_dim(config) * text.num_hidden_layers)


def _head_flops(config: M3Config) -> float:
    return float(2 * config.text_config.hidden_size * config.text_config.vocab_size)


def _head_dim(config: M3Config) -> int:
    text = config.text_config
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def _kv_heads(config: M3Config) -> int:
    text = config.text_config
    return int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads)


def _depth(layer: int, layers: int) -> int:
    """Layers run for hidden state `layer` of 0..layers (negative counts from the end)."""
    return layer if layer >= 0 else layers + 1 + layer
