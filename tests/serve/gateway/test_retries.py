"""What a gateway tries again when a stage fails, how often, and what it never repeats."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serve.errors import BadRequest, DiedAgain, NotReady, QueueFull, ReplicaDied
from serve.gateway.call import Call
from serve.gateway.gateway import Gateway
from serve.metrics import LocalMetrics
from serve.protocol import ChatCompletion, ChatRequest
from serve.settings import ServeSettings
from serve.stages.checkpoint import load_checkpoint
from serve.stages.generator import Generator
from serve.stages.messages import (
    AnswerPart,
    Encoded,
    EncodeRequest,
    GenerateRequest,
)
from serve.tenants.budgets import Budget

from .conftest import Body, PlainEncoder, PlainGenerator, client, make

pytestmark = pytest.mark.usefixtures("tries_follow_at_once")


async def streamed(gateway: Gateway, body: dict[str, Any]) -> list[Any]:
    request = ChatRequest.model_validate(body | {"stream": True})
    return [chunk async for chunk in gateway.stream(request, Call("r"))]


@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_generator_costs_a_try_not_a_second_encode(ask_body: Body, stream: bool) -> None:
    encoder, generator = PlainEncoder(), PlainGenerator(deaths=1)
    gateway, log = make(encoder, generator)
    if stream:
        chunks = asyncio.run(streamed(gateway, ask_body()))
        text = "".join(c.choices[0].delta.content or "" for c in chunks)
    else:
        reply = asyncio.run(gateway.complete(ChatRequest.model_validate(ask_body()), Call("r")))
        text = reply.choices[0].message.content
    assert text == "a b c"
    assert (encoder.calls, generator.calls) == (1, 2)
    assert log.records[0].status == "ok"
    assert log.records[0].completion_tokens == 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "failures", "retries", "calls", "code"),
    [
        (NotReady, 2, 2, 3, None),  # could not take it: harmless, so tried as often as set
        (NotReady, 3, 2, 3, "not_ready"),
        (NotReady, 1, 0, 1, "not_ready"),
        (ReplicaDied, 1, 2, 2, None),
        (ReplicaDied, 99, 9, 2, "replica_died"),  # whatever is set, no third replica
        (ReplicaDied, 1, 0, 1, "replica_died"),
        (QueueFull, 1, 9, 1, "queue_full"),  # the gateway's callers wait, not the gateway
    ],
)
def test_how_often_a_failing_generator_is_asked(
    ask_body: Body, error: type[Exception], failures: int, retries: int, calls: int,
    code: str | None, stream: bool,
) -> None:  # fmt: skip
    generator = PlainGenerator(deaths=failures, error=error)
    gateway, log = make(generator=generator, retries=retries)

    async def run() -> httpx2.Response:
        async with client(gateway) as http:
            return await http.post("/v1/chat/completions", json=ask_body(stream=stream))

    reply = asyncio.run(run())
    assert generator.calls == calls
    assert log.records[0].status == (code or "ok")
    assert reply.status_code == (200 if code is None else 429 if error is QueueFull else 503)
    # Client libraries repeat a 503 of themselves: twice is enough for what kills replicas.
    killed_two = error is ReplicaDied and calls == 2 and code is not None
    assert reply.headers.get("x-should-retry") == ("false" if killed_two else None)


def test_a_request_that_kills_one_of_each_kind_has_killed_two(ask_body: Body) -> None:
    encoder, generator = PlainEncoder(deaths=1), PlainGenerator(deaths=99)
    gateway, _ = make(encoder, generator)
    with pytest.raises(DiedAgain):
        asyncio.run(gateway.complete(ChatRequest.model_validate(ask_body()), Call("r")))
    assert (encoder.calls, generator.calls) == (2, 1)


def test_one_dead_engine_of_two_costs_no_request(
    running: Any, tiny_model: Path, ask_body: Body
) -> None:
    from m3model import LocalEngine

    service = running.service
    half = load_checkpoint(tiny_model, half="generator")
    engine = LocalEngine(half.model, half.processor, kv_tokens=1024)
    engine.close()
    dead = Generator(engine, half.processor, ServeSettings(), LocalMetrics())

    class InTurn:
        """Two real generators, as a load balancer without a memory asks them."""

        turns = itertools.cycle([dead, service.generator])

        def generate(self, request: GenerateRequest) -> AsyncIterator[AnswerPart]:
            return next(self.turns).generate(request)

    gateway, log = make(service.encoder, InTurn())

    async def run() -> list[int]:
        async with client(gateway) as http:
            bodies = [ask_body(stream=turn % 2 == 0) for turn in range(5)]
            replies = [await http.post("/v1/chat/completions", json=body) for body in bodies]
            return [reply.status_code for reply in replies]

    assert asyncio.run(run()) == [200] * 5
    assert [record.status for record in log.records] == ["ok"] * 5


def test_nothing_is_tried_again_after_the_first_streamed_part(ask_body: Body) -> None:
    generator = PlainGenerator(deaths=1, at=1)
    gateway, log = make(generator=generator)

    async def run() -> str:
        async with client(gateway) as http:
            reply = await http.post("/v1/chat/completions", json=ask_body(stream=True))
            assert reply.status_code == 200
            return reply.text

    events = [line.removeprefix("data: ") for line in asyncio.run(run()).split("\n\n") if line]
    assert json.loads(events[-1])["error"]["code"] == "replica_died"
    assert "[DONE]" not in events
    assert generator.calls == 1
    assert log.records[0].status == "replica_died"


def test_retries_end(ask_body: Body) -> None:
    gateway, log = make(generator=PlainGenerator(deaths=99), retries=1)
    with pytest.raises(ReplicaDied):
        asyncio.run(gateway.complete(ChatRequest.model_validate(ask_body()), Call("r")))
    gateway, _ = make(encoder=PlainEncoder(deaths=1))
    reply = asyncio.run(gateway.complete(ChatRequest.model_validate(ask_body()), Call("r")))
    assert reply.routing.scale == 36
    assert log.records[0].status == "replica_died"


def test_who_was_with_a_poisoned_picture_does_not_die_with_it(ask_body: Body) -> None:
    """All that an encoder works on dies with it: the others must not be there both times."""

    class Mortal(PlainEncoder):
        """Dies of what is asked with a pinned scale, and starts anew at once."""

        lost = 0

        def __init__(self) -> None:
            super().__init__()
            self.life = asyncio.Event()

        async def encode_and_route(self, request: EncodeRequest) -> Encoded:
            life = self.life
            await asyncio.sleep(0.01)
            if request.constraints.pinned is not None:
                life.set()
                self.life, self.lost = asyncio.Event(), self.lost + 1
            if life.is_set():
                raise ReplicaDied()
            return await super().encode_and_route(request)

    async def run() -> tuple[list[Any], int]:
        encoder = Mortal()
        gateway, _ = make(encoder)
        bodies = [ask_body(), ask_body(), ask_body(model="m3-9"), ask_body(), ask_body()]
        asked = [
            gateway.complete(ChatRequest.model_validate(body), Call(f"r{i}"))
            for i, body in enumerate(bodies)
        ]
        return list(await asyncio.gather(*asked, return_exceptions=True)), encoder.lost

    ends, lost = asyncio.run(run())
    assert [type(end) for end in ends] == [
        ChatCompletion, ChatCompletion, DiedAgain, ChatCompletion, ChatCompletion,
    ]  # fmt: skip
    assert lost == 2


def test_what_a_replica_gave_up_is_not_charged(ask_body: Body) -> None:
    class GivesUp(PlainGenerator):
        async def generate(self, request: GenerateRequest) -> AsyncIterator[AnswerPart]:
            # As `serve.on_ray.stages` tells of a replica that cancelled what it was asked.
            raise NotReady("The request was cancelled on its way. Try again.", code="cancelled")
            yield

    gateway, log = make(generator=GivesUp())
    budget = Budget(1000, lambda: 0.0)
    with pytest.raises(NotReady):
        asyncio.run(
            gateway.complete(ChatRequest.model_validate(ask_body()), Call("r", budget=budget))
        )
    assert [record.status for record in log.records] == ["cancelled"]
    assert budget.headers()["x-ratelimit-remaining-tokens"] == "1000"


def test_bad_requests_are_not_retried(ask_body: Body) -> None:
    class Strict(PlainEncoder):
        async def encode_and_route(self, request: EncodeRequest) -> Encoded:
            self.calls += 1
            raise BadRequest("The picture is cut off.", code="invalid_image")

    encoder = Strict()
    gateway, log = make(encoder)
    with pytest.raises(BadRequest):
        asyncio.run(gateway.complete(ChatRequest.model_validate(ask_body()), Call("r")))
    assert encoder.calls == 1
    assert log.records[0].status == "invalid_image"
