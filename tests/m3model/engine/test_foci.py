"""Requests that are read as foci: mixed with scales they get the answers they get alone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from m3model import (
    Focus,
    LocalEngine,
    M3ForConditionalGeneration,
    M3Processor,
    Sampling,
    focus_visual_tokens,
    pool_visual_tokens,
)
from m3model.tiny import write_tiny_checkpoint

READINGS: list[int | Focus] = [
    Focus(36, 576, (5, 6, 40)), 36, Focus(1, 144, (0, 35)), 576, Focus(9, 576, tuple(range(48))),
    Focus(36, 576, ()), 1, Focus(144, 576, (7,)),
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> M3ForConditionalGeneration:
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model", seed=3)
    return M3ForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture
def engine(model: M3ForConditionalGeneration) -> Iterator[LocalEngine]:
    processor = M3Processor.from_pretrained(Path(model.config._name_or_path))
    made = LocalEngine(model, processor)
    yield made
    made.close()


def read(grid: torch.Tensor, reading: int | Focus) -> torch.Tensor:
    if isinstance(reading, Focus):
        return focus_visual_tokens(grid, reading)
    return pool_visual_tokens(grid, reading)


async def answer(
    engine: LocalEngine, name: str, ids: list[int], tokens: torch.Tensor
) -> tuple[list[int], int]:
    events = [event async for event in engine.submit(name, ids, tokens, Sampling(8))]
    return [event.token_id for event in events], events[0].cached_tokens


def alone(
    model: M3ForConditionalGeneration, ids: list[int], grid: torch.Tensor, scale: int | Focus
) -> list[int]:
    row: Any = model.generate(
        input_ids=torch.tensor([ids]), image_grids=grid[None], scale=scale, max_new_tokens=8
    )
    return list(row[0].tolist())


def test_foci_and_scales_together_equal_one_at_a_time(
    model: M3ForConditionalGeneration, engine: LocalEngine
) -> None:
    draw = torch.Generator().manual_seed(0)
    grids = [torch.randn(576, 64, generator=draw) for _ in READINGS]
    asked = [[1, model.config.image_token_id, *range(7, 9 + i)] for i in range(len(READINGS))]

    async def run() -> list[Any]:
        return await asyncio.gather(
            *(
                answer(engine, str(i), ids, read(grid, reading))
                for i, (ids, grid, reading) in enumerate(zip(asked, grids, READINGS, strict=True))
            )
        )

    for (ids, _), prompt, grid, reading in zip(
        asyncio.run(run()), asked, grids, READINGS, strict=True
    ):
        assert ids == alone(model, prompt, grid, reading)


def test_a_focus_lies_ready_for_its_own_cells_only(
    model: M3ForConditionalGeneration, engine: LocalEngine
) -> None:
    """Three foci of as many tokens; the first and the last token of two of them are the same."""
    grid = torch.randn(576, 64, generator=torch.Generator().manual_seed(1))
    first, near, other = (Focus(36, 576, cells) for cells in ((5, 40), (6, 40), (5, 41)))
    prompt = [1, model.config.image_token_id, 7, 8]

    async def run() -> list[tuple[list[int], int]]:
        order = (first, near, other, first)
        return [await answer(engine, str(i), prompt, read(grid, f)) for i, f in enumerate(order)]

    answers = asyncio.run(run())
    assert [cached for _, cached in answers] == [0, 0, 0, 1 + 44]
    for (ids, _), focus in zip(answers, (first, near, other, first), strict=True):
        assert ids == alone(model, prompt, grid, focus)
