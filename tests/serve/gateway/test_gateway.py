"""A gateway between two small stages: its replies and records, its health, and the drain."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from serve.errors import NotReady, QueueFull, ReplicaDied
from serve.gateway import replies
from serve.gateway.call import Call
from serve.protocol import ChatRequest
from serve.stages.messages import (
    AnswerPart,
    Encoded,
    EncodeRequest,
    EncoderStatus,
    GenerateRequest,
    GeneratorStatus,
    TokenLogprob,
)

from .conftest import Body, PlainEncoder, PlainGenerator, client, make

pytestmark = pytest.mark.usefixtures("tries_follow_at_once")


def test_draining_waits_for_requests_and_takes_no_more(ask_body: Body) -> None:
    gateway, log = make(generator=PlainGenerator(wait_s=0.1))

    async def run() -> None:
        async with client(gateway) as http:
            url = "/v1/chat/completions"
            under_way = asyncio.create_task(http.post(url, json=ask_body(stream=True)))
            while not (await http.get("/health")).json()["inflight"]:
                await asyncio.sleep(0.005)
            draining = asyncio.create_task(gateway.drain())
            await asyncio.sleep(0)
            late = await http.post(url, json=ask_body())
            assert late.status_code == 503
            assert int(late.headers["retry-after"]) > 0
            assert (await http.get("/health")).json()["status"] == "stopping"
            for method in ("GET", "HEAD"):
                probed = await http.request(method, "/health/ready")
                assert (probed.status_code, int(probed.headers["retry-after"]) > 0) == (503, True)
            assert (await http.head("/health/live")).status_code == 200
            assert await draining
            assert "[DONE]" in (await under_way).text

    asyncio.run(run())
    assert [record.status for record in log.records] == ["not_ready", "ok"]


@pytest.mark.parametrize("begun", [True, False])
def test_what_outlasts_the_drain_is_told_so(ask_body: Body, begun: bool) -> None:
    """Half a minute a word, and no time: a stream ends with an event, the others with a 503."""

    class Slow(PlainGenerator):
        async def generate(self, request: GenerateRequest) -> AsyncIterator[AnswerPart]:
            if begun and request.tokens_per_part is not None:
                yield AnswerPart("a", 1, -0.1, 7)
            async for part in super().generate(request):
                yield part

    generator = Slow(wait_s=30.0)
    gateway, log = make(generator=generator, drain_s=0.1)

    async def run() -> list[httpx2.Response]:
        async with client(gateway) as http:
            bodies = [ask_body(stream=stream) for stream in (True, True, False)]
            url = "/v1/chat/completions"
            asked = [asyncio.create_task(http.post(url, json=body)) for body in bodies]
            while generator.calls < 3:
                await asyncio.sleep(0.005)
            assert not await gateway.drain()
            assert gateway.admission.inflight == 0
            return [await each for each in asked]

    *streams, whole = asyncio.run(run())
    assert (whole.status_code, whole.json()["error"]["code"]) == (503, "not_ready")
    assert int(whole.headers["retry-after"]) > 0
    for stream in streams:
        assert stream.status_code == (200 if begun else 503)
        last = stream.text.removesuffix("\n\n").split("\n\n")[-1].removeprefix("data: ")
        assert "stopped" in json.loads(last)["error"]["message"]
    assert generator.closed == generator.calls == 3  # nothing was tried again
    assert {record.status for record in log.records} == {"not_ready"}


@pytest.mark.parametrize("stream", [False, True])
def test_many_log_probabilities_do_not_hold_up_the_loop(
    ask_body: Body, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    token = TokenLogprob("a", b"a", -0.1, (TokenLogprob("a", b"a", -0.1),) * 20)

    class Talkative(PlainGenerator):
        n_tokens = 3

        async def generate(self, request: GenerateRequest) -> AsyncIterator[AnswerPart]:
            told = (token,) * self.n_tokens
            yield AnswerPart("a", self.n_tokens, -0.1, 7, "stop", logprobs=told)

    threads: list[threading.Thread] = []
    really = replies._logprobs

    def noting(*given: Any) -> Any:
        threads.append(threading.current_thread())
        return really(*given)

    monkeypatch.setattr(replies, "_logprobs", noting)
    generator = Talkative()
    gateway, _ = make(generator=generator)
    body = ChatRequest.model_validate(ask_body(stream=stream, logprobs=True, top_logprobs=20))

    async def ask() -> int:
        if not stream:
            reply = await gateway.complete(body, Call("r"))
            return len(reply.choices[0].logprobs.content)  # type: ignore[union-attr]
        said = [choice.logprobs async for chunk in gateway.stream(body, Call("r"))
                for choice in chunk.choices]  # fmt: skip
        return sum(len(each.content) for each in said if each is not None)

    for generator.n_tokens in (3, 2000):
        threads.clear()
        assert asyncio.run(ask()) == generator.n_tokens
        at_once = {thread is threading.main_thread() for thread in threads}
        assert at_once == {generator.n_tokens == 3}


def test_route_needs_no_generator(ask_body: Body) -> None:
    class NoGenerator:
        """Any use of it is an error."""

    gateway, _ = make(generator=NoGenerator())
    reply = asyncio.run(gateway.route(ChatRequest.model_validate(ask_body(n=3)), Call("r")))
    assert reply.usage.prompt_tokens_details.image_tokens == reply.routing.visual_tokens == 36


def test_every_request_leaves_a_record_and_no_words(ask_body: Body) -> None:
    gateway, log = make()

    async def run() -> None:
        async with client(gateway) as http:
            await http.post("/v1/chat/completions", json=ask_body("secret?"))
            await http.post("/v1/chat/completions", json=ask_body("secret?", store=True))
            json_type = {"content-type": "application/json"}
            await http.post("/v1/chat/completions", content=b"secret", headers=json_type)

    asyncio.run(run())
    good, refused, unreadable = log.records
    assert (good.status, good.scale, good.reason, good.router_version) == (
        "ok", 36, "predicted", "v",
    )  # fmt: skip
    assert good.p_suffices == (0.5,) * 5
    assert good.prompt_tokens == 7 + 36
    assert 0 < good.confidence < 1  # type: ignore[operator]
    assert good.total_ms > 0
    assert good.audited
    assert (refused.status, unreadable.status) == ("unsupported_parameter", "invalid_json")
    assert not any("secret" in repr(record) for record in log.records)


def test_keys_are_asked_for_when_there_are_any(
    ask_body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("M3_API_KEYS", "first, second")
    gateway, _ = make()

    async def run() -> None:
        async with client(gateway) as http:
            url = "/v1/chat/completions"
            for header in ({}, {"authorization": "Bearer third"}, {"authorization": "second"}):
                reply = await http.post(url, json=ask_body(), headers=header)
                assert reply.status_code == 401
                assert reply.headers["www-authenticate"] == "Bearer"
                assert reply.json()["error"]["code"] == "invalid_api_key"
            good = {"authorization": "Bearer second"}
            assert (await http.post(url, json=ask_body(), headers=good)).status_code == 200
            assert (await http.get("/v1/models")).status_code == 401
            assert (await http.get("/health")).status_code == 200

    asyncio.run(run())


def test_a_silent_worker_shows_in_health() -> None:
    generator = PlainGenerator()
    gateway, _ = make(generator=generator)

    async def health() -> httpx2.Response:
        async with client(gateway) as http:
            return await http.get("/health")

    assert asyncio.run(health()).status_code == 200
    generator.heartbeat_s = 99.0
    assert asyncio.run(health()).json()["status"] == "stalled"
    generator.heartbeat_s, generator.alive = 0.0, False
    assert asyncio.run(health()).json()["status"] == "stalled"

    class Gone(PlainEncoder):
        async def status(self) -> EncoderStatus:
            raise NotReady()

    gateway, _ = make(Gone(), PlainGenerator())
    reply = asyncio.run(health())
    assert (reply.status_code, reply.json()["status"]) == (503, "unavailable")
    assert reply.json()["error"]["message"].endswith(".")


def test_ready_is_whether_a_request_would_be_answered() -> None:
    class Replicas(PlainGenerator):
        """The replicas of a deployment, asked in turn; an exception is what asking one raises."""

        states: itertools.cycle[GeneratorStatus | Exception]

        async def status(self) -> GeneratorStatus:
            state = next(self.states)
            if isinstance(state, Exception):
                raise state
            return state

    well, dead = GeneratorStatus(0, 0, 0, 0.0), GeneratorStatus(0, 0, 0, 0.0, alive=False)
    silent = GeneratorStatus(1, 0, 0, 99.0)
    generator = Replicas()
    gateway, _ = make(generator=generator, retries=1)

    async def probed() -> list[int]:
        async with client(gateway) as http:
            paths = ("/health/live", "/health/ready")
            return [(await http.get(path)).status_code for path in paths]

    cases: list[tuple[list[GeneratorStatus | Exception], int]] = [
        ([well], 200), ([dead, well], 200), ([ReplicaDied(), well], 200), ([QueueFull()], 200),
        ([dead], 503), ([silent], 503), ([NotReady()], 503), ([dead, ReplicaDied()], 503),
    ]  # fmt: skip
    for states, code in cases:
        generator.states = itertools.cycle(states)
        assert asyncio.run(probed()) == [200, code], states


def test_surprises_become_errors_with_the_request_id(ask_body: Body) -> None:
    class Broken(PlainEncoder):
        async def encode_and_route(self, request: EncodeRequest) -> Encoded:
            raise KeyError("secret detail")

    gateway, log = make(Broken())

    async def run() -> httpx2.Response:
        async with client(gateway) as http:
            headers = {"x-request-id": "mine-1"}
            return await http.post("/v1/chat/completions", json=ask_body(), headers=headers)

    reply = asyncio.run(run())
    assert (reply.status_code, reply.headers["x-request-id"]) == (500, "mine-1")
    assert "mine-1" in reply.json()["error"]["message"]
    assert "secret" not in reply.text
    assert log.records[0].status == "internal_error"


def test_hostile_request_ids_are_replaced(ask_body: Body) -> None:
    gateway, log = make()

    async def run() -> str:
        async with client(gateway) as http:
            reply = await http.post(
                "/v1/chat/completions", json=ask_body(), headers={"x-request-id": "a b<script>"}
            )
            return reply.headers["x-request-id"]

    name = asyncio.run(run())
    assert len(name) == 32
    assert log.records[0].request_id == name
