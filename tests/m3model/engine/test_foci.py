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
from m3model.engine.kv_pool import Prefix
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


def test_what_foci_of_a_picture_share_is_read_once(
    model: M3ForConditionalGeneration, engine: LocalEngine
) -> None:
    """The coarse tokens, and the fine ones up to the first other cell; no more, though two of
    these have as many tokens, the same first one and the same last one."""
    grid = torch.randn(576, 64, generator=torch.Generator().manual_seed(1))
    prompt = [1, model.config.image_token_id, 7, 8]
    order: list[tuple[int | Focus, int]] = [
        (36, 0), (Focus(36, 576, (5, 40)), 36), (Focus(36, 576, (6, 40)), 36),
        (Focus(36, 576, (5, 17)), 36 + 4), (Focus(36, 576, (5, 40)), 44), (9, 0),
        (Focus(9, 576, (5,)), 9), (576, 0), (36, 36),
    ]  # fmt: skip

    async def run() -> list[tuple[list[int], int]]:
        return [
            await answer(engine, str(i), prompt, read(grid, reading))
            for i, (reading, _) in enumerate(order)
        ]

    for (ids, cached), (reading, shared) in zip(asyncio.run(run()), order, strict=True):
        assert cached == (1 + shared if shared else 0)
        assert ids == alone(model, prompt, grid, reading)


def test_prompts_with_several_pictures_share_what_they_begin_with(
    model: M3ForConditionalGeneration, engine: LocalEngine
) -> None:
    """A second look at the last picture, a turn with another one, another reading of the first."""
    draw = torch.Generator().manual_seed(4)
    one, two, three = (torch.randn(576, 64, generator=draw) for _ in range(3))
    image = model.config.image_token_id
    pair, more = [1, image, 7, image, 8], [1, image, 7, image, 8, 9, image, 3]
    fine = Focus(9, 576, (5, 40))
    order: list[tuple[list[int], list[tuple[torch.Tensor, int | Focus]], int]] = [
        (pair, [(one, 36), (two, 9)], 0),
        (pair, [(one, 36), (two, fine)], 1 + 36 + 1 + 9),
        (more, [(one, 36), (two, 9), (three, 36)], 1 + 36 + 1 + 9),
        (more, [(one, 36), (two, 9), (three, 36)], 1 + 36 + 1 + 9 + 2 + 36),
        (pair, [(one, 36), (three, 9)], 1 + 36 + 1),
        (pair, [(one, Focus(36, 576, (5,))), (two, 9)], 1 + 36),
        ([2, *pair[1:]], [(one, 36), (two, 9)], 0),
        ([1, image, 6, image, 8], [(one, 36), (two, 9)], 1 + 36),
    ]

    async def run(engine: LocalEngine, ids: list[int], pictures: list[torch.Tensor]) -> Any:
        events = [event async for event in engine.submit("r", ids, pictures, Sampling(8))]
        return [event.token_id for event in events], events[0].cached_tokens

    for ids, readings, shared in order:
        pictures = [read(grid, reading) for grid, reading in readings]
        told, cached = asyncio.run(run(engine, ids, pictures))
        fresh = LocalEngine(model, engine.processor)
        wanted, nothing = asyncio.run(run(fresh, ids, pictures))
        fresh.close()
        assert (told, cached, nothing) == (wanted, shared, 0)


def test_a_picture_that_was_written_over_is_another_one(
    model: M3ForConditionalGeneration, engine: LocalEngine
) -> None:
    """Whoever reads pictures into one buffer gets no answers about the one before."""
    draw = torch.Generator().manual_seed(5)
    image = model.config.image_token_id
    first, buffer = torch.randn(36, 64, generator=draw), torch.randn(36, 64, generator=draw)

    async def run(engine: LocalEngine, pictures: Any) -> tuple[list[int], int]:
        return await answer(engine, "r", [1, image, 7, image, 8, 9], pictures)

    before = asyncio.run(run(engine, [first, buffer]))
    assert asyncio.run(run(engine, [first, buffer])) == (before[0], 1 + 36 + 1 + 36)
    buffer[1:-1] = torch.randn(34, 64, generator=draw)
    told, cached = asyncio.run(run(engine, [first, buffer]))
    fresh = LocalEngine(model, engine.processor)
    assert told == asyncio.run(run(fresh, [first, buffer]))[0] != before[0]
    fresh.close()
    assert cached == 1 + 36 + 1


def test_nothing_is_a_prefix_of_a_picture_of_one_token_alone(
    model: M3ForConditionalGeneration, engine: LocalEngine
) -> None:
    """Its one token has to be read; no pages are kept for it, and the free ones stay whole."""
    free = list(engine._pool._free)

    async def run() -> None:
        for i in range(3):
            tokens = torch.full((1, 64), float(i))
            assert (await answer(engine, str(i), [model.config.image_token_id], tokens))[1] == 0

    asyncio.run(run())
    assert engine._pool._free == free
    assert not engine._pool._kept


def test_what_runs_already_is_shared_without_comparing_it_to_all(
    model: M3ForConditionalGeneration, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others ask about the picture while it is answered: most as it was read, one more finely."""
    grid = torch.randn(576, 64, generator=torch.Generator().manual_seed(2))
    prompt = [1, model.config.image_token_id, 7, 8]
    asked: list[int | Focus] = [Focus(36, 576, (5, 40))] * 12 + [Focus(36, 576, (5, 40, 41))]
    compared = []
    shared = Prefix.shared

    def counted(mine: Prefix, other: Prefix) -> int:
        compared.append(other.tokens)
        return shared(mine, other)

    monkeypatch.setattr(Prefix, "shared", counted)

    async def run() -> list[tuple[list[int], int]]:
        first = engine.submit("first", prompt, read(grid, asked[0]), Sampling(400))
        await anext(first)
        answers = await asyncio.gather(
            *(answer(engine, str(i), prompt, read(grid, each)) for i, each in enumerate(asked))
        )
        assert engine.stats().running == 1  # the first one: nothing was left when they asked
        await first.aclose()  # type: ignore[attr-defined]
        return answers

    found = asyncio.run(run())
    # 5 is row 0; the fine tokens of 40 and 41 lie side by side, so those of row 6 begin alike.
    assert [cached for _, cached in found] == [1 + 44] * 12 + [1 + 36 + 4 + 2]
    assert len(compared) <= 12 + 8
    for (ids, _), reading in zip(found, asked, strict=True):
        assert ids == alone(model, prompt, grid, reading)
