"""Where a picture's relevance to a question comes from: a trained readout, or the model as it is.

Every source turns by-products of the one encode and the question into one number a patch. A router
is fitted on the numbers of one source and knows its name. Knows the model's embeddings and first
layer; knows nothing of routers, services or training. CLIP's text tower is in `relevance_clip`.

Shapes: N patches, D their width, V vocabulary, n words (tokens) of a question.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from m3model.errors import RelevanceUnavailable
from m3model.relevance import FILE_NAME, RelevanceReadout

Array = NDArray[np.float32]
AUTO = "auto"
READOUT, COSINE, ATTENTION, CLIP = "readout", "cosine", "attention", "clip"
CHOICES = (AUTO, READOUT, COSINE, ATTENTION, CLIP)
_EPS = 1e-6


class RelevanceSource(Protocol):
    """One way to say how strongly each patch of a picture answers to a question.

    Attributes:
        name: what a router fitted on it is tied to.
        needs_tower: whether `project` wants the vision tower's states (`encode_with_tower`).
    """

    name: str
    needs_tower: bool

    def project(self, grid: Array, tower: torch.Tensor | None) -> Array:
        """What a picture gives to every question about it, from its projected patches (N, D)."""

    def score(self, projected: Array, question: str, ids: Sequence[int]) -> Array:
        """Relevance (N,) float32 in [0, 1] to a bare question, given as text and as token ids."""


class ReadoutRelevance:
    """The trained readout beside the model."""

    name, needs_tower = READOUT, False

    def __init__(self, readout: RelevanceReadout) -> None:
        self._readout = readout

    def project(self, grid: Array, tower: torch.Tensor | None) -> Array:
        """Patches in the readout's space (N, R)."""
        return self._readout.project(grid)

    def score(self, projected: Array, question: str, ids: Sequence[int]) -> Array:
        """As `RelevanceReadout.score`."""
        return self._readout.score(projected, ids)


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
        unit: Array = centred / np.maximum(lengths, _EPS)
        return unit

    @torch.inference_mode()
    def score(self, projected: Array, question: str, ids: Sequence[int]) -> Array:
        """Of each patch, the largest of its words' z-scored cosines, z-scored and squashed."""
        if not ids:
            return np.zeros(len(projected), np.float32)
        words = (self._embed(list(ids)).float() - self._mean).cpu().numpy()
        words /= np.maximum(np.linalg.norm(words, axis=1, keepdims=True), _EPS)
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


def standardised(values: Array) -> Array:
    """Return values less their mean over the last axis, in standard deviations."""
    centred = values - values.mean(axis=-1, keepdims=True)
    return np.asarray(centred / np.maximum(values.std(axis=-1, keepdims=True), _EPS), np.float32)


def squashed(values: Array) -> Array:
    """Return values (N,) in [0, 1]: a patch one standard deviation above the mean gets a half."""
    return np.asarray(0.5 * (1.0 + np.tanh(standardised(values) - 1.0)), np.float32)


def relevance_name(
    folder: str | Path, wanted: str = AUTO, text_encoder: str | Path | None = None
) -> str:
    """Return the full name of the source to use with a model folder; no model is loaded.

    Args:
        folder: of the model; may hold a readout.
        wanted: one of `CHOICES`. `auto`: the readout where there is one, else CLIP where a text
            encoder is given, else the attention.
        text_encoder: folder of the CLIP model that the vision tower came from, or None.

    Raises:
        RelevanceUnavailable: an unknown source, or one that lacks its files.
    """
    has_readout = (Path(folder) / FILE_NAME).is_file()
    if wanted == AUTO:
        wanted = READOUT if has_readout else ATTENTION if text_encoder is None else CLIP
    if wanted == READOUT and not has_readout:
        raise RelevanceUnavailable(
            f"{folder} has no {FILE_NAME}: train one with `m3-train readout`, or use another source"
        )
    if wanted == CLIP:
        if text_encoder is None:
            raise RelevanceUnavailable("relevance clip needs the folder of a --text-encoder")
        from m3model.relevance_clip import text_encoder_identity

        return f"{CLIP}-{text_encoder_identity(text_encoder)}"
    if wanted not in CHOICES:
        raise RelevanceUnavailable(f"unknown relevance {wanted!r}: use {', '.join(CHOICES)}")
    return wanted


def relevance_sources(
    model: Any, folder: str | Path, text_encoder: str | Path | None = None
) -> dict[str, RelevanceSource]:
    """Return every source that a loaded model can give, by full name.

    Args:
        model: with the first layer of its language model and its embeddings.
        folder: it was loaded from; may hold a readout.
        text_encoder: as in `relevance_name`.

    Raises:
        RelevanceUnavailable: the text encoder cannot be used with this model.
        ValueError: the readout's file is damaged.
    """
    found: list[RelevanceSource] = [CosineRelevance(model), AttentionRelevance(model)]
    readout = RelevanceReadout.from_pretrained(folder)
    if readout is not None:
        found.append(ReadoutRelevance(readout))
    if text_encoder is not None:
        from m3model.relevance_clip import ClipRelevance

        found.append(ClipRelevance.from_pretrained(text_encoder, model))
    return {source.name: source for source in found}
