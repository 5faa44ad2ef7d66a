"""The workload of the engine benchmark: a small LLaVA, pictures as features, requests of mixed
scale. Shapes and mix are those of the field measurements that the engine was chosen by."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig

from m3model import M3ForConditionalGeneration, M3Processor, pool_visual_tokens
from m3model.processing import build_image_processor
from m3model.prompt.vocabulary import build_tokenizer
from m3model.tiny import redraw_weights, tiny_config

MIX = {1: 0.30, 9: 0.25, 36: 0.20, 144: 0.15, 576: 0.10}
QUESTION_TOKENS = (20, 60)
ANSWER_TOKENS = (5, 60)
WORDS = 2000


@dataclass(frozen=True)
class Ask:
    """One request: `ids` with one image token, `grid` (576, D), a scale, an answer's length."""

    name: str
    ids: tuple[int, ...]
    grid: torch.Tensor
    scale: int
    answer_tokens: int

    @property
    def visual_tokens(self) -> torch.Tensor:
        return pool_visual_tokens(self.grid, self.scale)


def build_model(
    hidden: int = 256, layers: int = 4
) -> tuple[M3ForConditionalGeneration, M3Processor]:
    """A random model whose answers never end by themselves, so that lengths are the workload's."""
    tokenizer = build_tokenizer([f"word{i}" for i in range(WORDS)])
    config = tiny_config(
        len(tokenizer),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        hidden_size=hidden,
        layers=layers,
    )
    model = M3ForConditionalGeneration(config)
    redraw_weights(model, 0)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        model = M3ForConditionalGeneration.from_pretrained(Path(folder)).eval()
    model.generation_config = GenerationConfig(bos_token_id=1, pad_token_id=0)
    model.config.text_config.eos_token_id = None
    size = config.vision_config.image_size
    return model, M3Processor(build_image_processor(size), tokenizer)


def draw_requests(
    model: M3ForConditionalGeneration,
    count: int,
    seed: int,
    *,
    scale: int | None = None,
    questions_a_picture: int = 1,
) -> list[Ask]:
    """`count` requests in random order; all at `scale`, or in the proportions of `MIX`."""
    random = torch.Generator().manual_seed(seed)

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=random))

    scales = [s for s, share in MIX.items() for _ in range(round(share * count))]
    grids: list[torch.Tensor] = []
    asks = []
    config = model.config
    for i, at in enumerate(torch.randperm(len(scales), generator=random).tolist()):
        if i % questions_a_picture == 0:
            grid = torch.randn(576, config.hidden_size, generator=random)
            grids.append(grid.to(model.get_input_embeddings().weight.dtype))
        words = torch.randint(
            8, config.text_vocab_size, (between(*QUESTION_TOKENS) - 1,), generator=random
        )
        asks.append(
            Ask(
                f"r{i}",
                (1, config.image_token_id, *words.tolist()),
                grids[-1],
                scales[at] if scale is None else scale,
                between(*ANSWER_TOKENS),
            )
        )
    return asks
