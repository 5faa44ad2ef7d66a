"""Scenes as tensors: pixels, dense labels, all questions of a picture packed behind one prefix.

One sequence is ``<s> visual tokens`` followed by a block ``<q> question <a> answer </s>`` for every
question; a block sees the prefix and itself, and its positions restart behind the prefix. So each
encoded picture teaches all its questions at the price of one prefix.
Notation: B pictures; per picture Q questions, L tokens a question, T text tokens (all padded).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from training.scenes.scene import Scene, generate_scene

IGNORE = -100
MEAN = torch.tensor(OPENAI_CLIP_MEAN)[:, None, None]  # as M3Processor normalises
STD = torch.tensor(OPENAI_CLIP_STD)[:, None, None]
FAMILIES = ("class", "color", "char")


@dataclass(frozen=True)
class SceneBatch:
    """Tensors of B scenes; see the module docstring for the packing."""

    pixels: Tensor  # (B, 3, S, S), normalised
    labels: dict[str, Tensor]  # family → (B, G*G) long, 0 = none
    patch_weight: Tensor  # (B, G*G): every object weighs the same, however large
    text: Tensor  # (B, T) ids
    target: Tensor  # (B, T) ids to predict at each position, or -100
    block: Tensor  # (B, T) 1..Q, 0 = padding
    offset: Tensor  # (B, T) position within the block
    question_ids: Tensor  # (B, Q, L)
    question_mask: Tensor  # (B, Q, L) bool
    relevant: Tensor  # (B, Q, G*G) bool
    kinds: tuple[tuple[str, ...], ...]

    def to(self, device: torch.device, dtype: torch.dtype) -> SceneBatch:
        """Return the batch on ``device`` with pixels and weights in ``dtype``."""
        moved: dict[str, Any] = {
            k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)
        }
        moved["pixels"] = moved["pixels"].to(dtype)
        moved["labels"] = {k: v.to(device) for k, v in self.labels.items()}
        return replace(self, **moved)


@dataclass(frozen=True)
class BlockTokens:
    """The special tokens that frame a question and its answer."""

    ask: int
    reply: int
    end: int
    pad: int

    @classmethod
    def of(cls, tokenizer) -> BlockTokens:
        """Return the framing tokens of a tokenizer made by ``build_tokenizer``."""
        ask, reply = tokenizer.convert_tokens_to_ids(["<q>", "<a>"])
        return cls(ask, reply, tokenizer.eos_token_id, tokenizer.pad_token_id)


def patch_weights(instance: np.ndarray) -> np.ndarray:
    """Return (G*G,) weights that sum to 1: a fifth the background, else each instance the same."""
    flat = instance.reshape(-1)
    _, inverse, counts = np.unique(flat, return_inverse=True, return_counts=True)
    weights = 1.0 / counts[inverse]
    weights[flat == 0] *= max(len(counts) - 1, 1) / 4
    return (weights / weights.sum()).astype(np.float32)


def pack_scenes(scenes: Sequence[Scene], tokenizer, frame: BlockTokens) -> SceneBatch:
    """Return the tensors of ``scenes``."""
    encode = tokenizer._tokenizer.encode_batch
    rows = [_encode_questions(scene, encode) for scene in scenes]
    n_questions = max(len(row) for row in rows)
    longest = max(len(q) for row in rows for q, _ in row)
    length = max(sum(len(q) + len(a) + 2 for q, a in row) for row in rows)
    n, cells = len(scenes), scenes[0].patch_class.size
    text = np.full((n, length), frame.pad, np.int64)
    target = np.full((n, length), IGNORE, np.int64)
    block = np.zeros((n, length), np.int64)
    offset = np.zeros((n, length), np.int64)
    question_ids = np.zeros((n, n_questions, longest), np.int64)
    question_mask = np.zeros((n, n_questions, longest), bool)
    relevant = np.zeros((n, n_questions, cells), bool)
    for i, (scene, row) in enumerate(zip(scenes, rows, strict=True)):
        at = 0
        for j, (question, answer) in enumerate(row):
            ids = [frame.ask, *question, frame.reply, *answer]
            stop = at + len(ids)
            text[i, at:stop] = ids
            target[i, stop - len(answer) - 1 : stop] = [*answer, frame.end]
            block[i, at:stop] = j + 1
            offset[i, at:stop] = np.arange(len(ids))
            question_ids[i, j, : len(question)] = question
            question_mask[i, j, : len(question)] = True
            relevant[i, j] = scene.questions[j].target.reshape(-1)
            at = stop
    pixels = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
    labels = {
        name: torch.from_numpy(
            np.stack([getattr(s, f"patch_{name}").reshape(-1) for s in scenes])
        ).long()
        for name in FAMILIES
    }
    weights = torch.from_numpy(np.stack([patch_weights(scene.instance) for scene in scenes]))
    return SceneBatch(
        pixels=(pixels.float() / 255.0 - MEAN) / STD,
        labels=labels,
        patch_weight=weights,
        text=torch.from_numpy(text),
        target=torch.from_numpy(target),
        block=torch.from_numpy(block),
        offset=torch.from_numpy(offset),
        question_ids=torch.from_numpy(question_ids),
        question_mask=torch.from_numpy(question_mask),
        relevant=torch.from_numpy(relevant),
        kinds=tuple(tuple(q.kind for q in scene.questions) for scene in scenes),
    )


def _encode_questions(scene: Scene, encode) -> list[tuple[list[int], list[int]]]:
    texts = [text for q in scene.questions for text in (q.text, q.answer)]
    ids = [encoding.ids for encoding in encode(texts, add_special_tokens=False)]
    return list(zip(ids[::2], ids[1::2], strict=True))


def make_batch(seeds: Sequence[int], namespace: str, size_px: int, tokenizer) -> SceneBatch:
    """Return the batch of the scenes with these seeds."""
    scenes = [generate_scene(seed, namespace=namespace, size_px=size_px) for seed in seeds]
    return pack_scenes(scenes, tokenizer, BlockTokens.of(tokenizer))


def attention_mask(block: Tensor, prefix: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the (B, 1, P+T, P+T) additive mask: causal; a block sees the prefix and itself.

    Args:
        block: (B, T) the block of each text token, 0 for padding.
        prefix: (B, P) bool, False where a shorter prefix is padded.
        dtype: of the mask.
    """
    owner = torch.cat([torch.zeros_like(prefix, dtype=block.dtype), block], dim=1)
    is_prefix = torch.cat([prefix, torch.zeros_like(block, dtype=torch.bool)], dim=1)
    # Padding of the prefix is a block of its own, which nothing else sees.
    owner[:, : prefix.shape[1]][~prefix] = -1
    seen = is_prefix[:, None, :] | (owner[:, :, None] == owner[:, None, :])
    allowed = seen & torch.ones_like(seen[0]).tril()
    return torch.zeros(allowed.shape, dtype=dtype, device=block.device).masked_fill_(
        ~allowed, -30000.0
    )[:, None]
