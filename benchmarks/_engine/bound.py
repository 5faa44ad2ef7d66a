"""How near the engine is to what its arithmetic takes: the matrix products of every pass, measured
at that pass's own sizes, and the reading of the contexts.

The bound leaves out norms, rotations, softmax, choosing tokens, text, threads and all of Python.
The products are torch's own (`linear`); beside it stands the bound of the library that the engine
chose, where that is another.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from _engine.baselines import requests_per_second, serve_engine
from _engine.workload import Ask

from m3model import LocalEngine, M3ForConditionalGeneration, M3Processor
from m3model.cost import Hardware, kv_entries_per_token
from m3model.engine.passes.forward import size_of
from m3model.engine.passes.products import TORCH, Product, best_product

ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 64, 128, 256, 512, 1024)
TRIES = 15


@dataclass(frozen=True)
class Pass:
    """Tokens and speaking rows of a pass, and of each chunk (new tokens, those before them)."""

    tokens: int
    speaking: int
    chunks: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Products:
    """Seconds of all layers' matrix products, and of the head's, by rows (`ROWS`)."""

    layers: tuple[float, ...]
    head: tuple[float, ...]

    def seconds(self, one: Pass) -> float:
        """Those of a pass; between two sizes that were measured on the line between them."""
        found = np.interp(one.tokens, ROWS, self.layers)
        return float(found + (np.interp(one.speaking, ROWS, self.head) if one.speaking else 0.0))


@torch.no_grad()
def measure_products(model: M3ForConditionalGeneration, product: Product) -> Products:
    """The quickest of some tries; the layers' weights follow one another, as in a pass."""
    language = model.model.language_model
    width = model.config.hidden_size
    weights = [
        torch.cat([getattr(part, f"{name}_proj").weight for name in names])
        for layer in language.layers  # type: ignore[union-attr]
        for part, names in (
            (layer.self_attn, "qkv"), (layer.self_attn, "o"),
            (layer.mlp, ("gate", "up")), (layer.mlp, ("down",)),
        )
    ]  # fmt: skip
    head = model.lm_head.weight
    packs = [(weight.shape[1], product.packed(weight)) for weight in weights]
    packed_head = product.packed(head)
    layers, heads = [], []
    for rows in ROWS:
        inputs = {
            size: torch.randn(rows, size, dtype=weights[0].dtype, device=weights[0].device)
            for size in {width, *(weight.shape[1] for weight in weights)}
        }
        layers.append(_quickest(product, [(inputs[size], weight) for size, weight in packs]))
        heads.append(_quickest(product, [(inputs[width], packed_head)]))
    return Products(tuple(layers), tuple(heads))


def reading_seconds(model: M3ForConditionalGeneration, one: Pass, hardware: Hardware) -> float:
    """What attention takes at least: its operations, or the keys and values that it reads."""
    text = model.config.text_config
    heads, layers = int(text.num_attention_heads), int(text.num_hidden_layers)
    dim = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    pairs = sum(new * past + new * (new + 1) / 2 for new, past in one.chunks)
    read = sum(new + past for new, past in one.chunks)
    entry = kv_entries_per_token(model.config) * hardware.value_bytes
    return max(
        4 * pairs * heads * dim * layers / hardware.flops_per_second,
        read * entry / hardware.bytes_per_second,
    )


def bound_share(
    model: M3ForConditionalGeneration,
    processor: M3Processor,
    asks: Sequence[Ask],
    hardware: Hardware,
    batch: int,
    repeats: int,
) -> dict[str, Any]:
    """Requests a second, those of the bound, and the share of it: the median of some rounds, each
    of which measures both."""
    rounds = []
    best = best_product(model.lm_head.weight, size_of(model.model.language_model))
    for _ in range(repeats):
        before = [measure_products(model, each) for each in dict.fromkeys((TORCH, best))]
        engine = LocalEngine(model, processor, max_running=batch)
        passes = _noted(engine)
        rate = requests_per_second(serve_engine(engine, asks))
        engine.close()
        after = [measure_products(model, each) for each in dict.fromkeys((TORCH, best))]
        bound, *others = (
            sum(found.seconds(one) + reading_seconds(model, one, hardware) for one in passes)
            for found in map(_least, before, after)
        )
        own = others[0] if others else bound
        rounds.append((rate * bound / len(asks), rate, bound, own, len(passes)))
    share, rate, bound, own, count = sorted(rounds)[len(rounds) // 2]
    return {
        "share": share, "requests_per_second": rate,
        "bound_requests_per_second": len(asks) / bound,
        "passes": count, "shares": [each[0] for each in rounds],
        "with_the_engines_own_products": {
            "products": best.name, "share": rate * own / len(asks),
            "bound_requests_per_second": len(asks) / own,
        },
    }  # fmt: skip


def _least(one: Products, other: Products) -> Products:
    return Products(
        tuple(map(min, one.layers, other.layers)), tuple(map(min, one.head, other.head))
    )


def _noted(engine: LocalEngine) -> list[Pass]:
    """What the engine's passes from now on read."""
    passes: list[Pass] = []
    real = engine._packed.launch

    def launch(chunks: Any) -> Any:
        told = tuple((new, row.read) for row, new in chunks)
        said = real(chunks)
        passes.append(Pass(sum(new for new, _ in told), len(said.rows), told))
        return said

    engine._packed.launch = launch  # type: ignore[method-assign]
    return passes


def _quickest(product: Product, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Seconds of all these products, one after the other."""
    times = []
    for _ in range(TRIES):
        start = time.perf_counter()
        for left, weight in pairs:
            product.of(left, weight)
        times.append(time.perf_counter() - start)
    return min(times)
