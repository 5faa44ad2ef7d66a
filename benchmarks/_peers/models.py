"""Published routers in small, own code: embeddings in, probability of being right a scale out.

After NVIDIA LLM Router v2 (an MLP over picture and text embeddings), nearest neighbours and
RouteLLM (win probability from the text alone). Knows arrays; does not know pictures or prices.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from training.figures.metrics import Array

HIDDEN, RATE, DECAY, BATCH, EPOCHS, PATIENCE = (256, 128), 1e-3, 1e-2, 128, 40, 4
NEIGHBOURS = 50
Vectors = NDArray[np.float32]


class Standard:
    """Columns scaled to mean 0 and deviation 1 of the rows it was made from."""

    def __init__(self, X: Vectors) -> None:
        self.mean, self.scale = X.mean(axis=0), X.std(axis=0) + 1e-6

    def __call__(self, X: Vectors) -> Vectors:
        """Return the rows, scaled."""
        return ((X - self.mean) / self.scale).astype(np.float32)


class MultiLayer:
    """A multi-layer perceptron with a sigmoid a column, stopped by rows it does not learn.

    Args:
        hidden: widths of the hidden layers; none makes a logistic regression.
    """

    def __init__(
        self,
        learnt: tuple[Vectors, Array],
        watched: tuple[Vectors, Array],
        seed: int,
        hidden: tuple[int, ...] = HIDDEN,
    ) -> None:
        torch.manual_seed(seed)
        self.scaled = Standard(learnt[0])
        widths = (learnt[0].shape[1], *hidden, learnt[1].shape[1])
        layers: list[torch.nn.Module] = []
        for wide, narrow in pairwise(widths):
            layers += [torch.nn.Linear(wide, narrow), torch.nn.GELU(), torch.nn.Dropout(0.1)]
        self.net = torch.nn.Sequential(*layers[:-2])
        self._fit(learnt, watched)

    @property
    def parameters(self) -> int:
        """How many numbers were learnt."""
        return sum(weight.numel() for weight in self.net.parameters())

    @torch.inference_mode()
    def __call__(self, X: Vectors) -> Array:
        """Return (n, K) probabilities."""
        self.net.eval()
        return torch.sigmoid(self.net(torch.from_numpy(self.scaled(X)))).double().numpy()

    def _fit(self, learnt: tuple[Vectors, Array], watched: tuple[Vectors, Array]) -> None:
        x, y = torch.from_numpy(self.scaled(learnt[0])), torch.from_numpy(learnt[1]).float()
        x_seen, y_seen = torch.from_numpy(self.scaled(watched[0])), torch.from_numpy(watched[1])
        loss = torch.nn.functional.binary_cross_entropy_with_logits
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=RATE, weight_decay=DECAY)
        best, since = np.inf, 0
        kept = {name: value.clone() for name, value in self.net.state_dict().items()}
        for _ in range(EPOCHS):
            self.net.train()
            for rows in torch.randperm(len(x)).split(BATCH):
                optimizer.zero_grad()
                loss(self.net(x[rows]), y[rows]).backward()
                optimizer.step()
            self.net.eval()
            with torch.inference_mode():
                now = float(loss(self.net(x_seen), y_seen.float()))
            since += 1
            if now < best:
                best, since = now, 0
                kept = {name: value.clone() for name, value in self.net.state_dict().items()}
            if since == PATIENCE:
                break
        self.net.load_state_dict(kept)


class Neighbours:
    """Mean scores of the nearest labelled questions, by cosine of picture plus question.

    Args:
        split: where the question's part of a row begins; both parts weigh the same.
    """

    def __init__(self, X: Vectors, scores: Array, split: int) -> None:
        self.scaled, self.split, self.scores = Standard(X), split, scores
        self.known = self._unit(X)

    @property
    def parameters(self) -> int:
        """How many numbers are kept: every labelled question."""
        return self.known.size + self.scores.size

    def __call__(self, X: Vectors) -> Array:
        """Return (n, K) shares of right answers among the neighbours."""
        found = []
        k = min(NEIGHBOURS, len(self.known))
        for start in range(0, len(X), 256):
            near = self._unit(X[start : start + 256]) @ self.known.T
            rows = np.argpartition(-near, k - 1, axis=1)[:, :k]
            found.append(self.scores[rows].mean(axis=1))
        return np.concatenate(found)

    def _unit(self, X: Vectors) -> Vectors:
        x = self.scaled(X)
        parts = [x[:, : self.split], x[:, self.split :]]
        return np.hstack([part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts])


def wins(scores: Array, cheap: int, dear: int) -> Array:
    """Return (n, 1): 1 where the dear scale is right and the cheap one is not."""
    return ((scores[:, dear] > 0.5) & (scores[:, cheap] <= 0.5)).astype(float)[:, None]
