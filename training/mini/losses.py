"""What m3-mini is taught: answers at every scale and from cuts, what a patch shows, where to look.

Pure functions from a model and a batch to losses. Notation as in ``training.mini.batch``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from m3model.focus import Focus, focus_visual_tokens
from m3model.pooling import pool_visual_tokens
from training.cuts import CUT_STREAM, draw_cut
from training.mini.batch import IGNORE, SceneBatch, attention_mask
from training.mini.model import MiniModel

Reading = int | Sequence[Focus]  # one scale for all pictures, or a focus for each
ATTENTION = "m3_mini"
# Colours come by themselves; letters and digits take most of the training.
LABEL_WEIGHTS = {"class": 1.0, "color": 0.3, "char": 2.7}


def register_attention() -> None:
    """Register plain attention whose softmax stays in the tensors' own dtype.

    On CPUs with bf16 units this is the fastest bf16 training step: the library's eager attention
    takes the softmax in fp32, and fused attention has a slow backward there (docs/experiments.md).
    """
    from transformers import AttentionInterface

    def attend(module, query, key, value, mask, scaling, dropout=0.0, **_):
        scores = torch.matmul(query * scaling, key.transpose(2, 3))
        if mask is not None:
            scores = scores + mask
        mixed = torch.matmul(scores.softmax(-1), value)
        return mixed.transpose(1, 2).contiguous(), None

    AttentionInterface.register(ATTENTION, attend)


def dense_loss(model: MiniModel, grid: Tensor, batch: SceneBatch) -> Tensor:
    """Return the mean cross entropy of reading class, colour and character off every patch."""
    total = grid.new_zeros((), dtype=torch.float32)
    weights = batch.patch_weight.float()
    for family, labels in batch.labels.items():
        logits = model.label_logits(grid, family).float()
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="none"
        )
        total = total + LABEL_WEIGHTS[family] * (losses.view(labels.shape) * weights).sum(1).mean()
    return total / sum(LABEL_WEIGHTS.values())


def relevance_loss(model: MiniModel, grid: Tensor, batch: SceneBatch) -> Tensor:
    """Return the class-balanced cross entropy of finding the patches each question asks about."""
    logits = model.relevance_logits(grid, batch.question_ids, batch.question_mask).float()
    truth = batch.relevant.float()
    losses = nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    n_true = truth.sum(-1, keepdim=True)
    n_false = (1 - truth).sum(-1, keepdim=True)
    # sqrt balancing: small targets count, yet the readout stays roughly calibrated on large ones
    weight = truth / n_true.clamp(min=1).sqrt() + (1 - truth) / n_false.clamp(min=1).sqrt()
    asked = batch.question_mask.any(-1)
    per_question = (losses * weight).sum(-1) / weight.sum(-1).clamp(min=1e-6)
    return per_question[asked].mean()


def read_pictures(grid: Tensor, reading: Reading) -> tuple[Tensor, Tensor]:
    """Return visual tokens (B, P, D), zero behind each picture's own, and their numbers (B,)."""
    if isinstance(reading, int):
        visual = pool_visual_tokens(grid, reading)
        return visual, torch.full((len(grid),), reading, device=grid.device)
    read = [focus_visual_tokens(one, focus) for one, focus in zip(grid, reading, strict=True)]
    counts = torch.tensor([len(tokens) for tokens in read], device=grid.device)
    return nn.utils.rnn.pad_sequence(read, batch_first=True), counts


def answer_states(
    model: MiniModel, grid: Tensor, batch: SceneBatch, reading: Reading
) -> tuple[Tensor, Tensor]:
    """Return logits (N, V) and ids (N,) of the N answer tokens, pictures read as ``reading``."""
    m3 = model.m3
    embed = m3.get_input_embeddings()
    visual, counts = read_pictures(grid, reading)
    start = embed(
        torch.full((grid.shape[0], 1), m3.config.text_config.bos_token_id, device=grid.device)
    )
    hidden = torch.cat([start.to(visual.dtype), visual, embed(batch.text).to(visual.dtype)], dim=1)
    n_prefix, own = visual.shape[1] + 1, counts[:, None] + 1
    prefix = torch.arange(n_prefix, device=grid.device).expand(grid.shape[0], -1)
    positions = torch.cat([prefix, own + batch.offset], dim=1)
    states = m3.model.language_model(
        inputs_embeds=hidden,
        attention_mask=attention_mask(batch.block, prefix < own, hidden.dtype),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state[:, n_prefix:]
    wanted = batch.target != IGNORE
    return (states[wanted] @ embed.weight.T).float(), batch.target[wanted]


def answer_loss(
    model: MiniModel,
    grid: Tensor,
    batch: SceneBatch,
    reading: Reading,
    weights: Tensor | None = None,
) -> Tensor:
    """Return the cross entropy of the answers, pictures read as ``reading``: mean over tokens.

    Args:
        weights: (B, Q) what each question counts; all the same when left out.
    """
    logits, target = answer_states(model, grid, batch, reading)
    if weights is None:
        return nn.functional.cross_entropy(logits, target)
    wanted = batch.target != IGNORE
    each = weights.gather(1, (batch.block - 1).clamp(min=0))[wanted]
    losses = nn.functional.cross_entropy(logits, target, reduction="none")
    return (losses * each).sum() / each.sum()


@torch.no_grad()
def draw_cuts(
    model: MiniModel, grid: Tensor, batch: SceneBatch, seeds: Sequence[int]
) -> tuple[list[Focus], Tensor]:
    """Return a cut of every picture, drawn from its seed, and weights (B, Q).

    Whichever pictures share a batch, a picture's cut is the same: workers only split the draw.
    """
    maps = model.relevance_logits(grid, batch.question_ids, batch.question_mask)
    relevance, scales = maps.float().sigmoid().cpu().numpy(), model.m3.config.scales
    truth, asked = batch.relevant.cpu().numpy(), batch.question_mask.any(-1).sum(1).tolist()
    cuts = [
        draw_cut(
            relevance[i, :n], scales, np.random.default_rng([CUT_STREAM, seeds[i]]), truth[i, :n]
        )
        for i, n in enumerate(asked)
    ]
    weights = torch.zeros(batch.question_mask.shape[:2], device=grid.device)
    for row, cut in zip(weights, cuts, strict=True):
        row[: len(cut.weights)] = torch.from_numpy(cut.weights)
    return [cut.focus for cut in cuts], weights


@torch.no_grad()
def exact_matches(model: MiniModel, grid: Tensor, batch: SceneBatch, reading: Reading) -> Tensor:
    """Return (n_questions,) bool: every answer token and the end token is the most likely one.

    Questions come in batch order. This equals greedy decoding matching the reference: until the
    first wrong token both see the same history.
    """
    logits, target = answer_states(model, grid, batch, reading)
    right = logits.argmax(-1) == target
    wanted = batch.target != IGNORE
    n_blocks = int(batch.block.max())
    row = torch.arange(len(batch.block), device=grid.device)[:, None].expand_as(batch.block)
    question = (row * (n_blocks + 1) + batch.block)[wanted]
    _, inverse = question.unique(return_inverse=True)
    wrong = torch.zeros(int(inverse.max()) + 1, device=grid.device).index_add_(
        0, inverse, (~right).float()
    )
    return wrong == 0
