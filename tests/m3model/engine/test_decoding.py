"""Steps in which the same rows go on: nothing of them comes from the host, and few launches."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from _engine.launches import Operations, launches_a_layer
from torch.nn.functional import scaled_dot_product_attention

from m3model import (
    LocalEngine,
    M3ForConditionalGeneration,
    M3Processor,
    Sampling,
    TokenEvent,
)
from m3model.engine.kv_pool import pool_for
from m3model.engine.passes import forward
from m3model.engine.passes.attention import SdpaStep, VarlenStep
from m3model.engine.passes.captured import FixedStep
from m3model.engine.passes.forward import PackedModel
from m3model.engine.passes.layers import LlamaLayers
from m3model.errors import RequestCancelled, RequestFailed
from m3model.pooling import pool_visual_tokens
from m3model.tiny import tiny_config

from .conftest import Question, alone, ask, collect, questions


def test_a_step_of_a_7b_takes_a_dozen_launches_a_layer() -> None:
    """With variable-length attention, whose kernel needs a GPU: on tensors without content."""
    a_layer, besides = launches_a_layer("7b")
    assert 8 <= a_layer <= 12
    assert besides <= 12


@torch.no_grad()
def test_turning_by_matrices_is_turning() -> None:
    model = M3ForConditionalGeneration(tiny_config(64)).model.language_model
    layers = LlamaLayers(model, 600, lambda: None)
    places = torch.tensor([0, 1, 5, 250, 599])
    vectors = torch.randn(5, layers._heads + layers._kv_heads, layers._dim)
    told = layers._cosines[places], layers._sines[places]
    wanted = layers._elementwise(*told)(vectors)
    assert not torch.equal(wanted[1:], vectors[1:])
    torch.testing.assert_close(layers._by_matrices(*told)(vectors), wanted, atol=1e-5, rtol=1e-5)
    layers._exact = False
    torch.testing.assert_close(layers._elementwise(*told)(vectors), wanted, atol=1e-6, rtol=1e-6)


def test_steps_of_the_same_rows_bring_nothing_from_the_host(
    model: M3ForConditionalGeneration,
    start: Callable[..., LocalEngine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And are the same, one like the other."""
    engine = start()
    seen: list[tuple[int, Operations]] = []
    real = engine._packed.launch

    def launch(chunks: Any) -> Any:
        again = engine._packed.goes_on(chunks)
        with Operations() as operations:
            said = real(chunks)
        if again:
            seen.append((len(chunks), operations))
        return said

    monkeypatch.setattr(engine._packed, "launch", launch)
    asked = [Question(q.ids, q.grid, q.scale, 12) for q in questions(model, 6)]
    drawn = Sampling(12, temperature=0.7, top_p=0.8, seed=3, top_logprobs=2)

    async def run() -> None:
        visual = [pool_visual_tokens(asked[0].grid, 36)]
        await asyncio.gather(
            *(collect(ask(engine, f"r{i}", each)) for i, each in enumerate(asked)),
            collect(engine.submit("drawn", asked[0].ids, visual, drawn)),
        )

    asyncio.run(run())
    full = [operations.names for n, operations in seen if n == 7]
    assert len(full) >= 5
    assert all(names == full[0] for names in full)
    assert len(full[0]) > 40
    assert not [each.of_the_host for _, each in seen if each.of_the_host]


def varlen_as_documented(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_q: torch.Tensor,
    cu_k: torch.Tensor, max_q: int, max_k: int, *, scale: float, window_size: tuple[int, int],
    enable_gqa: bool, seqused_k: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    """What torch's documentation says of varlen_attn, one sequence after the other."""
    assert (cu_k.diff() >= 0).all()
    assert (seqused_k <= max_k).all()
    out = torch.empty_like(query)
    for i, (at, end) in enumerate(itertools.pairwise(cu_q.tolist())):
        assert end - at <= max_q
        used, first = int(seqused_k[i]), int(cu_k[i])
        assert first + used <= int(cu_k[i + 1])
        seen = torch.ones(end - at, used, dtype=torch.bool).tril(used - (end - at))
        q, k, v = (x.transpose(0, 1) for x in (query[at:end], *(
            each[first : first + used] for each in (key, value)
        )))  # fmt: skip
        if end > at:
            out[at:end] = scaled_dot_product_attention(
                q, k, v, attn_mask=seen, scale=scale, enable_gqa=enable_gqa
            ).transpose(0, 1)
    return out


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("max_running", [1, 5, 16])
def test_answers_are_the_same_from_buffers_that_never_move(
    model: M3ForConditionalGeneration,
    processor: M3Processor,
    monkeypatch: pytest.MonkeyPatch,
    ahead: bool,
    max_running: int,
) -> None:
    """As a GPU captures them, on the kernel's documentation: it has none for CPUs."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_as_documented)
    monkeypatch.setattr(forward, "best_step", lambda pool, heads: VarlenStep)
    monkeypatch.setattr(forward, "pool_for", lambda *args, **more: pool_for(
        *args, **{**more, "spare": 2 * max_running}
    ))  # fmt: skip
    runs: Counter[int] = Counter()
    real = FixedStep.run

    def run(self: FixedStep) -> Any:
        runs[self.rows] += 1
        return real(self)

    monkeypatch.setattr(FixedStep, "run", run)
    engine = LocalEngine(model, processor, ahead=ahead, max_running=max_running, kv_tokens=2500)
    engine._packed._fixed = engine._packed.fixed_steps(engine.max_length, max_running)
    asked = questions(model, 20, seed=5)
    drawn = Sampling(12, temperature=0.7, top_p=0.8, seed=3, top_logprobs=2)
    visual = [pool_visual_tokens(asked[0].grid, 36)]

    async def both() -> tuple[list[list[int]], list[int]]:
        draws = collect(engine.submit("drawn", asked[0].ids, visual, drawn))
        rest = [collect(ask(engine, f"r{i}", each)) for i, each in enumerate(asked)]
        *answers, told = await asyncio.gather(*rest, draws)
        return answers, told

    try:
        answers, told = asyncio.run(both())
    finally:
        engine.close()
    assert answers == [alone(model, each) for each in asked]
    assert sum(runs.values()) > 20
    assert set(runs) <= {1, 2, 4, 8, 16}
    monkeypatch.setattr(forward, "best_step", lambda pool, heads: SdpaStep)
    plain = LocalEngine(model, processor)

    async def alone_drawn() -> list[int]:
        return await collect(plain.submit("drawn", asked[0].ids, visual, drawn))

    try:
        assert asyncio.run(alone_drawn()) == told
    finally:
        plain.close()


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("max_running", [1, 5, 16])
def test_answers_are_the_same_when_passes_are_begun_ahead(
    model: M3ForConditionalGeneration,
    start: Callable[..., LocalEngine],
    ahead: bool,
    max_running: int,
) -> None:
    """Also where a row that has ended is read once more, beside others and alone."""
    engine = start(ahead=ahead, max_running=max_running, kv_tokens=2500)
    asked = questions(model, 20, seed=4)

    async def run() -> list[list[int]]:
        return await asyncio.gather(
            *(collect(ask(engine, f"r{i}", each)) for i, each in enumerate(asked))
        )

    assert asyncio.run(run()) == [alone(model, each) for each in asked]
    assert engine.stats().kv_pages_used == 0


def test_a_long_answer_is_laid_out_anew_on_its_way(
    model: M3ForConditionalGeneration, start: Callable[..., LocalEngine]
) -> None:
    """A table has room for sixteen tokens; answers of more than that, of unlike lengths."""
    asked = [
        Question(q.ids, q.grid, q.scale, n)
        for q, n in zip(questions(model, 4), (90, 40, 17, 16), strict=True)
    ]
    engine = start()

    async def run() -> list[list[int]]:
        return await asyncio.gather(
            *(collect(ask(engine, f"r{i}", each)) for i, each in enumerate(asked))
        )

    assert asyncio.run(run()) == [alone(model, each) for each in asked]


def test_no_numbers_are_left_behind_by_a_failed_request(
    model: M3ForConditionalGeneration, start: Callable[..., LocalEngine]
) -> None:
    """Memory is read beyond a context, masked: times zero, NaN would be NaN."""
    engine = start(kv_tokens=800)
    good = Question([1, model.config.image_token_id, 7, 8], torch.randn(576, 64), 9, 30)
    bad = Question(good.ids, good.grid * float("nan"), 576, 30)

    async def run() -> list[int]:
        broken = await asyncio.gather(collect(ask(engine, "bad", bad)), return_exceptions=True)
        assert isinstance(broken[0], Exception)
        return await collect(ask(engine, "good", good))

    assert asyncio.run(run()) == alone(model, good)
    assert bool(engine._pool.keys.isfinite().all())


def cancel_while_it_is_read(engine: LocalEngine, request_id: str) -> None:
    """Cancels a request after a pass of it, before the pass is heard."""
    real = engine._packed.launch

    def launch(chunks: Any) -> Any:
        said = real(chunks)
        engine.cancel(request_id)
        return said

    engine._packed.launch = launch  # type: ignore[method-assign]


def test_what_a_cancelled_request_left_is_no_neighbours_fault(
    model: M3ForConditionalGeneration, start: Callable[..., LocalEngine]
) -> None:
    """It leaves before anybody heard that its numbers are none; its memory is the next one's."""
    engine = start(prompt_tokens=64, kv_tokens=640)
    good = Question([1, model.config.image_token_id, 7, 8], torch.randn(576, 64), 9, 30)
    bad = Question(good.ids, good.grid * float("nan"), 576, 30)
    cancel_while_it_is_read(engine, "bad")

    async def run() -> None:
        with pytest.raises(RequestCancelled):
            await collect(ask(engine, "bad", bad))
        assert await collect(ask(engine, "good", good)) == alone(model, good)

    asyncio.run(run())


def test_a_prefix_that_nobody_heard_of_is_not_kept(
    model: M3ForConditionalGeneration, start: Callable[..., LocalEngine]
) -> None:
    """Its picture was read whole when the request left, but nothing was said yet."""
    engine = start(prompt_tokens=64)
    image = model.config.image_token_id
    asked = Question([1, image, *[7] * 90], torch.randn(576, 64), 36, 5)
    cancel_while_it_is_read(engine, "leaves")

    async def run() -> list[TokenEvent]:
        with pytest.raises(RequestCancelled):
            await collect(ask(engine, "leaves", asked))
        return [event async for event in ask(engine, "stays", asked)]

    events = asyncio.run(run())
    assert [event.token_id for event in events] == alone(model, asked)
    assert events[0].cached_tokens == 0


def test_what_is_being_read_is_not_shared_before_it_was_heard(
    model: M3ForConditionalGeneration, start: Callable[..., LocalEngine]
) -> None:
    """A picture that is no numbers makes none of those before it, in one block of a prompt."""
    engine = start(prompt_tokens=64)
    image = model.config.image_token_id
    good, other = torch.randn(9, 64), torch.randn(9, 64)
    ids = [1, image, 7, image, 8]
    real, there = engine._packed.launch, threading.Event()

    def launch(chunks: Any) -> Any:
        said = real(chunks)
        there.wait(10)
        return said

    engine._packed.launch = launch  # type: ignore[method-assign]

    async def run() -> list[TokenEvent]:
        bad = engine.submit("bad", ids, [good, torch.full((576, 64), torch.nan)], Sampling(5))
        broken = asyncio.ensure_future(collect(bad))
        await asyncio.sleep(0.1)  # its first tokens are being read
        events = engine.submit("good", ids, [good, other], Sampling(5))
        there.set()
        told = [event async for event in events]
        with pytest.raises(RequestFailed):
            await broken
        return told

    events = asyncio.run(run())
    assert events[0].cached_tokens == 0

    async def again() -> list[int]:
        return await collect(start().submit("good", ids, [good, other], Sampling(5)))

    assert [event.token_id for event in events] == asyncio.run(again())


@torch.no_grad()
def test_embeddings_but_for_what_lies_ready(model: M3ForConditionalGeneration) -> None:
    packed = PackedModel(model, kv_tokens=64, longest=64, most=4, beat=lambda: None)
    image = model.config.image_token_id
    pictures: Sequence[torch.Tensor] = [torch.randn(9, 64), torch.randn(4, 64)]
    ids = [1, 5, image, 6, 7, image, 8]
    whole = model.embed_prompt(ids, pictures)
    for skipped in range(len(whole) + 1):
        assert torch.equal(packed.embed(ids, pictures, skipped), whole[skipped:]), skipped


def test_the_engine_names_what_it_works_with(start: Callable[..., LocalEngine]) -> None:
    stats = start().stats()
    assert (stats.attention, stats.device, stats.dtype) == (SdpaStep.name, "cpu", "float32")
