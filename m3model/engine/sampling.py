"""Drawing the next token: transformers' own filters, then a draw with the request's own generator.

It knows logits and a `Sampling`; nothing of requests, text or models.
"""

from __future__ import annotations

import torch
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from m3model.engine.interface import Sampling


class GumbelNoise(LogitsProcessor):
    """Makes the following argmax a draw from softmax(scores).

    The generator is the request's own: seeds repeat, and nobody else's draws move.
    """

    def __init__(self, seed: int | None, device: torch.device) -> None:
        self.generator = torch.Generator(device=device)
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        waits = torch.empty_like(scores).exponential_(generator=self.generator)
        return scores - waits.clamp_min(torch.finfo(waits.dtype).tiny).log()


def logits_processors(sampling: Sampling, device: torch.device) -> list[LogitsProcessor]:
    """What turns raw logits into scores whose argmax is the token: nothing, for greedy."""
    if sampling.temperature == 0.0:
        return []
    narrow = [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1.0 else []
    return [
        TemperatureLogitsWarper(sampling.temperature),
        *narrow,
        GumbelNoise(sampling.seed, device),
    ]
