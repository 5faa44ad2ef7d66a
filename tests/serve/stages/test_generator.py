"""Prompts: what cannot fit is refused unread, long ones are tokenised aside, answers stay."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from m3model import LocalEngine, M3Processor
from m3model.engine.interface import Sampling, TokenEvent
from m3model.processing import Message
from router.decision import Constraints
from serve.errors import BadRequest, NotReady, QueueFull, ReplicaDied, ServiceError, TimedOut
from serve.metrics import LocalMetrics
from serve.settings import ServeSettings
from serve.stages.checkpoint import Checkpoint, load_checkpoint
from serve.stages.encoder import Encoder
from serve.stages.generator import Generator, choice_seed
from serve.stages.messages import AnswerPart, EncodeRequest, GenerateRequest
from serve.stages.prompts import MOST_CHARACTERS_AT_ONCE, context_tokens


class Noting(M3Processor):
    """A processor that notes the threads in which it makes ids."""

    threads: list[str]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        self.threads.append(threading.current_thread().name)
        return super().prompt_ids(messages)

    def question_ids(self, text: str) -> list[int]:
        self.threads.append(threading.current_thread().name)
        return super().question_ids(text)


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path) -> Checkpoint:
    loaded = load_checkpoint(tiny_model, device="cpu")
    return replace(loaded, processor=Noting.from_pretrained(tiny_model))


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint) -> Iterator[LocalEngine]:
    engine = LocalEngine(checkpoint.model, checkpoint.processor, kv_tokens=4096)
    yield engine
    engine.close()


@pytest.fixture
def noting(checkpoint: Checkpoint) -> Noting:
    processor = checkpoint.processor
    assert isinstance(processor, Noting)
    processor.threads = []
    return processor


@pytest.fixture
def generator(engine: LocalEngine, noting: Noting) -> Generator:
    return Generator(engine, noting, ServeSettings(), LocalMetrics())


def said(text: str) -> tuple[dict[str, Any], ...]:
    return ({"role": "user", "content": [{"type": "text", "text": text}]},)


def test_more_log_probabilities_than_a_reply_holds_are_refused(generator: Generator) -> None:
    def ask(**wishes: Any) -> None:
        async def run() -> None:
            request = GenerateRequest("r", said("hi"), (), **wishes)
            async with aclosing(cast(Any, generator.generate(request))) as parts:
                await anext(parts)

        asyncio.run(run())

    # The context bounds what is asked for: one answer's are never too many.
    ask(max_tokens=1_000_000, top_logprobs=20, tokens_per_part=1)
    ask(max_tokens=64, n=16, top_logprobs=20, tokens_per_part=1)
    with pytest.raises(BadRequest, match="more than 100,000 log-prob") as refused:
        ask(max_tokens=1_000_000, n=16, top_logprobs=20, tokens_per_part=1)
    assert (refused.value.param, refused.value.code) == ("top_logprobs", "too_many_logprobs")


def answer(generator: Generator, messages: tuple[dict[str, Any], ...]) -> str:
    async def run() -> str:
        request = GenerateRequest("r", messages, (), max_tokens=8)
        return "".join([part.text async for part in generator.generate(request)])

    return asyncio.run(run())


def plain_answer(engine: LocalEngine, processor: M3Processor, text: str) -> str:
    async def run() -> str:
        ids = M3Processor.prompt_ids(processor, said(text))
        events = engine.submit("plain", ids, [], Sampling(max_new_tokens=8))
        return "".join([event.text_delta async for event in events])

    return asyncio.run(run())


@pytest.mark.parametrize("n_words", [3, 200, 1500])
def test_answers_do_not_depend_on_where_prompts_are_tokenised(
    generator: Generator, engine: LocalEngine, noting: Noting, n_words: int
) -> None:
    text = " ".join(["background", "colour", "star"][i % 3] for i in range(n_words))
    assert answer(generator, said(text)) == plain_answer(engine, noting, text)
    aside = len(text) > MOST_CHARACTERS_AT_ONCE
    assert [name.startswith("m3-prompts") for name in noting.threads] == [aside]


@pytest.mark.parametrize(
    "messages",
    [
        said("word " * 5_000_000),
        ({"role": "system", "content": "x" * 25_000_000}, *said("Is it?")),
        (*said("y " * 6_000_000), {"role": "assistant", "content": "No."}, *said("z" * 13_000_000)),
    ],
    ids=["question", "system", "history"],
)
def test_what_cannot_fit_is_refused_unread(
    generator: Generator, noting: Noting, messages: tuple[dict[str, Any], ...]
) -> None:
    with pytest.raises(BadRequest, match=r"The text has 25,000,0\d\d characters") as refused:
        answer(generator, messages)
    assert (refused.value.param, refused.value.code) == ("messages", "context_length_exceeded")
    assert noting.threads == []


def test_the_longest_prompt_that_fits_is_not_refused(
    generator: Generator, engine: LocalEngine, noting: Noting
) -> None:
    longest = max(noting.tokenizer.get_vocab(), key=len)
    room = engine.max_length - len(M3Processor.prompt_ids(noting, said(""))) - 1
    answer(generator, said(" ".join([longest] * room)))
    with pytest.raises(BadRequest, match="tokens") as refused:
        answer(generator, said(" ".join([longest] * (room + 1))))
    assert refused.value.code == "context_length_exceeded"


def test_routing_refuses_a_question_that_cannot_fit(
    checkpoint: Checkpoint, noting: Noting, picture_bytes: Any, tiny_model: Path
) -> None:
    encoder = Encoder(checkpoint, ServeSettings(model=tiny_model, registry=None), LocalMetrics())
    noting.threads = []  # trying the router asked a question
    request = EncodeRequest((picture_bytes(0),), "word " * 5_000_000, Constraints())
    with pytest.raises(BadRequest, match="25,000,000 characters") as refused:
        asyncio.run(encoder.encode_and_route(request))
    assert refused.value.code == "context_length_exceeded"
    assert noting.threads == []
    assert not encoder._cache
    encoder.close()


def test_an_answer_that_would_come_too_late_is_not_worked_on(
    checkpoint: Checkpoint, engine: LocalEngine
) -> None:
    generator = Generator(engine, checkpoint.processor, ServeSettings(), LocalMetrics())
    messages = ({"role": "user", "content": "what is it?"},)

    async def ask(left_s: float | None) -> int:
        request = GenerateRequest("r", messages, (), max_tokens=3, time_left_s=left_s)
        parts = [part async for part in generator.generate(request)]
        while (stats := engine.stats()).running + stats.waiting:
            await asyncio.sleep(0.001)
        return sum(part.n_tokens for part in parts)

    assert asyncio.run(ask(None)) == asyncio.run(ask(60.0)) > 0
    for left_s in (0.0, 1e-9):
        with pytest.raises(TimedOut):
            asyncio.run(ask(left_s))


def several(n: int, **more: Any) -> GenerateRequest:
    messages = ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what"}]},)
    tokens = np.random.default_rng(n).standard_normal((144, 64)).astype(np.float16)
    wanted = {"max_tokens": 8, "temperature": 1.0, "seed": 1} | more
    return GenerateRequest("r", messages, (tokens,), n=n, **wanted)


async def idle(engine: LocalEngine) -> bool:
    """Whether the engine has nothing left to do within some seconds."""
    deadline = time.monotonic() + 5
    while (stats := engine.stats()).running + stats.waiting and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    return not stats.running + stats.waiting


class Listening:
    """An engine that notes how many prompt tokens of each request were cached."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine, self.cached = engine, list[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def submit(self, *request: Any) -> AsyncIterator[TokenEvent]:
        async with aclosing(cast(Any, self._engine.submit(*request))) as events:
            opening = await anext(events)
            self.cached.append(opening.cached_tokens)
            yield opening
            async for event in events:
                yield event


@pytest.mark.parametrize("tokens_per_part", [None, 1])
def test_the_picture_is_read_once_for_all_answers(
    engine: LocalEngine, noting: Noting, tokens_per_part: int | None
) -> None:
    request = several(4 if tokens_per_part else 3, tokens_per_part=tokens_per_part)
    listening = Listening(engine)
    generator = Generator(cast(Any, listening), noting, ServeSettings(), LocalMetrics())

    async def run() -> list[AnswerPart]:
        parts = []
        async for part in generator.generate(request):
            if tokens_per_part is None:  # all at once: nothing is said by who may still die
                assert await idle(engine)
            parts.append(part)
        return parts

    parts = asyncio.run(run())
    first, *others = listening.cached
    assert first == 0
    assert set(others) == {1 + 144}  # up to the end of the picture
    assert {part.cached_tokens for part in parts} == {0}
    assert sorted({part.index for part in parts}) == list(range(request.n))
    assert sum(part.finish_reason is not None for part in parts) == request.n
    if tokens_per_part is None:
        assert len(parts) == request.n


@pytest.mark.parametrize("after_parts", [0, 1, 5])
def test_all_answers_end_with_their_reader(
    generator: Generator, engine: LocalEngine, after_parts: int
) -> None:
    async def run() -> None:
        parts = generator.generate(several(6, max_tokens=1500, tokens_per_part=1))
        reading = asyncio.ensure_future(anext(parts))
        if after_parts == 0:  # while the prompt is being read
            await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait({reading})
        else:
            await reading
            for _ in range(after_parts - 1):
                await anext(parts)
        await parts.aclose()  # type: ignore[attr-defined]
        assert await idle(engine)

    asyncio.run(run())


def test_answers_that_find_no_room_are_refused_together(checkpoint: Checkpoint) -> None:
    engine = LocalEngine(checkpoint.model, checkpoint.processor, max_running=1, max_waiting=2)
    generator = Generator(engine, checkpoint.processor, ServeSettings(), LocalMetrics())

    async def run() -> None:
        with pytest.raises(QueueFull):  # before anything is said
            await anext(generator.generate(several(4, max_tokens=500, tokens_per_part=1)))
        assert await idle(engine)
        whole = [part async for part in generator.generate(several(3))]
        assert [part.index for part in whole] == [0, 1, 2]

    try:
        asyncio.run(run())
    finally:
        generator.close()


def test_one_failing_answer_fails_the_request(
    generator: Generator, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [0], engine._packed.embed

    def broken(*prompt: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise RuntimeError("out of memory")
        return real(*prompt)

    monkeypatch.setattr(engine._packed, "embed", broken)

    async def run() -> None:
        with pytest.raises(ServiceError, match="failed"):
            [part async for part in generator.generate(several(4, max_tokens=1000))]
        assert await idle(engine)

    asyncio.run(run())


def test_seeds_of_choices() -> None:
    assert choice_seed(None, 3) is None
    assert [choice_seed(seed, 0) for seed in (5, -(2**63))] == [5, -(2**63)]
    seeds = {choice_seed(seed, index) for seed in range(-8, 8) for index in range(16)}
    assert len(seeds) == 16 * 16
    for seed in seeds:
        Sampling(seed=seed)  # one that torch takes


@pytest.mark.parametrize("kv_tokens", [None, 1, 100, 2048, 4096])
def test_encoders_know_the_context_of_engines(
    checkpoint: Checkpoint, kv_tokens: int | None
) -> None:
    engine = LocalEngine(checkpoint.model, checkpoint.processor, kv_tokens=kv_tokens)
    engine.close()
    assert context_tokens(checkpoint.model.config, kv_tokens) == engine.max_length


@pytest.mark.parametrize("begun", [False, True])
def test_an_engine_that_ends_with_a_request_in_hand_died_of_it_perhaps(
    checkpoint: Checkpoint, noting: Noting, begun: bool
) -> None:
    engine = LocalEngine(checkpoint.model, noting, kv_tokens=4096)
    generator = Generator(engine, noting, ServeSettings(), LocalMetrics())
    if not begun:
        engine.close()

    async def run() -> None:
        request = GenerateRequest("r", said("What is it?"), (), max_tokens=900, tokens_per_part=1)
        async for _ in generator.generate(request):
            engine.close()

    with pytest.raises(NotReady) as told:
        asyncio.run(run())
    assert isinstance(told.value, ReplicaDied) == begun
