"""Which sources of relevance a model folder gives: a trained readout, the model as it is, CLIP.

Knows every source by name and what each needs; knows nothing of routers, services or training.

Shapes: N patches, R rank of a readout.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from m3model.errors import RelevanceUnavailable
from m3model.relevance.readout import FILE_NAME, RelevanceReadout
from m3model.relevance.source import ATTENTION, AUTO, CHOICES, CLIP, READOUT, Array, RelevanceSource
from m3model.relevance.untrained import AttentionRelevance, CosineRelevance


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
        from m3model.relevance.clip import text_encoder_identity

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
        from m3model.relevance.clip import ClipRelevance

        found.append(ClipRelevance.from_pretrained(text_encoder, model))
    return {source.name: source for source in found}
