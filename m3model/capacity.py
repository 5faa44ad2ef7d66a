"""What one replica can serve: requests a second and memory, for a mix of granularities.

Computed from `cost`; on a CPU with figures measured on the spot. It knows shapes and hardware;
nothing of a running service.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from m3model.cost import (
    Hardware,
    encoder_bytes,
    kv_entries_per_token,
    language_bytes,
    request_seconds,
)

if TYPE_CHECKING:
    from m3model.config import M3Config

USABLE = 0.9  # of a device's memory
WORKSPACE_BYTES = 2.8e9  # of a GPU, for activations and the allocator
Read = int | tuple[int, int]  # a scale; of a focus the coarse one, and how many fine tokens


@dataclass(frozen=True)
class Load:
    """Requests per second of one replica: encoding every picture, or finding all of them encoded.

    `fits` requests of `kv_bytes` each, at their longest, fit in memory; `batch` of them share a
    pass. A step gives each its next token, `prefill_seconds` is what one prompt takes.
    """

    kv_bytes: float
    fits: int
    batch: int
    with_encode: float
    features_cached: float
    step_seconds: float
    prefill_seconds: float


@dataclass(frozen=True)
class Plan:
    """A replica on `hardware`: bytes of its parts, and its load; `finest` is that of the same
    replica when every picture is read at the finest scale."""

    hardware: Hardware
    weight_bytes: float
    workspace_bytes: float
    kv_bytes: float
    mean_visual_tokens: float
    load: Load
    finest: Load

    @property
    def ratio(self) -> float:
        """Requests a second, routed over finest, encoding included."""
        return self.load.with_encode / self.finest.with_encode


def plan(
    config: M3Config,
    hardware: Hardware,
    mix: Mapping[Read, float],
    *,
    text_tokens: int = 40,
    answer_tokens: int = 16,
    max_batch: int = 256,
) -> Plan:
    """Capacity of one replica that encodes and answers.

    Args:
        mix: share of the requests by what they read, any positive numbers; one picture a request.
        text_tokens, answer_tokens: of a typical request.
        max_batch: requests that the engine lets into a pass.

    Raises:
        ValueError: an empty mix, a negative share, a scale that the model does not have, a focus
            of as many tokens as the finest, or a model that does not fit this hardware.
    """
    total = sum(mix.values())
    if not mix or not 0 < total < math.inf or min(mix.values()) < 0:
        raise ValueError("a mix needs at least one scale with a positive share")
    shares: dict[int, float] = {}
    for read, share in mix.items():
        tokens = _visual_tokens(config, read)
        shares[tokens] = shares.get(tokens, 0.0) + share / total
    finest = {max(config.scales): 1.0}
    size = hardware.value_bytes
    embedding = size * config.text_config.vocab_size * config.hidden_size
    weights = language_bytes(config, size) + encoder_bytes(config, size) + embedding
    workspace = WORKSPACE_BYTES if size == 2 else 0.0
    room = USABLE * hardware.memory_bytes - weights - workspace

    def load(shares: Mapping[int, float]) -> Load:
        tokens = sum(s * (scale + text_tokens + answer_tokens) for scale, s in shares.items())
        needed = kv_entries_per_token(config) * size * tokens
        fits = int(room // needed)
        if fits < 1:
            raise ValueError(
                f"{hardware.name} has room for {USABLE * hardware.memory_bytes / 1e9:.1f} GB; "
                f"weights and workspace take {(weights + workspace) / 1e9:.1f} GB, a request's "
                f"cache {needed / 1e9:.2f} GB"
            )
        batch = min(max_batch, fits)
        encode = prefill = decode = 0.0
        for scale, share in shares.items():
            took = request_seconds(config, scale, hardware, text_tokens, answer_tokens, batch=batch)
            encode += share * took.encode
            prefill += share * took.prefill
            decode += share * took.decode
        return Load(
            needed, fits, batch, 1 / (encode + prefill + decode), 1 / (prefill + decode),
            batch * decode / max(answer_tokens - 1, 1), prefill,
        )  # fmt: skip

    mean = sum(scale * share for scale, share in shares.items())
    return Plan(hardware, weights, workspace, room, mean, load(shares), load(finest))


def _visual_tokens(config: M3Config, read: Read) -> int:
    coarse, fine = read if isinstance(read, tuple) else (read, 0)
    tokens = config.check_scale(coarse) + fine
    if fine and tokens >= max(config.scales):
        raise ValueError(
            f"a focus of {coarse}+{fine} tokens reads as many as the finest scale; "
            f"it must stay below {max(config.scales)}"
        )
    return tokens


def measured_cpu(threads: int | None = None) -> Hardware:
    """This machine in fp32, measured for about a second: matrix products and copies.

    Args:
        threads: of torch; None: as it is set.
    """
    import psutil
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        left, right = torch.randn(512, 1024), torch.randn(1024, 1024)
        product = _best_seconds(lambda: torch.nn.functional.linear(left, right))
        here = torch.ones(1 << 26)  # not zeros: their pages may all be one
        there = torch.ones_like(here)
        copy = _best_seconds(lambda: there.copy_(here))
    finally:
        torch.set_num_threads(before)
    return Hardware(
        f"this CPU, {threads or before} threads, fp32, measured",
        flops_per_second=2 * 512 * 1024 * 1024 / product,
        bytes_per_second=2 * here.nbytes / copy,
        memory_bytes=float(psutil.virtual_memory().available),
        value_bytes=4,
    )


def _best_seconds(work: Callable[[], object]) -> float:
    """The quickest of some tries: others share the machine."""
    times: list[float] = []
    while len(times) < 5 or sum(times) < 0.4:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
