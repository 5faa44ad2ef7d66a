"""What a request costs, computed from a model's shape: operations, cache bytes, analytic GPU time.

One multiply-add is two operations; causal attention counts half; norms, activations and softmax
are left out. Times are a roofline over named hardware, never measured: they know nothing of
kernels, launches, schedulers or networks, so read them as a bound. `m3model.capacity` plans with
them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m3model.config import M3Config

_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Hardware:
    """What a device is good for in practice: of a GPU about 80 % of its datasheet's dense bf16
    operations and 85 to 90 % of its memory bandwidth.

    `value_bytes`: of a weight or cache entry as it is served there.
    """

    name: str
    flops_per_second: float
    bytes_per_second: float
    memory_bytes: float = 0.0
    value_bytes: int = 2


HARDWARE = {
    hardware.name: hardware
    for hardware in (
        Hardware("NVIDIA H100 SXM", 790e12, 3.0e12, 80e9),
        Hardware("NVIDIA H200", 790e12, 4.3e12, 141e9),
        Hardware("NVIDIA A100 80GB", 250e12, 1.75e12, 80e9),
        Hardware("NVIDIA L4", 97e12, 0.27e12, 24e9),
    )
}
BATCH = 64  # requests served together, unless told


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
        visual_tokens: visual tokens that reach the language model, all pictures together; of a
            focus its `visual_tokens`.
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


@dataclass(frozen=True)
class RequestSeconds:
    """Analytic device seconds that one request of a batch takes in each of its three parts."""

    encode: float
    prefill: float
    decode: float

    @property
    def total(self) -> float:
        """Seconds of the whole request."""
        return self.encode + self.prefill + self.decode


def request_seconds(
    config: M3Config,
    visual_tokens: int,
    hardware: Hardware,
    text_tokens: int = 40,
    answer_tokens: int = 8,
    *,
    pictures: int = 1,
    batch: int = BATCH,
) -> RequestSeconds:
    """The analytic device time of one of `batch` equal requests that are served together.

    A roofline: each part takes the longer of computing and moving bytes. A batch reads the weights
    once per pass, every request its own cache at each decode step.

    Args:
        config, visual_tokens, text_tokens, answer_tokens, pictures: as `request_cost` takes them.
        hardware: one of `HARDWARE`, or your own.
        batch: requests that share each pass; 1 is a request alone.

    Raises:
        ValueError: as `request_cost`, or a batch below 1.
    """
    cost = request_cost(config, visual_tokens, text_tokens, answer_tokens, pictures=pictures)
    if batch < 1:
        raise ValueError(f"a batch holds at least one request, not {batch}")
    prompt, steps = visual_tokens + text_tokens, max(answer_tokens - 1, 0)
    weights = language_bytes(config, hardware.value_bytes)
    entry = kv_entries_per_token(config) * hardware.value_bytes
    read = prompt * steps + steps * (steps + 1) / 2

    def seconds(flops: float, bytes_: float) -> float:
        return max(flops / hardware.flops_per_second, bytes_ / hardware.bytes_per_second)

    return RequestSeconds(
        encode=seconds(cost.encode_flops, encoder_bytes(config, hardware.value_bytes) / batch)
        if pictures
        else 0.0,
        prefill=seconds(cost.prefill_flops, weights / batch),
        decode=seconds(cost.decode_flops, steps * weights / batch + read * entry),
    )


def encode_flops(config: M3Config) -> float:
    """Operations for one picture: patches, the layers up to the feature layer, projector."""
    vision, side = config.vision_config, config.grid_side
    width, patches = vision.hidden_size, side * side
    positions = patches + 1
    embed = 2 * patches * 3 * vision.patch_size**2 * width
    linear = 2 * positions * _encoder_layer_weights(config)
    attention = 4 * positions * positions * width
    return float(embed + _encoder_layers(config) * (linear + attention)) + projector_flops(config)


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
    return kv_entries_per_token(config) * _BYTES.get(dtype, 2)


def kv_entries_per_token(config: M3Config) -> int:
    """Numbers that the cache holds of one token."""
    return 2 * int(config.text_config.num_hidden_layers) * _kv_heads(config) * _head_dim(config)


def language_bytes(config: M3Config, value_bytes: int) -> float:
    """Weights of the language model that every pass reads: its layers and its head."""
    return value_bytes * (_linear_flops(config) + _head_flops(config)) / 2  # two operations each


def encoder_bytes(config: M3Config, value_bytes: int) -> float:
    """Weights of the layers up to the feature layer and of the projector."""
    projector = projector_flops(config) / (2 * config.grid_side**2)
    return value_bytes * (_encoder_layers(config) * _encoder_layer_weights(config) + projector)


def _encoder_layers(config: M3Config) -> int:
    layer, layers = config.vision_feature_layer, config.vision_config.num_hidden_layers
    return max(_depth(n, layers) for n in ([layer] if isinstance(layer, int) else layer))


def _encoder_layer_weights(config: M3Config) -> int:
    width, inner = config.vision_config.hidden_size, config.vision_config.intermediate_size
    return int(4 * width * width + 2 * width * inner)


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
