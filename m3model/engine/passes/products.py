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

import psutil
import torch
from torch.nn.functional import linear, pad

LOG = logging.getLogger(__name__)
FEW = 6  # rows; with fewer, and weights as they are, MKL is at least as quick
# oneDNN makes code for every number of rows that it meets, in some tenths of a millisecond, and
# keeps a thousand pieces: up to so many rows one for each number, else for multiples of a grain.
EXACT, GRAIN = 16, 8
TRIES = 7
WORTH_IT = 1.25  # times as quick
PACKED_SHARE = 1 / 8  # of the memory that is free, for weights in another order


@dataclass(frozen=True)
class Product:
    """`of` (T, K) activations and `packed` (N, K) weights is (T, N)."""

    name: str
    of: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    packed: Callable[[torch.Tensor], torch.Tensor] = lambda weight: weight


def _onednn(found: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return linear(found, weight) if len(found) < FEW else _onednn_packed(found, weight)


def _onednn_packed(found: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    rows = len(found)
    if rows > EXACT and (spare := -rows % GRAIN):
        found = pad(found, (0, 0, 0, spare))
    told: torch.Tensor = torch.ops.mkldnn._linear_pointwise(found, weight, None, "none", [], "")
    return told[:rows]


def _packed(weight: torch.Tensor) -> torch.Tensor:
    told: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)
    return told


TORCH = Product("torch", linear)
ONEDNN = Product("oneDNN", _onednn)
# Weights in oneDNN's own order: 16 rows take three quarters of the time, four rows three fifths.
PACKED = Product("oneDNN, packed weights", _onednn_packed, _packed)


def best_product(weight: torch.Tensor, held: int) -> Product:
    """The quickest for weights like this one; all round alike, none gives another's bits.

    Args:
        held: bytes of all the weights, which packing would hold a second time.
    """
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return TORCH
    if _quickest_on_cpu() is TORCH:
        return TORCH
    return PACKED if held <= psutil.virtual_memory().available * PACKED_SHARE else ONEDNN


@cache
@torch.no_grad()
def _quickest_on_cpu() -> Product:
    draw = torch.Generator().manual_seed(0)  # and the caller's draws go on as they would have
    found, weight = (torch.rand(rows, 256, generator=draw) for rows in (64, 768))
    try:
        wanted = TORCH.of(found, weight)
        theirs = [each.of(found, each.packed(weight)) for each in (ONEDNN, PACKED)]
        if not all(torch.allclose(each, wanted) for each in theirs):
            LOG.warning("matrix products: oneDNN gives other numbers here; not used")
        else:
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
