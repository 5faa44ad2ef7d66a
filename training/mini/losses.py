"""What m3-mini is taught: answers at every scale, what a patch shows, where a question looks.

Pure functions from a model and a batch to losses. Notation as in ``training.mini.batch``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from m3model.pooling import pool_visual_tokens
from training.mini.batch import IGNORE, SceneBatch, attention_mask
from training.mini.model import MiniModel

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


def answer_states(
    model: MiniModel, grid: Tensor, batch: SceneBatch, scale: int
) -> tuple[Tensor, Tensor]:
    """Return logits (N, V) and ids (N,) of the N answer tokens, pictures read at ``scale``."""
    m3 = model.m3
    embed = m3.get_input_embeddings()
    visual = pool_visual_tokens(grid, scale)
    start = embed(
        torch.full((grid.shape[0], 1), m3.config.text_config.bos_token_id, device=grid.device)
    )
    hidden = torch.cat([start.to(visual.dtype), visual, embed(batch.text).to(visual.dtype)], dim=1)
    n_prefix = scale + 1
    prefix = torch.arange(n_prefix, device=grid.device).expand(grid.shape[0], -1)
    positions = torch.cat([prefix, n_prefix + batch.offset], dim=1)
    states = m3.model.language_model(
        inputs_embeds=hidden,
        attention_mask=attention_mask(batch.block, n_prefix, hidden.dtype),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state[:, n_prefix:]
    wanted = batch.target != IGNORE
    return (states[wanted] @ embed.weight.T).float(), batch.target[wanted]


def answer_loss(model: MiniModel, grid: Tensor, batch: SceneBatch, scale: int) -> Tensor:
    """Return the cross entropy of the answers at ``scale``, mean over answer tokens."""
    logits, target = answer_states(model, grid, batch, scale)
    return nn.functional.cross_entropy(logits, target)


@torch.no_grad()
def exact_matches(model: MiniModel, grid: Tensor, batch: SceneBatch, scale: int) -> Tensor:
    """Return (n_questions,) bool: every answer token and the end token is the most likely one.

    Questions come in batch order. This equals greedy decoding matching the reference: until the
    first wrong token both see the same history.
    """
    logits, target = answer_states(model, grid, batch, scale)
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
