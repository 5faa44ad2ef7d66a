"""Drawing next tokens: transformers' filters for all rows at once, then each row's own noise.

It knows logits and `Sampling`s; nothing of requests, text or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from m3model.engine.interface import Sampling
from m3model.engine.passes.attention import on_device


@dataclass(frozen=True)
class Draw:
    """How one row draws: softmax(logits / temperature), of its likeliest tokens those that reach
    `top_p`, with a generator of its own: seeds repeat, and nobody else's draws move."""

    temperature: float
    top_p: float
    generator: torch.Generator


def draw_of(sampling: Sampling, device: torch.device) -> Draw | None:
    """How a request's tokens are drawn; None: the most probable is taken."""
    if sampling.temperature == 0.0:
        return None
    generator = torch.Generator(device=device)
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return Draw(sampling.temperature, sampling.top_p, generator)


class Choices:
    """How the rows of a pass choose, and which of them want to know what else was probable.

    Args:
        draws: of each row; None for those that take the most probable.
        tops: how many of the most probable tokens each row wants to be told.
        device: where logits are.
    """

    def __init__(
        self, draws: Sequence[Draw | None], tops: Sequence[int], device: torch.device
    ) -> None:
        self.asking = [(at, top) for at, top in enumerate(tops) if top]
        if self.asking:
            self._asking = on_device([at for at, _ in self.asking], device)
        drawing = [(at, draw) for at, draw in enumerate(draws) if draw is not None]
        self._draws = [draw for _, draw in drawing]
        if drawing:
            self._rows = on_device([at for at, _ in drawing], device)
            told = [(draw.temperature, 1.0 - draw.top_p) for draw in self._draws]
            flat = on_device([x for pair in told for x in pair], device, torch.float32)
            self._temperatures, self._tails = flat.view(-1, 2, 1).unbind(1)
        self._narrows = any(draw.top_p < 1.0 for draw in self._draws)

    @property
    def drawing(self) -> bool:
        """Whether any row draws."""
        return bool(self._draws)

    def choose(self, logits: torch.Tensor, best: torch.Tensor) -> torch.Tensor:
        """(rows,) next tokens from (rows, vocabulary) logits in 32 bits and their (rows,) best."""
        ids = best
        if self._draws:
            ids = best.clone()
            scores = logits.index_select(0, self._rows).div_(self._temperatures)
            if self._narrows:
                scores = self._narrowed(scores)
            waits = torch.empty_like(scores)
            for row, draw in zip(waits, self._draws, strict=True):
                row.exponential_(generator=draw.generator)
            # The argmax of scores with such noise is a draw from their softmax.
            noisy = scores.sub_(waits.clamp_min_(torch.finfo(waits.dtype).tiny).log_())
            ids.index_copy_(0, self._rows, noisy.argmax(dim=-1))
        return ids

    def most_probable(
        self, logits: torch.Tensor, totals: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Of the `asking` rows, ids and log-probabilities (rows, most that one wants); None where
        there are none.

        Args:
            logits: (rows, vocabulary).
            totals: (rows,) the logarithms of the sums of their exponentials.
        """
        if not self.asking:
            return None
        most = min(max(top for _, top in self.asking), logits.shape[1])
        found = logits.index_select(0, self._asking).topk(most, dim=-1)
        return found.indices, found.values - totals.index_select(0, self._asking).unsqueeze(1)

    def _narrowed(self, scores: torch.Tensor) -> torch.Tensor:
        ranked, order = scores.sort(dim=-1)
        unlikely = ranked.softmax(dim=-1).cumsum(dim=-1) <= self._tails
        unlikely[:, -1].fill_(False)  # one always stays
        return scores.masked_fill_(unlikely.scatter(1, order, unlikely), -torch.inf)
