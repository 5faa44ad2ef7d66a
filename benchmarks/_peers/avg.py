"""A router after AVG-LLaVA, own code: one Transformer layer over the tokens of all scales.

The visual tokens of every scale and the question's tokens go through one layer; a small network
gives every position logits for the scales and a learnt weight a position votes. It learns from the
model's own likelihoods: pairs of scales are ranked, with margins as large as their difference.

Notation: P visual positions (sum of the scales), m question tokens, D width, H heads, K scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from _peers.pictures import Encoded
from torch import nn

from m3model import pool_visual_tokens
from training.figures.metrics import Array

HEADS, RATE, CE_WEIGHT, MARGIN, EPOCHS = 4, 1e-3, 0.1, 1.0, 1
LONGEST = 32  # question tokens


class AvgRouter(nn.Module):
    """Logits (Q, K) for the Q questions of one picture.

    What visual tokens say to each other does not depend on the question, so it is computed once a
    picture; the softmax over both kinds of keys is put together from its two parts.
    """

    def __init__(self, scales: Sequence[int], width: int) -> None:
        super().__init__()
        self.scales, positions = tuple(scales), sum(scales) + LONGEST
        self.place = nn.Parameter(0.02 * torch.randn(positions, width))
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.logits = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, len(scales))
        )
        self.votes = nn.Parameter(torch.zeros(positions))

    def forward(self, grid: torch.Tensor, questions: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return (Q, K) of a grid (N, D) and question embeddings, each (m, D)."""
        visual = torch.cat([pool_visual_tokens(grid, scale) for scale in self.scales])
        n = len(visual)
        visual = visual + self.place[:n]
        query, key, value = self._heads(visual)
        scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
        among, mass = scores.softmax(dim=-1) @ value, scores.logsumexp(dim=-1)
        return torch.stack(
            [self._one(visual, (query, key, value), among, mass, q[:LONGEST]) for q in questions]
        )

    def _one(
        self,
        visual: torch.Tensor,
        heads: tuple[torch.Tensor, ...],
        among: torch.Tensor,
        mass: torch.Tensor,
        question: torch.Tensor,
    ) -> torch.Tensor:
        n, m = len(visual), len(question)
        said = question + self.place[n : n + m]
        query, key, value = self._heads(said)
        to_words = heads[0] @ key.transpose(1, 2) / math.sqrt(query.shape[-1])  # (H, P, m)
        share = torch.sigmoid(mass - to_words.logsumexp(dim=-1))[..., None]
        seen = share * among + (1.0 - share) * (to_words.softmax(dim=-1) @ value)
        asked = nn.functional.scaled_dot_product_attention(
            query, torch.cat([heads[1], key], dim=1), torch.cat([heads[2], value], dim=1)
        )
        both = torch.cat([seen, asked], dim=1).transpose(0, 1).flatten(1)
        x = torch.cat([visual, said]) + self.out(both)
        x = x + self.wide(self.between(x))
        weights = self.votes[: n + m].softmax(dim=0)
        voted: torch.Tensor = weights @ self.logits(x)
        return voted

    def _heads(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = self.qkv(self.before(x)).view(len(x), 3, HEADS, -1).permute(1, 2, 0, 3)
        return tuple(parts)


def ranking_loss(logits: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    """Return the mean over rows of the pairwise hinge plus a tenth of the cross-entropy.

    A scale whose answer loss is lower must have a log probability higher by a margin: rank distance
    times difference of the losses.

    Args:
        logits, losses: (Q, K); ``losses`` is minus the log likelihood of the reference answer.
    """
    said = logits.log_softmax(dim=-1)
    rank = losses.argsort(dim=-1).argsort(dim=-1)
    apart = rank[:, None, :] - rank[:, :, None]  # positive where the first index is better
    gap = losses[:, None, :] - losses[:, :, None]
    hinge = (MARGIN * apart * gap - (said[:, :, None] - said[:, None, :])).clamp_min(0.0)
    pairs = hinge[apart > 0].sum() / len(logits)
    return pairs + CE_WEIGHT * nn.functional.nll_loss(said, losses.argmin(dim=-1))


def fit_avg(
    pictures: Sequence[Encoded], soft: Array, words: torch.Tensor, scales: Sequence[int], seed: int
) -> AvgRouter:
    """Return a router fitted on pictures, one step a picture.

    Args:
        soft: (n, K) P(reference answer) of all questions of the oracle, by row.
        words: (V, D) the model's embedding table.
    """
    torch.manual_seed(seed)
    router = AvgRouter(scales, words.shape[1])
    steps = EPOCHS * len(pictures)
    optimizer = torch.optim.AdamW(router.parameters(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=max(2, steps))
    for _ in range(EPOCHS):
        for index in torch.randperm(len(pictures)).tolist():
            picture = pictures[index]
            losses = -np.log(np.clip(soft[picture.rows], 1e-4, 1.0))
            optimizer.zero_grad()
            logits = router(picture.grid.float(), [words[list(q)] for q in picture.question_ids])
            loss = ranking_loss(logits, torch.from_numpy(losses).float())
            loss.backward()
            nn.utils.clip_grad_norm_(router.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return router.eval()


@torch.inference_mode()
def log_probabilities(router: AvgRouter, pictures: Sequence[Encoded], words: torch.Tensor) -> Array:
    """Return (n, K) in the order of the pictures and their questions."""
    found = [
        router(picture.grid.float(), [words[list(q)] for q in picture.question_ids])
        for picture in pictures
    ]
    return torch.cat(found).log_softmax(dim=-1).double().numpy()
