"""Many requests in one pass: exact, fair, within memory, and gone at once when cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch

from m3model import LocalEngine, M3ForConditionalGeneration, Sampling
from m3model.engine.kv_pool import PAGE_TOKENS
from m3model.engine.local import PROMPT_TOKENS_A_STEP
from m3model.engine.request import Row
from m3model.errors import RequestCancelled

from .conftest import Question, alone, ask, collect, questions


def counted(engine: LocalEngine, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, int]]:
    """What every pass from now on reads: tokens by request."""
    passes: list[dict[str, int]] = []
    real = engine._packed.launch

    def run(chunks: list[tuple[Row, int]]) -> Any:
        passes.append({row.job.request_id: new for row, new in chunks})
        return real(chunks)

    monkeypatch.setattr(engine._packed, "launch", run)
    return passes


def test_answers_are_those_of_generate_under_pressure(
    model: M3ForConditionalGeneration, start: Callable[..., LocalEngine]
) -> None:
    """Too little memory for all at once, prefixes to reuse, neighbours that leave halfway."""
    asked = questions(model, 40)
    engine = start(kv_tokens=1600, max_running=12)
    most = 0

    async def leave(name: str, question: Question) -> None:
        events = ask(engine, name, question)
        await anext(events)
        engine.cancel(name)
        with pytest.raises(RequestCancelled):
            await collect(events)

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, engine.stats().kv_pages_used)
            await asyncio.sleep(0.001)

    async def run() -> list[Any]:
        watching = asyncio.ensure_future(watch())
        long = [Question(each.ids, each.grid, each.scale, 60) for each in asked[::5]]
        leaving = [leave(f"gone{i}", question) for i, question in enumerate(long)]
        answers = [collect(ask(engine, f"r{i}", q)) for i, q in enumerate(asked)]
        results = await asyncio.gather(*answers, *leaving)
        watching.cancel()
        return results[: len(asked)]

    for question, ids in zip(asked, asyncio.run(run()), strict=True):
        assert ids == alone(model, question)
    stats = engine.stats()
    assert 1600 // PAGE_TOKENS * 0.6 < most <= stats.kv_pages == 100
    assert (stats.running, stats.waiting, stats.kv_pages_used) == (0, 0, 0)
    assert stats.kv_pages_kept > 0


def test_a_second_question_reads_only_what_is_new(
    model: M3ForConditionalGeneration,
    start: Callable[..., LocalEngine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = start()
    passes = counted(engine, monkeypatch)
    first = Question([1, model.config.image_token_id, 7, 8], torch.randn(576, 64), 144, 3)
    second = Question([1, model.config.image_token_id, 9, 10, 11], first.grid, 144, 3)
    finer = Question(second.ids, first.grid, 576, 3)
    other = Question(second.ids, torch.randn(576, 64), 144, 3)
    # The same first and last token: only the comparison of the whole picture tells them apart.
    near = first.visual[0].clone()
    near[50] += 1

    async def run() -> None:
        for name, question in (("1", first), ("2", second), ("3", finer), ("4", other)):
            assert await collect(ask(engine, name, question)) == alone(model, question)
        assert await collect(engine.submit("5", first.ids, [near], Sampling(1)))
        both = [collect(ask(engine, name, second)) for name in ("6", "7")]
        assert await asyncio.gather(*both) == [alone(model, second)] * 2
        bare = Question(first.ids[:2], first.grid, 144, 3)  # nothing after the picture
        for name in ("8", "9"):
            assert await collect(ask(engine, name, bare)) == alone(model, bare)

    asyncio.run(run())
    read = {name: sum(p[name] for p in passes if name in p) for name in "123456789"}
    answered = {"5": 0}  # the last answer token is never read
    for name, prompt in zip("12345", (147, 148, 580, 148, 147), strict=True):
        shared = {"2": 145, "5": 1 + 50}.get(name, 0)
        assert read[name] == prompt - shared + answered.get(name, 2)
    assert read["6"] == read["7"] == 148 - 145 + 2
    assert read["8"] == read["9"] == 1 + 2


def test_a_long_prompt_is_not_starved_and_holds_nobody_up(
    model: M3ForConditionalGeneration,
    start: Callable[..., LocalEngine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stream of short requests before and after a long one, and room for four."""
    small = [Question([1, model.config.image_token_id, 5], torch.randn(576, 64), 1, 20)] * 60
    large = Question(small[0].ids, small[0].grid, 576, 20)
    engine = start(max_running=4)
    passes = counted(engine, monkeypatch)
    order: list[str] = []

    async def one(name: str, question: Question) -> None:
        await collect(ask(engine, name, question))
        order.append(name)

    async def run() -> None:
        names = [f"s{i}" for i in range(30)]
        await asyncio.gather(
            *(one(name, q) for name, q in zip(names, small, strict=False)),
            one("large", large),
            *(one(f"t{i}", q) for i, q in enumerate(small[:30])),
        )

    asyncio.run(run())
    assert order.index("large") < 30 + 4
    assert max(sum(p.values()) for p in passes) <= PROMPT_TOKENS_A_STEP + 4
    # While the long prompt was read, every answer that had begun went on in every pass.
    reading = [i for i, p in enumerate(passes) if p.get("large", 0) > 1]
    assert len(reading) == 2
    assert set(passes[reading[0]]) <= set(passes[reading[1]]) | set(order)


def test_memory_admits_in_order(
    model: M3ForConditionalGeneration, start: Callable[..., LocalEngine]
) -> None:
    """The large one waits for room; the small one behind it does not slip past."""
    grid = torch.randn(576, 64)
    image = model.config.image_token_id
    first = Question([1, image, 5], grid, 144, 1000)
    large = Question([1, image, 5], grid, 576, 20)
    small = Question([1, image, 5], grid, 1, 2)
    engine = start(kv_tokens=1200)

    async def run() -> None:
        events = ask(engine, "first", first)
        await anext(events)
        waiting = [asyncio.ensure_future(collect(ask(engine, "large", large)))]
        waiting.append(asyncio.ensure_future(collect(ask(engine, "small", small))))
        for _ in range(5):
            await anext(events)
        stats = engine.stats()
        assert (stats.running, stats.waiting) == (1, 2)
        assert stats.kv_pages_used == -(-first.length // PAGE_TOKENS)
        assert engine.cancel("first")
        assert [len(ids) for ids in await asyncio.gather(*waiting)] == [20, 2]
        with pytest.raises(RequestCancelled):
            await collect(events)

    asyncio.run(run())


def test_cancelling_frees_the_room_within_a_step(
    model: M3ForConditionalGeneration,
    start: Callable[..., LocalEngine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = start()
    passes = counted(engine, monkeypatch)
    question = Question([1, model.config.image_token_id, 5], torch.randn(576, 64), 36, 1500)

    async def run() -> None:
        goes, stays = ask(engine, "goes", question), ask(engine, "stays", question)
        await anext(goes)
        await anext(stays)
        assert engine.cancel("goes")
        at = len(passes)
        with pytest.raises(RequestCancelled):
            await collect(goes)
        # At most the pass that was under way still held it.
        assert not any("goes" in p for p in passes[at + 1 :])
        used = engine.stats().kv_pages_used
        assert used == -(-question.length // PAGE_TOKENS)
        engine.cancel("stays")
        with pytest.raises(RequestCancelled):
            await collect(stays)
        assert engine.stats().kv_pages_used == 0

    asyncio.run(run())
