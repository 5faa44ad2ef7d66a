"""vLLM as an engine: a stand-in for it in a process of its own keeps the promises of `Engine`."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from m3model import Engine, Focus, LocalEngine, Sampling, TokenEvent
from m3model.engine.vllm.engine import VllmEngine, picture_name
from m3model.errors import (
    BadRequest,
    EngineBusy,
    EngineClosed,
    PromptTooLong,
    RequestCancelled,
    RequestFailed,
)
from m3model.focus import focus_visual_tokens
from m3model.pooling import pool_visual_tokens

SCALES = (9, 576, 1, 144, 36)
Steps = Callable[[str], list[Any]]


async def collect(events: AsyncIterator[TokenEvent]) -> list[TokenEvent]:
    return [event async for event in events]


async def until(truth: Callable[[], object]) -> None:
    for _ in range(2000):
        if truth():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


def answers(
    engine: Engine, prompt: list[int], pictures: list[torch.Tensor], sampling: Sampling
) -> list[list[TokenEvent]]:
    """Of one question about each picture, all asked at once."""

    async def run() -> list[list[TokenEvent]]:
        return await asyncio.gather(
            *(
                collect(engine.submit(f"r{i}", prompt, [tokens], sampling))
                for i, tokens in enumerate(pictures)
            )
        )

    return asyncio.run(run())


def same(ours: list[TokenEvent], theirs: list[TokenEvent]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert (a.token_id, a.text_delta, a.finish_reason, a.n_shown) == (
            b.token_id, b.text_delta, b.finish_reason, b.n_shown
        )  # fmt: skip
        assert b.logprob == pytest.approx(a.logprob, abs=1e-4)
        assert [each for each, _ in a.top] == [each for each, _ in b.top]
        assert [of for _, of in b.top] == pytest.approx([of for _, of in a.top], abs=1e-4)


def test_scales_and_a_focus_share_a_step_and_the_answers_are_ours(
    vllm: VllmEngine, own: LocalEngine, grid: torch.Tensor, prompt: list[int], steps: Steps
) -> None:
    sampling = Sampling(10, top_logprobs=3)
    pictures = [pool_visual_tokens(grid, scale) for scale in SCALES]
    pictures.append(focus_visual_tokens(grid, Focus(36, 144, (3, 7, 8))))
    for ours, theirs in zip(
        answers(own, prompt, pictures, sampling), answers(vllm, prompt, pictures, sampling),
        strict=True,
    ):  # fmt: skip
        same(ours, theirs)
    sizes = [len(tokens) for tokens in pictures]
    assert sorted(n for line in steps("encoded") for n in line["encoded"]) == sorted(sizes)
    assert any(len(set(line["encoded"])) > 1 for line in steps("encoded"))
    assert max(len(line["step"]) for line in steps("step")) > 1


def test_a_picture_is_named_by_its_tokens(
    vllm: VllmEngine, grid: torch.Tensor, prompt: list[int], steps: Steps
) -> None:
    """The stand-in takes a name it knows for the picture it knows: a shared one would answer."""
    one = Sampling(1)
    foci = [focus_visual_tokens(grid, Focus(9, 144, cells)) for cells in ((1, 2), (1, 3))]
    pictures = [*(pool_visual_tokens(grid, scale) for scale in (1, 9, 36)), *foci]
    answers(vllm, prompt, pictures, one)
    names = [name for line in steps("names") for name in line["names"]]
    assert len(set(names)) == len(pictures)
    assert {int(name.split("-")[0]) for name in names} == {len(tokens) for tokens in pictures}
    encoded = len(steps("encoded"))
    (again,) = answers(vllm, prompt, pictures[1:2], one)
    assert again[0].cached_tokens == len(prompt) - 1 + 9 - 1
    assert [line["names"] for line in steps("names")][-1] == [picture_name(pictures[1])]
    assert len(steps("encoded")) == encoded


def test_several_pictures_and_none(vllm: VllmEngine, own: LocalEngine, grid: torch.Tensor,
                                   prompt: list[int]) -> None:  # fmt: skip
    two = [prompt[0], prompt[1], *prompt[1:]]
    tokens = [pool_visual_tokens(grid, 1).half(), pool_visual_tokens(grid.flip(0), 36)]

    def ask(engine: Engine) -> list[list[TokenEvent]]:
        async def run() -> list[list[TokenEvent]]:
            both = collect(engine.submit("both", two, tokens, Sampling(5)))
            none = collect(engine.submit("none", [1, 5, 40, 6], [], Sampling(5)))
            return await asyncio.gather(both, none)

        return asyncio.run(run())

    for ours, theirs in zip(ask(own), ask(vllm), strict=True):
        same(ours, theirs)


def test_stop_strings_and_end_tokens_end_it(
    vllm: VllmEngine, own: LocalEngine, grid: torch.Tensor, prompt: list[int], steps: Steps,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (full,) = answers(own, prompt, [grid], Sampling(40))
    text = "".join(event.text_delta for event in full)
    stopping = Sampling(1000, stop=(text.split()[3][:2], "never said"))
    (ours,), (theirs,) = (answers(each, prompt, [grid], stopping) for each in (own, vllm))
    same(ours, theirs)
    assert theirs[-1].finish_reason == "stop"
    assert len(theirs) < len(full)
    # vLLM knows no strings: it is told.
    asyncio.run(until(lambda: steps("abort") and not vllm.stats().running))
    end = full[4].token_id
    monkeypatch.setattr(vllm, "_end_ids", frozenset([end]))
    monkeypatch.setattr(own, "_end_ids", frozenset([end]))
    (ours,), (theirs,) = (answers(each, prompt, [grid], Sampling(40)) for each in (own, vllm))
    same(ours, theirs)
    assert theirs[-1].token_id == end


def test_seeds_repeat(vllm: VllmEngine, grid: torch.Tensor, prompt: list[int]) -> None:
    def draw(**options: Any) -> list[int]:
        sampling = Sampling(12, temperature=1.5, **options)
        return [event.token_id for event in answers(vllm, prompt, [grid], sampling)[0]]

    first = draw(seed=2**64 - 1)
    assert draw(seed=2**64 - 1) == first
    assert draw(seed=8) != first
    greedy = [event.token_id for event in answers(vllm, prompt, [grid], Sampling(12))[0]]
    assert draw(seed=7, top_p=1e-6) == greedy


def test_cancelling_ends_it_there_within_a_step(
    vllm: VllmEngine, grid: torch.Tensor, prompt: list[int], steps: Steps
) -> None:
    async def run() -> None:
        running = vllm.submit("running", prompt, [grid], Sampling(1000))
        left = vllm.submit("left", prompt, [grid], Sampling(1000))
        await anext(running)
        await anext(left)
        stats = vllm.stats()
        assert (stats.running, stats.waiting, stats.visual_tokens) == (2, 0, 1152)
        assert stats.text_tokens == 2 * (len(prompt) - 1)
        assert vllm.cancel("running")
        with pytest.raises(RequestCancelled):
            await collect(running)
        assert not vllm.cancel("running")
        await left.aclose()  # type: ignore[attr-defined]
        at_once = vllm.submit("gone", prompt, [grid], Sampling(1000))
        assert vllm.cancel("gone")
        with pytest.raises(RequestCancelled):
            await anext(at_once)
        await until(lambda: vllm.stats().running + vllm.stats().waiting == 0)
        assert len(await collect(vllm.submit("running", prompt, [grid], Sampling(2)))) == 2

    asyncio.run(run())
    gone = {line["abort"] for line in steps("abort")}
    assert len(gone) >= 2
    said: dict[str, int] = {}
    for line in steps("step"):
        said |= line["step"]
    assert all(said.get(name, 0) < 1000 for name in gone)
    assert not gone & {*steps("step")[-1]["step"]}


def test_what_cannot_be_asked_is_refused_at_once(
    vllm: VllmEngine, grid: torch.Tensor, prompt: list[int]
) -> None:
    async def run() -> None:
        for bad in (
            ([*prompt, 10**6], [grid]), (prompt, []), (prompt, [grid, grid]),
            (prompt, [grid[:, :-1]]), (prompt, [grid[:0]]), ([], []),
        ):  # fmt: skip
            with pytest.raises(BadRequest):
                vllm.submit("bad", *bad, Sampling(1))
        with pytest.raises(BadRequest, match="up to 2"):
            vllm.submit("hot", prompt, [grid], Sampling(1, temperature=2.5))
        assert vllm.max_length == 2048
        with pytest.raises(PromptTooLong):
            vllm.submit("long", [*prompt, *[5] * 2048], [grid], Sampling(1))
        first = vllm.submit("one", prompt, [grid], Sampling(1000))
        with pytest.raises(BadRequest, match="in flight"):
            vllm.submit("one", prompt, [grid], Sampling(1))
        assert vllm.cancel("one")
        with pytest.raises(RequestCancelled):
            await collect(first)
        await until(lambda: vllm.stats().running + vllm.stats().waiting == 0)

    asyncio.run(run())


def test_the_longest_prompt_ends_with_the_context(
    vllm: VllmEngine, own: LocalEngine, grid: torch.Tensor, prompt: list[int]
) -> None:
    room = vllm.max_length - (len(prompt) - 1 + 576) - 3
    long = [*prompt, *[5] * room]
    (ours,), (theirs,) = (answers(each, long, [grid], Sampling(50)) for each in (own, vllm))
    same(ours, theirs)
    assert len(theirs) == 3


def test_too_many_wait(
    vllm: VllmEngine, grid: torch.Tensor, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm, "max_waiting", 2)
    process = vllm._process._process
    assert process is not None

    async def run() -> None:
        os.kill(process.pid, signal.SIGSTOP)  # nobody gets a first token
        try:
            streams = [vllm.submit(f"w{i}", prompt, [grid], Sampling(4)) for i in range(2)]
            with pytest.raises(EngineBusy) as busy:
                vllm.submit("w2", prompt, [grid], Sampling(4))
            assert busy.value.waiting == 2
            assert vllm.stats().waiting == 2
        finally:
            os.kill(process.pid, signal.SIGCONT)
        for stream in streams:
            assert len(await collect(stream)) == 4
        assert len(await collect(vllm.submit("w3", prompt, [grid], Sampling(4)))) == 4

    asyncio.run(run())


def test_a_request_that_vllm_refuses_fails_alone(
    vllm: VllmEngine, grid: torch.Tensor, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        good = vllm.submit("good", prompt, [grid], Sampling(20))
        with monkeypatch.context() as patch:
            params = vllm._params
            patch.setattr(vllm, "_params", lambda job: {**params(job), "logprobs": -5})
            bad = vllm.submit("bad", prompt, [grid], Sampling(20))
        with pytest.raises(RequestFailed, match="logprobs must be non-negative"):
            await collect(bad)
        assert len(await collect(good)) == 20

    asyncio.run(run())
    assert vllm.stats().alive


def test_an_answer_that_is_not_a_number_fails_alone(
    vllm: VllmEngine, grid: torch.Tensor, prompt: list[int], steps: Steps,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    hear = vllm._hear

    def broken(number: int, said: dict[str, Any]) -> None:
        answer = vllm._answers.get(number)
        if answer is not None and answer.job.request_id == "bad":
            said = {**said, "tokens": [(i, float("nan"), top) for i, _, top in said["tokens"]]}
        hear(number, said)

    monkeypatch.setattr(vllm, "_hear", broken)

    async def run() -> None:
        good = vllm.submit("good", prompt, [grid], Sampling(20))
        with pytest.raises(RequestFailed, match="not a number"):
            await collect(vllm.submit("bad", prompt, [grid], Sampling(1000)))
        assert len(await collect(good)) == 20
        await until(lambda: steps("abort") and not vllm.stats().running)

    asyncio.run(run())


def test_a_killed_process_is_told_to_everyone(
    start_stand_in: Callable[..., VllmEngine], grid: torch.Tensor, prompt: list[int]
) -> None:
    engine = start_stand_in()
    process = engine._process._process
    assert process is not None

    async def run() -> None:
        told = engine.submit("told", prompt, [grid], Sampling(1000))
        await anext(told)
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(EngineClosed, match="died"):
            await collect(told)
        assert not engine.stats().alive
        with pytest.raises(EngineClosed):
            engine.submit("late", prompt, [grid], Sampling(1))

    asyncio.run(run())
    engine.close()
    assert not engine._process._folder.exists()


def test_closing_ends_the_process(
    start_stand_in: Callable[..., VllmEngine], grid: torch.Tensor, prompt: list[int]
) -> None:
    engine = start_stand_in()
    process = engine._process._process
    assert process is not None

    async def run() -> None:
        left = engine.submit("left", prompt, [grid], Sampling(1000))
        await anext(left)
        await asyncio.to_thread(engine.close)
        with pytest.raises(EngineClosed, match="was closed"):
            await collect(left)

    asyncio.run(run())
    assert process.returncode == 0
    engine.close()


def test_what_it_works_with_is_told(vllm: VllmEngine) -> None:
    stats = vllm.stats()
    assert (stats.attention, stats.device, stats.dtype) == ("vLLM stand-in", "cpu", "float32")
    assert stats.alive


def test_it_leaves_nothing_of_ours_to_python_paths(vllm: VllmEngine) -> None:
    """Another environment must not find our packages, nor their dependencies."""
    path = vllm._process._folder / "path"
    assert sorted(each.name for each in path.iterdir()) == ["m3_vllm", "m3_vllm-1.dist-info"]
    names = {each.name for each in Path(path / "m3_vllm").iterdir()} - {"__pycache__"}
    assert names == {"__init__.py", "model.py", "plugin.py", "server.py", "wire.py"}
