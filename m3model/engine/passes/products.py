"""Activations times weights, by the library that is quicker at it here.

torch multiplies 32-bit matrices on CPUs by MKL, which uses half the width of some makers'
processors. oneDNN, which torch brings too, uses all of it. Knows matrices; nothing of layers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch.nn.functional import linear

LOG = logging.getLogger(__name__)
FEW = 6  # rows that MKL is at least as quick at
EXACT = 16  # rows up to which every number of them has a kernel of its own
GRAIN = 8
TRIES = 7
WORTH_IT = 1.25  # times as quick


@dataclass(frozen=True)
class Product:
    """`of` (T, K) activations and (N, K) weights is (T, N).

    A pass of many tokens had better have a multiple of `grain` rows: a library that makes code for
    each number of rows it meets would make it all the time.
    """

    name: str
    of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    grain: int = 1

    def rows(self, tokens: int) -> int:
        """How many rows a pass of so many tokens had better have."""
        return tokens if tokens <= EXACT else -(-tokens // self.grain) * self.grain


def _onednn(found: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    if len(found) < FEW:
        return linear(found, weight)
    return torch.ops.mkldnn._linear_pointwise(found, weight, None, "none", [], "")  # type: ignore[no-any-return]


TORCH = Product("torch", linear)
ONEDNN = Product("oneDNN", _onednn, GRAIN)


def best_product(weight: torch.Tensor) -> Product:
    """The quickest for weights like this one; both round alike, neither gives the other's bits."""
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return TORCH
    return _quickest_on_cpu()


@cache
@torch.no_grad()
def _quickest_on_cpu() -> Product:
    found, weight = torch.rand(64, 256), torch.rand(768, 256)
    try:
        if torch.allclose(ONEDNN.of(found, weight), TORCH.of(found, weight)):
            gain = _seconds(TORCH, found, weight) / _seconds(ONEDNN, found, weight)
            LOG.info("matrix products: oneDNN takes 1/%.2f of torch's own time", gain)
            return ONEDNN if gain > WORTH_IT else TORCH
    except (AttributeError, RuntimeError) as error:  # a torch without it
        LOG.info("matrix products: torch's own (%s)", error)
    return TORCH


def _seconds(product: Product, found: torch.Tensor, weight: torch.Tensor) -> float:
    times = []
    for _ in range(TRIES):
        start = time.perf_counter()
        product.of(found, weight)
        times.append(time.perf_counter() - start)
    return min(times)
