"""A relevance readout without masks: learnt from where the model itself looks when it answers.

For any pictures with questions, the attention of the answer's first place to the finest visual
tokens (mean over layers and heads) says which patches the question is about. A low-rank bilinear
readout learns to foretell that map from by-products of the encode and the question's words. Knows
pictures, questions and the model's attention; knows no masks, no answers and no routers.
Shapes: N patches, D their width, V vocabulary, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from m3model import M3ForConditionalGeneration, M3Processor, RelevanceReadout
from training.errors import BadRecord, TrainingError
from training.finetune.attention_maps import answer_attention
from training.oracle.labelling import MAX_QUESTIONS
from training.sources.tasks import PictureTask, Source

RANK = 64
EPOCHS = 8
BATCH_PICTURES = 8
RATE = 1e-2
MIN_PICTURES = 16


@dataclass(frozen=True)
class Example:
    """One picture: patches (N, D) float16, its questions' ids, and their maps (n, N) in [0, 1]."""

    grid: np.ndarray
    ids: tuple[tuple[int, ...], ...]
    maps: np.ndarray


def distil_readout(
    model: Path,
    source: Source,
    *,
    device: str | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[RelevanceReadout, float]:
    """Return a readout and its correlation with the model's attention on unseen pictures.

    Every tenth picture is held out; the correlation is the mean over its questions. About 300
    pictures are enough for m3-mini; kept in memory as float16 (4.7 MB a picture for a 7B model).

    Args:
        model: folder of the checkpoint.
        source: pictures with questions; references are not looked at.
        progress: called with (pictures seen, pictures in all).

    Raises:
        TrainingError: fewer than 16 pictures.
        BadRecord: a picture cannot be read.
    """
    if len(source) < MIN_PICTURES:
        raise TrainingError(f"a readout needs at least {MIN_PICTURES} pictures, not {len(source)}")
    watcher = _Watcher(model, device)
    examples = []
    for index in range(len(source)):
        task = source.load(index)
        if not task.asks:
            raise BadRecord(f"{task.name} has no question")
        examples.append(watcher.example(task))
        progress(index + 1, len(source))
    held = examples[::10]
    learnt = [example for index, example in enumerate(examples) if index % 10]
    readout = fit_readout(learnt, watcher.vocabulary, device=watcher.device, seed=seed)
    return readout, agreement(readout, held)


def fit_readout(
    examples: Sequence[Example], vocabulary: int, *, device: str = "cpu", seed: int = 0
) -> RelevanceReadout:
    """Return the readout of `RelevanceReadout`'s form that foretells the examples' maps best.

    Args:
        examples: at least one.
        vocabulary: V, token ids the readout must know.
    """
    width = examples[0].grid.shape[1]
    rank = min(RANK, width)
    random = torch.Generator().manual_seed(seed)
    start = {
        "norm_weight": torch.ones(width),
        "norm_bias": torch.zeros(width),
        "patch_proj": torch.randn(width, rank, generator=random) / width**0.5,
        "token_table": 0.05 * torch.randn(vocabulary, rank, generator=random),
        "token_bias": torch.zeros(vocabulary),
        "bias": torch.full((1,), -3.0),  # few patches are relevant
    }
    parts = {name: value.to(device).requires_grad_() for name, value in start.items()}
    steps = EPOCHS * max(1, len(examples) // BATCH_PICTURES)
    optimizer = torch.optim.AdamW(parts.values(), lr=RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1)
    order = np.random.default_rng(seed)
    for _ in range(EPOCHS):
        batches = max(1, len(examples) // BATCH_PICTURES)
        for chosen in np.array_split(order.permutation(len(examples)), batches):
            loss = _loss(parts, [examples[i] for i in chosen], device)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return RelevanceReadout(**{name: part.detach().cpu().numpy() for name, part in parts.items()})


def agreement(readout: RelevanceReadout, examples: Sequence[Example]) -> float:
    """Return the mean correlation of the readout's maps with the examples'."""
    found = []
    for example in examples:
        projected = readout.project(example.grid.astype(np.float32))
        for ids, wanted in zip(example.ids, example.maps, strict=True):
            given = readout.score(projected, ids)
            if given.std() > 0 and wanted.std() > 0:
                found.append(np.corrcoef(given, wanted)[0, 1])
    return float(np.mean(found)) if found else 0.0


def as_target(attention: np.ndarray) -> np.ndarray:
    """Return attention maps (n, N) as targets in [0, 1]: half of the peak and above is one.

    Measured on scenes whose masks are known: nearer to the mask than z-scores or the map itself.
    """
    peak = np.maximum(attention.max(axis=1, keepdims=True), 1e-12)
    target: np.ndarray = np.minimum(2.0 * attention / peak, 1.0)
    return target


class _Watcher:
    """A loaded model that says where it looks."""

    def __init__(self, model: Path, device: str | None) -> None:
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        loaded: Any = M3ForConditionalGeneration.from_pretrained(
            model, dtype=dtype, attn_implementation="eager"
        )
        self._model = loaded.to(self.device).eval()
        self._processor = M3Processor.from_pretrained(model)
        self.vocabulary = int(loaded.get_input_embeddings().weight.shape[0])

    @torch.inference_mode()
    def example(self, task: PictureTask) -> Example:
        from PIL import Image

        pixels = self._processor.pixel_values(Image.fromarray(task.rgb)).to(self.device)
        grid = self._model.encode_images(pixels)[0]
        asks = task.asks[:MAX_QUESTIONS]
        prompts = [self._processor.prompt_and_answer(ask.question, None)[0] for ask in asks]
        maps = answer_attention(self._model, grid, prompts).cpu().numpy()
        return Example(
            grid=grid.half().cpu().numpy(),
            ids=tuple(tuple(self._processor.question_ids(ask.question)) for ask in asks),
            maps=as_target(maps).astype(np.float16),
        )


def _loss(parts: dict[str, torch.Tensor], examples: Sequence[Example], device: str) -> torch.Tensor:
    """Return the mean cross-entropy a patch of all questions of the pictures."""
    losses = []
    for example in examples:
        patches = torch.from_numpy(example.grid).to(device, torch.float32)
        projected = (
            functional.layer_norm(
                patches, patches.shape[1:], parts["norm_weight"], parts["norm_bias"]
            )
            @ parts["patch_proj"]
        )
        flat = torch.tensor([i for ids in example.ids for i in ids], dtype=torch.long)
        question = torch.tensor([n for n, ids in enumerate(example.ids) for _ in ids])
        flat, question = flat.to(device), question.to(device, torch.long)
        count, rank = len(example.ids), projected.shape[1]
        words = torch.zeros(count, rank, device=device)
        words = words.index_add(0, question, parts["token_table"][flat])
        shift = torch.zeros(count, device=device)
        shift = shift.index_add(0, question, parts["token_bias"][flat])
        logits = words @ projected.T + shift[:, None] + parts["bias"]
        target = torch.from_numpy(example.maps).to(device, torch.float32)
        losses.append(functional.binary_cross_entropy_with_logits(logits, target, reduction="none"))
    return torch.cat(losses).mean()
