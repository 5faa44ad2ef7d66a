"""The layers of a Llama over tokens of many requests, with fewer and larger products than the
model's own loop: one for queries, keys and values, one for both halves of the gate.

In 32 bits on a CPU every number is the model's own, to the last bit, where the products are. Knows
weights and a `Step`; nothing of requests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn
from torch.nn.functional import rms_norm, silu
from transformers.models.llama.modeling_llama import LlamaModel

from m3model.engine.passes.attention import Step
from m3model.engine.passes.products import TORCH, Product

MOST_TURNED = 256  # tokens whose positions are turned by matrices; more are cheaper one by one


Turn = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class _Layer:
    """The weights of one layer, as they are multiplied by; `qkv` and `gates` hold those of several
    of the model's."""

    norm: torch.Tensor
    qkv: torch.Tensor
    out: torch.Tensor
    second_norm: torch.Tensor
    gates: torch.Tensor
    down: torch.Tensor


class LlamaLayers:
    """All layers and the last norm.

    The weights that are multiplied together are laid side by side, and the model's own parameters
    become views of that: nothing is held twice, and the model goes on as it was. What `product`
    packs is another copy.

    Args:
        model: a model that `fits`.
        longest: positions that may be asked for.
        beat: called before each layer.
        product: multiplies.
    """

    def __init__(
        self,
        model: nn.Module,
        longest: int,
        beat: Callable[[], None],
        product: Product = TORCH,
    ) -> None:
        config = cast(Any, model.config)
        self._beat, self._product = beat, product.of
        self._heads = int(config.num_attention_heads)
        self._kv_heads = int(config.num_key_value_heads)
        layers = cast(Any, model.layers)
        self._dim = int(layers[0].self_attn.head_dim)
        self._scale = float(layers[0].self_attn.scaling)
        self._eps = float(config.rms_norm_eps)
        self._last_norm = cast(torch.Tensor, cast(Any, model.norm).weight)
        self._layers = [_side_by_side(layer, product.packed) for layer in layers]
        weight = self._last_norm
        places = torch.arange(longest, device=weight.device).unsqueeze(0)
        with torch.no_grad():
            cosines, sines = cast(Any, model.rotary_emb)(weight, places)
        half = self._dim // 2
        self._cosines = cosines[0].to(weight.dtype)
        self._sines = torch.cat([-sines[0, :, :half], sines[0, :, half:]], -1).to(weight.dtype)
        self._exact = weight.device.type == "cpu"

    def __call__(self, hidden: torch.Tensor, step: Step) -> torch.Tensor:
        """(T, D) what the layers make of (T, D) embeddings, which are written over."""
        cosines = self._cosines.index_select(0, step.positions)
        sines = self._sines.index_select(0, step.positions)
        turned, tokens = self._heads + self._kv_heads, len(hidden)
        turn = self._elementwise(cosines, sines)
        if not self._exact and tokens <= MOST_TURNED:
            turn = self._by_matrices(cosines, sines)
        for index, layer in enumerate(self._layers):
            self._beat()
            found = self._product(self._norm(hidden, layer.norm), layer.qkv)
            found = found.view(tokens, -1, self._dim)
            query_key = turn(found[:, :turned])
            read = step.attend(
                index, query_key[:, : self._heads], query_key[:, self._heads :],
                found[:, turned:], self._scale,
            )  # fmt: skip
            hidden = self._add(hidden, read.reshape(tokens, -1), layer.out)
            gates = self._product(self._norm(hidden, layer.second_norm), layer.gates)
            gate, up = gates.chunk(2, dim=-1)
            hidden = self._add(hidden, silu(gate, inplace=True).mul_(up), layer.down)
        return self._norm(hidden, self._last_norm)

    def _elementwise(self, cosines: torch.Tensor, sines: torch.Tensor) -> Turn:
        """Rotary position embedding of (T, heads, dim) at positions that have these (T, dim);
        `sines` carry the sign of the half that they change."""
        cosines, sines, half = cosines.unsqueeze(1), sines.unsqueeze(1), self._dim // 2
        if self._exact:
            return lambda vectors: (vectors * cosines).add_(vectors.roll(half, -1).mul_(sines))
        return lambda vectors: torch.addcmul(vectors * cosines, vectors.roll(half, -1), sines)

    def _by_matrices(self, cosines: torch.Tensor, sines: torch.Tensor) -> Turn:
        """The same as one product for each token: one launch a layer, not three."""
        half = self._dim // 2
        turns = torch.diag_embed(cosines)
        turns.diagonal(half, 1, 2).copy_(sines[:, half:])
        turns.diagonal(-half, 1, 2).copy_(sines[:, :half])
        return lambda vectors: torch.bmm(vectors, turns)

    def _norm(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        width = (hidden.shape[1],)
        if self._exact and hidden.element_size() < 4:  # the model rounds before it weighs
            return rms_norm(hidden, width, None, self._eps).mul_(weight)
        return rms_norm(hidden, width, weight, self._eps)

    def _add(self, hidden: torch.Tensor, found: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if self._exact:
            return hidden.add_(self._product(found, weight))
        return hidden.addmm_(found, weight.t())


def fits(model: nn.Module) -> bool:
    """Whether `LlamaLayers` computes what this language model does."""
    if type(model) is not LlamaModel or model.config.hidden_act != "silu":
        return False
    linears = [
        getattr(part, name)
        for layer in model.layers
        for part, names in ((layer.self_attn, "qkvo"), (layer.mlp, ("gate", "up", "down")))
        for name in (f"{each}_proj" for each in names)
    ]
    return all(type(each) is nn.Linear and each.bias is None for each in linears)


def _side_by_side(layer: Any, packed: Callable[[torch.Tensor], torch.Tensor]) -> _Layer:
    attention, gated = layer.self_attn, layer.mlp
    return _Layer(
        layer.input_layernorm.weight,
        packed(_joined([attention.q_proj, attention.k_proj, attention.v_proj])),
        packed(attention.o_proj.weight),
        layer.post_attention_layernorm.weight,
        packed(_joined([gated.gate_proj, gated.up_proj])),
        packed(gated.down_proj.weight),
    )


def _joined(linears: list[nn.Linear]) -> torch.Tensor:
    """The weights below one another, of which each one's own is a view from now on."""
    weights = [each.weight for each in linears]
    sizes = [len(weight) for weight in weights]
    with torch.no_grad():
        joined = _common_store(weights)
        if joined is None:
            joined = torch.cat([weight.detach() for weight in weights])
            for each, part in zip(linears, joined.split(sizes), strict=True):
                each.weight.data = part
    return joined


def _common_store(weights: list[nn.Parameter]) -> torch.Tensor | None:
    """What the weights lie in one behind the other already, if they do: another engine was here."""
    at, first = weights[0].data_ptr(), weights[0]
    for weight in weights:
        same = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not same or weight.data_ptr() != at or not weight.is_contiguous():
            return None
        at += weight.numel() * weight.element_size()
    rows = sum(len(weight) for weight in weights)
    return first.detach().as_strided((rows, first.shape[1]), first.stride())
