"""What a source of relevance is: one number a patch, from by-products of the one encode.

Every source offers the same two steps: `project` once a picture, `score` once a question. A router
is fitted on the numbers of one source and knows its name. Knows arrays; knows no source by name.

Shapes: N patches, D their width, B pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float32]
AUTO = "auto"
READOUT, COSINE, ATTENTION, CLIP = "readout", "cosine", "attention", "clip"
CHOICES = (AUTO, READOUT, COSINE, ATTENTION, CLIP)
EPS = 1e-6


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


def standardised(values: Array) -> Array:
    """Return values less their mean over the last axis, in standard deviations."""
    centred = values - values.mean(axis=-1, keepdims=True)
    return np.asarray(centred / np.maximum(values.std(axis=-1, keepdims=True), EPS), np.float32)


def squashed(values: Array) -> Array:
    """Return values (N,) in [0, 1]: a patch one standard deviation above the mean gets a half."""
    return np.asarray(0.5 * (1.0 + np.tanh(standardised(values) - 1.0)), np.float32)


@torch.inference_mode()
def encode_with_tower(model: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return grids (B, N, D) and the states (B, N, vision width) that enter the last tower layer.

    ONE pass of the vision tower, as `encode_images`.
    """
    caught: list[torch.Tensor] = []

    def catch(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        caught.append(states[:, 1:])  # without the class token

    last = model.model.vision_tower.encoder.layers[-1]
    hook = last.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        grids = model.encode_images(pixels)
    finally:
        hook.remove()
    return grids, caught[0]
