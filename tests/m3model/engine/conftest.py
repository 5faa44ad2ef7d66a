"""Engines of a tiny model, and questions of mixed scales and lengths to ask them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from m3model import LocalEngine, M3ForConditionalGeneration, M3Processor, Sampling, TokenEvent
from m3model.pooling import pool_visual_tokens
from m3model.tiny import write_tiny_checkpoint

SCALES = (1, 9, 36, 144, 576)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model", seed=3)


@pytest.fixture(scope="module")
def processor(folder: Path) -> M3Processor:
    return M3Processor.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> M3ForConditionalGeneration:
    """Its answers end where the request says, never before."""
    model = M3ForConditionalGeneration.from_pretrained(folder).eval()
    model.generation_config.eos_token_id = None
    model.config.text_config.eos_token_id = None
    return model


@pytest.fixture
def start(
    model: M3ForConditionalGeneration, processor: M3Processor
) -> Iterator[Callable[..., LocalEngine]]:
    engines: list[LocalEngine] = []

    def make(**options: Any) -> LocalEngine:
        engines.append(LocalEngine(model, processor, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@dataclass(frozen=True)
class Question:
    ids: list[int]
    grid: torch.Tensor
    scale: int
    answer_tokens: int

    @property
    def visual(self) -> list[torch.Tensor]:
        return [pool_visual_tokens(self.grid, self.scale)]

    @property
    def length(self) -> int:
        return len(self.ids) - 1 + self.scale + self.answer_tokens


def questions(model: M3ForConditionalGeneration, count: int, seed: int = 0) -> list[Question]:
    """Mixed scales and lengths; two of them about each picture, one after the other."""
    draw = torch.Generator().manual_seed(seed)
    asked = []
    for i in range(count):
        if i % 2 == 0:
            grid = torch.randn(576, model.config.hidden_size, generator=draw)
            scale = SCALES[int(torch.randint(5, (), generator=draw))]
        words = torch.randint(5, 40, (int(torch.randint(3, 30, (), generator=draw)),))
        ids = [1, model.config.image_token_id, *words.tolist()]
        asked.append(Question(ids, grid, scale, int(torch.randint(2, 25, (), generator=draw))))
    return asked


async def collect(events: AsyncIterator[TokenEvent]) -> list[int]:
    return [event.token_id async for event in events]


def ask(engine: LocalEngine, name: str, question: Question) -> AsyncIterator[TokenEvent]:
    sampling = Sampling(question.answer_tokens)
    return engine.submit(name, question.ids, question.visual, sampling)


def alone(model: M3ForConditionalGeneration, question: Question) -> list[int]:
    out = model.generate(
        input_ids=torch.tensor([question.ids]),
        image_grids=question.grid[None],
        scale=question.scale,
        max_new_tokens=question.answer_tokens,
    )
    return cast(list[int], out[0].tolist())
