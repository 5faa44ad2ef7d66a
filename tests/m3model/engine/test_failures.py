"""Requests that fail: each alone, those of a failed step, and all when the engine dies."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from m3model import LocalEngine, M3ForConditionalGeneration, TokenEvent
from m3model.engine.request import Row
from m3model.errors import EngineClosed, PromptTooLong, RequestFailed

from .conftest import Question, alone, ask, collect, questions


def test_what_can_never_fit_is_refused_with_its_limit(
    model: M3ForConditionalGeneration, start: Callable[..., LocalEngine]
) -> None:
    engine = start(kv_tokens=160)
    long = Question([1, model.config.image_token_id], torch.randn(576, 64), 576, 5)

    async def run() -> None:
        with pytest.raises(PromptTooLong, match="reads at most 159") as caught:
            ask(engine, "never", long)
        assert (caught.value.tokens, caught.value.limit) == (577, 159)
        fits = Question(long.ids, long.grid, 144, 500)  # the answer ends where the memory does
        assert len(await collect(ask(engine, "fits", fits))) == 160 - 145

    asyncio.run(run())


def test_a_failed_step_fails_its_requests_and_no_others(
    model: M3ForConditionalGeneration,
    start: Callable[..., LocalEngine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = start(max_running=2)
    real, fail = engine._packed.launch, threading.Event()

    def run_or_fail(chunks: Any) -> Any:
        if fail.is_set():
            fail.clear()
            raise RuntimeError("out of memory")
        return real(chunks)

    monkeypatch.setattr(engine._packed, "launch", run_or_fail)
    asked = questions(model, 4)
    long = Question(asked[0].ids, asked[0].grid, 36, 800)

    async def run() -> None:
        first, second = ask(engine, "1", long), ask(engine, "2", long)
        await anext(first)
        await anext(second)
        waiting = [asyncio.ensure_future(collect(ask(engine, f"w{i}", asked[i]))) for i in (1, 2)]
        fail.set()
        for events in (first, second):
            with pytest.raises(RequestFailed, match="out of memory"):
                await collect(events)
        assert await asyncio.gather(*waiting) == [alone(model, asked[i]) for i in (1, 2)]
        assert engine.stats().alive

    asyncio.run(run())
    assert engine.stats().kv_pages_used == 0


def test_a_pass_that_does_not_fit_the_memory_is_tried_again_smaller(
    model: M3ForConditionalGeneration,
    start: Callable[..., LocalEngine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody fails for it, and once all goes well prompts get their share again."""
    engine = start()
    real, most, kept = engine._packed.launch, [80], list[weakref.ref[torch.Tensor]]()

    def launch(chunks: Any) -> Any:
        if sum(new for _, new in chunks) > most[0]:
            activations = torch.empty(1000)
            kept.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(chunks)

    monkeypatch.setattr(engine._packed, "launch", launch)
    asked = questions(model, 6)

    async def run() -> list[list[int]]:
        return await asyncio.gather(
            *(collect(ask(engine, f"r{i}", each)) for i, each in enumerate(asked))
        )

    assert asyncio.run(run()) == [alone(model, each) for each in asked]
    assert engine._share == 64
    assert kept
    assert not any(each() is not None for each in kept), "activations are kept by the error"
    most[0] = 10_000
    long = Question(asked[0].ids, asked[0].grid, 1, 300)

    async def later() -> None:
        await collect(ask(engine, "long", long))

    asyncio.run(later())
    assert engine._share == engine.prompt_tokens


def test_what_fits_alone_only_fails_last_come_first(
    model: M3ForConditionalGeneration,
    start: Callable[..., LocalEngine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = start()
    real = engine._packed.launch

    def launch(chunks: Any) -> Any:
        if len(chunks) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(chunks)

    monkeypatch.setattr(engine._packed, "launch", launch)
    asked = [Question(q.ids, q.grid, 1, 60) for q in questions(model, 5)]

    async def run() -> list[Any]:
        return await asyncio.gather(
            *(collect(ask(engine, f"r{i}", each)) for i, each in enumerate(asked)),
            return_exceptions=True,
        )

    ends = asyncio.run(run())
    assert ends[:2] == [alone(model, each) for each in asked[:2]]
    assert [type(end) for end in ends[2:]] == [RequestFailed] * 3
    for end in ends[2:]:
        assert end.__cause__.__traceback__ is None  # frames would keep what they hold
    assert engine.stats().alive
    assert engine.stats().kv_pages_used == 0


def test_an_engine_whose_every_step_fails_says_that_it_is_dead(
    model: M3ForConditionalGeneration, start: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(max_running=1)
    asked, all_wait = questions(model, 5), threading.Event()

    def broken(chunks: Any) -> Any:
        assert all_wait.wait(60)
        raise RuntimeError("the device is lost")

    monkeypatch.setattr(engine._packed, "launch", broken)

    async def run() -> None:
        answers = [collect(ask(engine, f"r{i}", q)) for i, q in enumerate(asked)]
        all_wait.set()
        ends = await asyncio.gather(*answers, return_exceptions=True)
        assert [type(end) for end in ends] == [RequestFailed] * 3 + [EngineClosed] * 2
        assert "3 steps in a row failed" in str(ends[-1])
        engine._thread.join(5)
        assert not engine.stats().alive
        with pytest.raises(EngineClosed):
            ask(engine, "too late", asked[0])

    asyncio.run(run())


def test_a_lost_device_is_nobodys_fault_and_ends_the_engine(
    model: M3ForConditionalGeneration, start: Callable[..., LocalEngine]
) -> None:
    engine = start(max_running=2)
    asked = questions(model, 4)
    long = Question(asked[0].ids, asked[0].grid, 36, 800)

    async def run() -> None:
        first = ask(engine, "1", long)
        await anext(first)
        others = [
            collect(ask(engine, f"w{i}", Question(each.ids, each.grid, 36, 700)))
            for i, each in enumerate(asked)
        ]
        engine._pool.keys = engine._pool.keys.to("meta")  # as memory that cannot be read any more
        ends = await asyncio.gather(collect(first), *others, return_exceptions=True)
        assert {type(end) for end in ends} == {EngineClosed}, ends
        assert not engine.stats().alive

    asyncio.run(run())


def test_an_answer_whose_text_fails_fails_alone(
    model: M3ForConditionalGeneration,
    start: Callable[..., LocalEngine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = start()
    asked, real = questions(model, 2), Row.say

    def say(row: Row, *args: Any) -> TokenEvent:
        return real(row, *args) if row.job.request_id == "r1" else row.missing

    monkeypatch.setattr(Row, "say", say)

    async def run() -> None:
        answers = (collect(ask(engine, f"r{i}", question)) for i, question in enumerate(asked))
        failed, ids = await asyncio.gather(*answers, return_exceptions=True)
        assert (type(failed), ids) == (RequestFailed, alone(model, asked[1]))

    asyncio.run(run())
    assert (engine.stats().alive, engine.stats().kv_pages_used) == (True, 0)


def test_an_answer_that_is_not_a_number_fails_alone(
    model: M3ForConditionalGeneration, start: Callable[..., LocalEngine]
) -> None:
    engine = start()
    good, other = questions(model, 2)
    bad = Question(good.ids, torch.full((576, 64), torch.inf), 9, 5)

    async def run() -> None:
        ends = await asyncio.gather(
            *(collect(ask(engine, n, q)) for n, q in (("a", good), ("b", bad), ("c", other))),
            return_exceptions=True,
        )
        assert ends[0] == alone(model, good)
        assert isinstance(ends[1], RequestFailed)
        assert ends[2] == alone(model, other)

    asyncio.run(run())
    assert engine.stats().kv_pages_used == 0
