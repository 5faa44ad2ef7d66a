"""Where a model looks when it is about to answer: its own attention, as maps over the patches.

One packed pass over the picture at its finest scale, all questions of the picture together. No
masks and no answers are needed, so any pictures with questions do. Knows a language model's layers;
does not know what the maps are used for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from training.oracle.packed import PackedBatch, PackedQuestion


@torch.inference_mode()
def answer_attention(
    model: Any, grid: torch.Tensor, prompts: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Return (n, N) float32: attention from the place of each answer's first token to the patches.

    The mean over all layers and heads; a row sums to the share of attention the picture gets.

    Args:
        model: an ``M3ForConditionalGeneration`` loaded with ``attn_implementation="eager"`` (the
            others do not give their weights away).
        grid: (N, D) projected patches of one picture.
        prompts: n prompts about it, ids with one image token each.

    Raises:
        ValueError: the model was loaded with another attention, or a prompt without an image token.
    """
    if model.model.language_model.config._attn_implementation != "eager":
        raise ValueError('load the model with attn_implementation="eager"')
    batch = PackedBatch(model, grid[None], [[PackedQuestion(ids, None) for ids in prompts]])
    start = list(prompts[0]).index(model.config.image_token_id)
    reads = batch.read_columns[[first for _, _, first, _ in batch.spans]]
    with _listening(model, reads, slice(start, start + len(grid))) as maps:
        model.model.language_model(
            inputs_embeds=batch.embeds,
            attention_mask=batch.prefill_mask(),
            position_ids=batch.positions,
            use_cache=False,
        )
    return torch.stack(maps).mean(dim=0)


@contextmanager
def _listening(model: Any, rows: torch.Tensor, columns: slice) -> Iterator[list[torch.Tensor]]:
    """Collect (n, N) head means of every layer's attention, of these rows and columns only."""
    heard: list[torch.Tensor] = []

    def hear(module: Any, inputs: Any, output: Any) -> None:
        heard.append(output[1][0][:, rows, columns].float().mean(dim=0))

    hooks = [
        layer.self_attn.register_forward_hook(hear) for layer in model.model.language_model.layers
    ]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()
