"""The dtype that m3-mini trains in: whichever of bf16 and fp32 this machine multiplies faster.

CPUs without bf16 units emulate them, tens of times slower than fp32; those that have them are
several times faster. Knows a clock and the sizes of m3-mini's products, nothing of the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

Seconds = Callable[[torch.dtype], float]
TRIES = 3
# One picture's vision MLP, its attention, and the Gram matrix of one Muon step.
SHAPES = (
    ((577, 128), (128, 512)),
    ((2, 577, 64), (2, 64, 577)),
    ((128, 512), (512, 128)),
)


def product_seconds(dtype: torch.dtype) -> float:
    """Return the seconds of m3-mini's products on one thread of this CPU, best of several tries."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker of the training
    try:
        return sum(
            _best(torch.ones(left, dtype=dtype), torch.ones(right, dtype=dtype))
            for left, right in SHAPES
        )
    finally:
        torch.set_num_threads(threads)


def _best(left: Tensor, right: Tensor) -> float:
    left @ right  # the first call also sets the kernels up
    seconds = []
    for _ in range(TRIES):
        began = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def chosen_dtype(device: str, seconds: Seconds = product_seconds) -> tuple[torch.dtype, str]:
    """Return the dtype to compute in on ``device``, and why in one line."""
    if torch.device(device).type != "cpu":
        return torch.bfloat16, f"computing in bf16 on {device}"
    bf16, fp32 = seconds(torch.bfloat16), seconds(torch.float32)
    if bf16 <= fp32:
        return torch.bfloat16, (
            f"computing in bf16: fp32 products take {fp32 / bf16:.1f} x as long on this CPU"
        )
    return torch.float32, (
        f"computing in fp32: bf16 products take {bf16 / fp32:.1f} x as long on this CPU"
    )
