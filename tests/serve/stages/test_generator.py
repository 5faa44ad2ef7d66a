"""Prompts: what cannot fit is refused unread, long ones are tokenised aside, answers stay."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from m3model import LocalEngine, M3Processor
from m3model.engine.interface import Sampling
from m3model.processing import Message
from router.decision import Constraints
from serve.errors import BadRequest, NotReady, ReplicaDied
from serve.metrics import LocalMetrics
from serve.settings import ServeSettings
from serve.stages.checkpoint import Checkpoint, load_checkpoint
from serve.stages.encoder import Encoder
from serve.stages.generator import MOST_CHARACTERS_AT_ONCE, Generator
from serve.stages.messages import EncodeRequest, GenerateRequest


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
    return Checkpoint(
        loaded.model, Noting.from_pretrained(tiny_model), loaded.sources, loaded.device
    )


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
