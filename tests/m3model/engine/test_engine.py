"""The engine: same answers as `generate`, cancellable, surviving, never blocking the loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopPLogitsWarper

from m3model import LocalEngine, M3ForConditionalGeneration, M3Processor, Sampling, TokenEvent
from m3model.engine.passes.sampling import Choices, draw_of
from m3model.errors import (
    BadRequest,
    EngineBusy,
    EngineClosed,
    PromptTooLong,
    RequestCancelled,
    RequestFailed,
)
from m3model.pooling import pool_visual_tokens
from m3model.tiny import write_tiny_checkpoint

SCALES = (1, 9, 36, 144, 576)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> M3ForConditionalGeneration:
    return M3ForConditionalGeneration.from_pretrained(folder)


@pytest.fixture(scope="module")
def processor(folder: Path) -> M3Processor:
    return M3Processor.from_pretrained(folder)


@pytest.fixture
def engine(model: M3ForConditionalGeneration, processor: M3Processor) -> Iterator[LocalEngine]:
    engine = LocalEngine(model, processor)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def grid() -> torch.Tensor:
    return torch.randn(576, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def prompt(processor: M3Processor) -> list[int]:
    content = [{"type": "image"}, {"type": "text", "text": "what color is the star?"}]
    return processor.prompt_ids([{"role": "user", "content": content}])


async def collect(events: AsyncIterator[TokenEvent]) -> list[TokenEvent]:
    return [event async for event in events]


def endless(model: M3ForConditionalGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the end token away, so that answers run until someone stops them."""
    monkeypatch.setattr(model.generation_config, "eos_token_id", None)
    monkeypatch.setattr(model.config.text_config, "eos_token_id", None)


def test_concurrent_answers_equal_generate(
    engine: LocalEngine,
    model: M3ForConditionalGeneration,
    processor: M3Processor,
    grid: torch.Tensor,
    prompt: list[int],
) -> None:
    async def run() -> list[list[TokenEvent]]:
        return await asyncio.gather(
            *(
                collect(
                    engine.submit(
                        f"r{scale}",
                        prompt,
                        [pool_visual_tokens(grid, scale)],
                        Sampling(max_new_tokens=10),
                    )
                )
                for scale in SCALES
            )
        )

    for scale, events in zip(SCALES, asyncio.run(run()), strict=True):
        out = model.generate(
            input_ids=torch.tensor([prompt]),
            image_grids=grid[None],
            scale=scale,
            max_new_tokens=10,
            return_dict_in_generate=True,
            output_logits=True,
        )
        wanted = out.sequences[0].tolist()
        assert [event.token_id for event in events] == wanted
        steps = torch.log_softmax(torch.cat(out.logits), dim=-1)
        for event, row in zip(events, steps, strict=True):
            assert event.logprob == pytest.approx(float(row[event.token_id]), abs=1e-5)
        assert [event.finish_reason for event in events[:-1]] == [None] * (len(events) - 1)
        assert events[-1].finish_reason == ("stop" if wanted[-1] == 2 else "length")
        assert "".join(event.text_delta for event in events).strip() == processor.decode(wanted)


def test_text_only_and_two_pictures(
    engine: LocalEngine, grid: torch.Tensor, prompt: list[int]
) -> None:
    async def run() -> None:
        text = await collect(engine.submit("a", [1, 5, 40, 6], sampling=Sampling(3)))
        assert 1 <= len(text) <= 3
        two = [prompt[0], prompt[1], *prompt[1:]]
        tokens = [pool_visual_tokens(grid, 1).half(), pool_visual_tokens(grid, 36)]
        assert await collect(engine.submit("b", two, tokens, Sampling(3)))
        bare = await collect(engine.submit("c", prompt, tokens[1], Sampling(3)))
        listed = await collect(engine.submit("d", prompt, tokens[1:], Sampling(3)))
        assert [event.token_id for event in bare] == [event.token_id for event in listed]

    asyncio.run(run())


def test_sampling_is_seeded_and_leaves_the_global_generator_alone(
    engine: LocalEngine, grid: torch.Tensor, prompt: list[int]
) -> None:
    async def draw(name: str, **options: Any) -> list[int]:
        sampling = Sampling(max_new_tokens=12, temperature=1.5, **options)
        events = await collect(engine.submit(name, prompt, [grid], sampling))
        return [event.token_id for event in events]

    async def run() -> None:
        before = torch.random.get_rng_state()
        first = await draw("1", seed=7)
        assert await draw("2", seed=7) == first
        assert await draw("3", seed=8) != first
        assert await draw("4") != await draw("5")
        greedy = await collect(engine.submit("6", prompt, [grid], Sampling(max_new_tokens=12)))
        assert await draw("7", seed=7, top_p=1e-6) == [event.token_id for event in greedy]
        assert torch.equal(before, torch.random.get_rng_state())

    asyncio.run(run())


def test_a_draw_follows_the_distribution() -> None:
    scores = torch.log(torch.tensor([[0.7, 0.2, 0.1, 0.0]]))
    draws = Choices([draw_of(Sampling(temperature=1.0, seed=0), CPU)], [0], CPU)
    counts = torch.zeros(4)
    for _ in range(4000):
        counts[draws.choose(scores, scores.argmax(-1))] += 1
    torch.testing.assert_close(
        counts / 4000, torch.tensor([0.7, 0.2, 0.1, 0.0]), atol=0.03, rtol=0.0
    )


@given(
    wishes=st.lists(st.tuples(st.sampled_from([0.0, 0.3, 1.0, 1.7]), st.floats(0.05, 1.0)),
                    min_size=1, max_size=5)
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_rows_that_draw_together_draw_as_alone(wishes: list[tuple[float, float]]) -> None:
    """As transformers' own filters leave them, each with a seed of its own."""
    logits = torch.randn(len(wishes), 50, generator=torch.Generator().manual_seed(1)) * 3
    asked = [
        Sampling(temperature=temperature, top_p=top_p, seed=i)
        for i, (temperature, top_p) in enumerate(wishes)
    ]
    together = Choices([draw_of(each, CPU) for each in asked], [0] * len(asked), CPU).choose(
        logits, logits.argmax(-1)
    )
    for i, each in enumerate(asked):
        scores = logits[i : i + 1].clone()
        if each.temperature:
            scores = TemperatureLogitsWarper(each.temperature)(torch.empty(0), scores)
            if each.top_p < 1.0:
                scores = TopPLogitsWarper(each.top_p)(torch.empty(0), scores)
            noise = torch.empty_like(scores)
            noise.exponential_(generator=torch.Generator().manual_seed(i))
            scores = scores - noise.clamp_min(torch.finfo(noise.dtype).tiny).log()
        assert int(together[i]) == int(scores.argmax())


def test_stop_strings(
    engine: LocalEngine, processor: M3Processor, grid: torch.Tensor, prompt: list[int]
) -> None:
    async def run() -> None:
        full = await collect(engine.submit("a", prompt, [grid], Sampling(max_new_tokens=12)))
        text = "".join(event.text_delta for event in full)
        stop = text.split()[2]
        cut = await collect(
            engine.submit("b", prompt, [grid], Sampling(max_new_tokens=12, stop=(stop,)))
        )
        assert cut[-1].finish_reason == "stop"
        assert "".join(event.text_delta for event in cut) == text[: text.index(stop)]

    asyncio.run(run())


def test_cancelling_ends_within_a_token(
    model: M3ForConditionalGeneration,
    processor: M3Processor,
    grid: torch.Tensor,
    prompt: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endless(model, monkeypatch)
    engine = LocalEngine(model, processor, max_running=1)

    async def run() -> None:
        running = engine.submit("running", prompt, [grid], Sampling(max_new_tokens=1000))
        waiting = engine.submit("waiting", prompt, [grid], Sampling(max_new_tokens=1000))
        await anext(running)
        stats = engine.stats()
        assert (stats.running, stats.waiting, stats.visual_tokens) == (1, 1, 1152)
        assert stats.text_tokens == 2 * (len(prompt) - 1)
        assert engine.cancel("waiting")
        with pytest.raises(RequestCancelled):
            await collect(waiting)
        assert engine.cancel("running")
        with pytest.raises(RequestCancelled):
            await collect(running)
        deadline = time.monotonic() + 5
        while engine.stats().running and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert engine.stats().running == 0
        assert not engine.cancel("running")
        after = await collect(engine.submit("after", prompt, [grid], Sampling(max_new_tokens=2)))
        assert len(after) == 2

    try:
        asyncio.run(run())
    finally:
        engine.close()


def test_a_reader_who_leaves_cancels(
    model: M3ForConditionalGeneration,
    processor: M3Processor,
    grid: torch.Tensor,
    prompt: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endless(model, monkeypatch)
    engine = LocalEngine(model, processor)

    async def run() -> None:
        events = engine.submit("gone", prompt, [grid], Sampling(max_new_tokens=1000))
        await anext(events)
        await events.aclose()  # type: ignore[attr-defined]
        deadline = time.monotonic() + 5
        while engine.stats().running and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert engine.stats().running == 0

    try:
        asyncio.run(run())
    finally:
        engine.close()


def test_a_failing_request_fails_alone(
    engine: LocalEngine,
    model: M3ForConditionalGeneration,
    grid: torch.Tensor,
    prompt: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = engine._packed.embed

    def broken(ids: list[int], tokens: list[torch.Tensor], skipped: int) -> torch.Tensor:
        if len(tokens[0]) == 36:
            raise RuntimeError("out of memory")
        return real(ids, tokens, skipped)

    monkeypatch.setattr(engine._packed, "embed", broken)

    async def run() -> list[Any]:
        return await asyncio.gather(
            *(
                collect(
                    engine.submit(
                        f"r{scale}", prompt, [pool_visual_tokens(grid, scale)], Sampling(3)
                    )
                )
                for scale in (9, 36, 144)
            ),
            return_exceptions=True,
        )

    good, bad, also_good = asyncio.run(run())
    assert len(good) == len(also_good) == 3
    assert isinstance(bad, RequestFailed)
    assert "out of memory" in str(bad)
    assert engine.stats().alive


def test_the_event_loop_keeps_turning(
    engine: LocalEngine, grid: torch.Tensor, prompt: list[int]
) -> None:
    async def run() -> int:
        task = asyncio.ensure_future(
            collect(engine.submit("a", prompt, [grid], Sampling(max_new_tokens=40, seed=1)))
        )
        turns = 0
        while not task.done():
            await asyncio.sleep(0.001)
            turns += 1
        return turns

    assert asyncio.run(run()) > 3


def test_refusals(
    model: M3ForConditionalGeneration,
    processor: M3Processor,
    grid: torch.Tensor,
    prompt: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endless(model, monkeypatch)
    # Long enough that the answer still goes on while others are refused beside it.
    engine = LocalEngine(model, processor, max_running=1, max_waiting=1, max_length=2500)

    async def run() -> None:
        with pytest.raises(BadRequest, match="2 pictures for 1 image tokens"):
            engine.submit("x", prompt, [grid, grid])
        with pytest.raises(BadRequest, match="have shape"):
            engine.submit("x", prompt, [grid[:, :5]])
        with pytest.raises(BadRequest, match="must lie in 0"):
            engine.submit("x", [1, 10_000])
        with pytest.raises(PromptTooLong) as caught:
            engine.submit("x", prompt * 5, [grid] * 5)
        assert caught.value.limit == 2499
        long = engine.submit("long", prompt, [grid], Sampling(max_new_tokens=5000))
        await anext(long)
        next_one = engine.submit("next", prompt, [grid])
        with pytest.raises(EngineBusy):
            engine.submit("one too many", prompt, [grid])
        engine.cancel("next")
        with pytest.raises(RequestCancelled):
            await anext(next_one)
        with pytest.raises(BadRequest, match="in flight already"):
            engine.submit("long", prompt, [grid])
        rest = await collect(long)
        assert rest[-1].finish_reason == "length"
        assert len(rest) + 1 == 2500 - (576 + len(prompt) - 1)
        last = engine.submit("last", prompt, [grid], Sampling(max_new_tokens=5000))
        engine.close()
        with pytest.raises(EngineClosed):
            await collect(last)
        with pytest.raises(EngineClosed):
            engine.submit("too late", prompt, [grid])
        assert not engine.stats().alive
        assert engine._pool.keys.numel() == engine._pool.values.numel() == 0  # memory is given back

    asyncio.run(run())


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"seed": 2**64},
        {"seed": -(2**63) - 1},
        {"stop": ("",)},
        {"stop": "text"},
    ],
)
def test_sampling_is_checked(options: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        Sampling(**options)


def test_every_layer_of_a_pass_is_a_sign_of_life(
    engine: LocalEngine, prompt: list[int], grid: torch.Tensor
) -> None:
    """A pass may be slow, so what counts as silence is the time between two of its layers."""
    silences: list[float] = []
    layers = engine._packed._layers
    assert layers is not None
    beat = layers._beat

    def beats_late() -> None:
        engine._beat -= 100.0  # as if the layer before took so long
        beat()
        silences.append(engine.stats().heartbeat_s)

    layers._beat = beats_late

    async def run() -> None:
        async for _ in engine.submit("r", prompt, grid, Sampling(max_new_tokens=2)):
            pass

    asyncio.run(run())
    assert len(silences) >= 2 * len(layers._layers)
    assert max(silences) < 100.0
