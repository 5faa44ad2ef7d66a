"""Relevance without training: from the model's own embeddings or its first layer's attention.

Knows a loaded model's embeddings and first layer; knows no readout, no CLIP, no router.

Shapes: N patches, D their width, n words (tokens) of a question.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from m3model.relevance.source import ATTENTION, COSINE, EPS, Array, squashed, standardised


class CosineRelevance:
    """Cosine of patches and word embeddings, both less their means; the best word counts."""

    name, needs_tower = COSINE, False

    def __init__(self, model: Any) -> None:
        self._embed = model.embed_text
        table = model.get_input_embeddings().weight[: model.config.text_vocab_size]
        self._mean = table.detach().float().mean(dim=0)

    def project(self, grid: Array, tower: torch.Tensor | None) -> Array:
        """Centred patches of length one (N, D)."""
        centred = grid - grid.mean(axis=0)
        lengths = np.linalg.norm(centred, axis=1, keepdims=True)
        unit: Array = centred / np.maximum(lengths, EPS)
        return unit

    @torch.inference_mode()
    def score(self, projected: Array, question: str, ids: Sequence[int]) -> Array:
        """Of each patch, the largest of its words' z-scored cosines, z-scored and squashed."""
        if not ids:
            return np.zeros(len(projected), np.float32)
        words = (self._embed(list(ids)).float() - self._mean).cpu().numpy()
        words /= np.maximum(np.linalg.norm(words, axis=1, keepdims=True), EPS)
        return squashed(standardised(words @ projected.T).max(axis=0))


class AttentionRelevance:
    """First-layer attention from the question's words to the patches, positions left out.

    Keys and queries are taken less their means over the picture and the vocabulary: what every
    patch and every word share says nothing. The head and word that attend most count.

    Args:
        model: its embeddings and the first layer's norm and projections are kept, nothing else.
    """

    name, needs_tower = ATTENTION, False

    def __init__(self, model: Any) -> None:
        text = model.config.text_config
        layer = model.model.language_model.layers[0]
        self._norm, self._query = layer.input_layernorm, layer.self_attn.q_proj
        self._key = layer.self_attn.k_proj
        self._heads, self._key_heads = text.num_attention_heads, text.num_key_value_heads
        self._table = model.get_input_embeddings()
        self._vocabulary = model.config.text_vocab_size
        self._mean: torch.Tensor | None = None

    @torch.inference_mode()
    def project(self, grid: Array, tower: torch.Tensor | None) -> Array:
        """Centred keys (N, key heads * head width)."""
        patches = torch.from_numpy(grid).to(self._key.weight.device, self._key.weight.dtype)
        keys = self._key(self._norm(patches)).float()
        centred: Array = (keys - keys.mean(dim=0)).cpu().numpy()
        return centred

    @torch.inference_mode()
    def score(self, projected: Array, question: str, ids: Sequence[int]) -> Array:
        """The largest attention over heads and words, z-scored and squashed."""
        if not ids:
            return np.zeros(len(projected), np.float32)
        rows = torch.tensor(list(ids), device=self._table.weight.device)
        queries = (self._queries(self._table(rows)) - self._mean_query()).cpu().numpy()
        groups = self._heads // self._key_heads
        # (key heads, group of query heads * words, width) x (key heads, width, N)
        q = queries.reshape(len(ids), self._key_heads, groups, -1).transpose(1, 2, 0, 3)
        q = q.reshape(self._key_heads, groups * len(ids), -1)
        k = projected.reshape(len(projected), self._key_heads, -1).transpose(1, 2, 0)
        logits = (q @ k) / np.sqrt(np.float32(q.shape[-1]))
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        return squashed(weights.max(axis=(0, 1)))

    def _queries(self, embedded: torch.Tensor) -> torch.Tensor:
        queries: torch.Tensor = self._query(self._norm(embedded)).float()
        return queries

    def _mean_query(self) -> torch.Tensor:
        if self._mean is None:  # a pass over the vocabulary, once
            parts = self._table.weight[: self._vocabulary].split(4096)
            total = torch.stack([self._queries(part).sum(dim=0) for part in parts]).sum(dim=0)
            self._mean = total / self._vocabulary
        return self._mean
