"""The gateway between two small real stages: retries, limits, drain, a record of every request."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from router.actions import Reading
from router.decision import Reason, RoutingDecision
from router.records import DecisionRecord
from serve.errors import BadRequest, DiedAgain, NotReady, QueueFull, ReplicaDied, TimedOut
from serve.gateway import replies
from serve.gateway.call import Call
from serve.gateway.gateway import Gateway
from serve.gateway.request_log import RequestLog
from serve.log.decisions import LogCounts
from serve.metrics import LocalMetrics
from serve.protocol import ChatCompletion, ChatRequest
from serve.settings import ServeSettings
from serve.stages.checkpoint import ModelCard, load_checkpoint
from serve.stages.generator import Generator
from serve.stages.messages import (
    AnswerPart,
    Encoded,
    EncodeRequest,
    EncoderStatus,
    GenerateRequest,
    GeneratorStatus,
    TokenLogprob,
)
from serve.tenants.budgets import Budget
from serve.web.api import create_api

SCALES = (1, 9, 36, 144, 576)
Body = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def tries_follow_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.gateway.gateway.RETRY_WAIT_S", 0.005)


class PlainEncoder:
    """Decides 36 for everything; fails as often as told."""

    def __init__(self, deaths: int = 0) -> None:
        self.calls, self.deaths = 0, deaths

    async def encode_and_route(self, request: EncodeRequest) -> Encoded:
        self.calls += 1
        if self.calls <= self.deaths:
            raise ReplicaDied()
        n = len(request.pictures)
        decision = RoutingDecision(
            36, 36 * n, Reason.predicted, dict.fromkeys(SCALES, 0.5), router_version="v",
            readings=(Reading.uniform(36),) * n,
        )  # fmt: skip
        tokens = tuple(np.zeros((36, 4), np.float16) for _ in range(n))
        return Encoded(tuple(f"id{i}" for i in range(n)), tokens, decision, 1.0)

    async def status(self) -> EncoderStatus:
        return EncoderStatus("v", True, 0, 0.0)


class PlainGenerator:
    """Says "a b c", token by token or at once; fails before or in the middle as often as told."""

    def __init__(
        self,
        deaths: int = 0,
        at: int = 0,
        wait_s: float = 0.0,
        error: type[Exception] = ReplicaDied,
    ) -> None:
        self.calls, self.deaths, self.at, self.wait_s = 0, deaths, at, wait_s
        self.error = error
        self.closed = 0
        self.heartbeat_s, self.alive = 0.0, True

    async def generate(self, request: GenerateRequest) -> AsyncIterator[AnswerPart]:
        self.calls += 1
        dies = self.calls <= self.deaths
        words = ["a", " b", " c"]
        try:
            if request.tokens_per_part is None:
                words = ["".join(words)]
            for number, word in enumerate(words):
                await asyncio.sleep(self.wait_s)
                if dies and number == self.at:
                    raise self.error()
                end = "stop" if number == len(words) - 1 else None
                yield AnswerPart(word, 3 // len(words), -0.1, 7, end)
        finally:
            self.closed += 1

    async def status(self) -> GeneratorStatus:
        return GeneratorStatus(0, 0, 0, self.heartbeat_s, alive=self.alive)


class ListLog:
    """A decision log in memory."""

    secret = b"of a folder"

    def __init__(self) -> None:
        self.records: list[DecisionRecord] = []
        self.counts = LogCounts()

    def append(self, record: DecisionRecord, pictures: Any = ()) -> int:
        self.records.append(record)
        return 0

    def flush(self) -> bool:
        return True

    def close(self) -> None:
        pass


def make(encoder: Any = None, generator: Any = None, **settings: Any) -> tuple[Gateway, ListLog]:
    log, card = ListLog(), ModelCard("tiny", SCALES)
    wanted = ServeSettings(registry=None, **settings)
    request_log = RequestLog(log, wanted, SCALES)  # type: ignore[arg-type]
    stages = encoder or PlainEncoder(), generator or PlainGenerator()
    gateway = Gateway(*stages, card, wanted, LocalMetrics(), request_log)
    return gateway, log


def client(gateway: Gateway) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=create_api(gateway)), base_url="http://localhost"
    )


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


def test_a_full_service_says_when_to_come_back(ask_body: Body) -> None:
    gateway, _ = make(generator=PlainGenerator(wait_s=0.05), max_inflight_requests=2)

    async def run() -> list[httpx2.Response]:
        async with client(gateway) as http:
            url = "/v1/chat/completions"
            posts = (http.post(url, json=ask_body(stream=i % 2 == 0)) for i in range(5))
            first = await asyncio.gather(*posts)
            return [*first, await http.post(url, json=ask_body())]

    replies = asyncio.run(run())
    codes = sorted(reply.status_code for reply in replies[:-1])
    assert codes == [200, 200, 429, 429, 429]
    full = next(reply for reply in replies if reply.status_code == 429)
    assert full.json()["error"]["code"] == "queue_full"
    assert replies[-1].status_code == 200  # places are given back, streams included


def test_those_who_are_refused_together_come_back_apart(ask_body: Body) -> None:
    gateway, _ = make(max_inflight_bytes=1024)

    async def run() -> set[str]:
        async with client(gateway) as http:
            url, body = "/v1/chat/completions", ask_body("what " * 300)
            return {(await http.post(url, json=body)).headers["retry-after"] for _ in range(60)}

    assert asyncio.run(run()) == {"1", "2", "3"}  # one is missing once in ten thousand million runs


def test_bytes_in_flight_are_limited() -> None:
    gateway, _ = make(max_inflight_bytes=2000)
    with (
        gateway.admission.admitted(1500),
        pytest.raises(QueueFull),
        gateway.admission.admitted(600),
    ):
        pass
    with gateway.admission.admitted(600):
        pass


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


def test_a_caller_who_leaves_stops_the_generation(ask_body: Body) -> None:
    generator = PlainGenerator(wait_s=0.01)
    gateway, log = make(generator=generator)

    async def leave_stream() -> None:
        stream = gateway.stream(ChatRequest.model_validate(ask_body(stream=True)), Call("r"))
        await anext(stream)
        await stream.aclose()

    asyncio.run(leave_stream())
    assert generator.closed == 1
    generator.wait_s = 60.0  # longer than the test would wait

    async def leave_request() -> None:
        app = create_api(gateway)
        body = json.dumps(ask_body()).encode()
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            if not sent:
                sent.append("body")
                return {"type": "http.request", "body": body, "more_body": False}
            await asyncio.sleep(0.05)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
            "path": "/v1/chat/completions", "raw_path": b"", "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
            "scheme": "http", "server": ("test", 80), "client": ("test", 1), "root_path": "",
        }  # fmt: skip
        await asyncio.wait_for(app(scope, receive, send), 30)

    asyncio.run(leave_request())
    assert generator.closed == 2
    assert [record.status for record in log.records] == ["cancelled", "cancelled"]


def test_slow_requests_end_with_a_sentence(ask_body: Body) -> None:
    gateway, log = make(generator=PlainGenerator(wait_s=5), request_timeout_s=0.1)

    async def run() -> httpx2.Response:
        async with client(gateway) as http:
            return await http.post("/v1/chat/completions", json=ask_body())

    reply = asyncio.run(run())
    assert (reply.status_code, reply.json()["error"]["code"]) == (408, "timeout")
    assert log.records[0].status == "timeout"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("theirs", "ours_s", "says"),
    [("0.1", 60.0, "0.1 s of its timeout header"), ("60", 0.1, "than 0.1 s. Ask")],
)
def test_the_shorter_limit_holds_and_is_named(
    ask_body: Body, stream: bool, theirs: str, ours_s: float, says: str
) -> None:
    generator = PlainGenerator(wait_s=5)
    gateway, log = make(generator=generator, request_timeout_s=ours_s)

    async def run() -> httpx2.Response:
        async with client(gateway) as http:
            said = {"timeout": theirs}
            url = "/v1/chat/completions"
            return await http.post(url, json=ask_body(stream=stream), headers=said)

    reply = asyncio.run(run())
    assert (reply.status_code, reply.json()["error"]["code"]) == (408, "timeout")
    assert says in reply.json()["error"]["message"]
    assert log.records[0].status == "timeout"
    assert generator.closed == 1


def test_what_is_late_already_is_not_begun(ask_body: Body) -> None:
    encoder, generator = PlainEncoder(), PlainGenerator()
    gateway, _ = make(encoder, generator)
    call = Call("r", timeout_s=1.0, arrived=time.perf_counter() - 2.0)
    with pytest.raises(TimedOut):
        asyncio.run(gateway.complete(ChatRequest.model_validate(ask_body()), call))
    assert (encoder.calls, generator.calls) == (0, 0)


@pytest.mark.parametrize("said", ["0", "-1", "nan", "inf", "5s", "", "1,2"])
def test_a_timeout_that_is_no_number_of_seconds_is_refused_by_name(
    ask_body: Body, said: str
) -> None:
    gateway, log = make()

    async def run() -> httpx2.Response:
        async with client(gateway) as http:
            headers = {"timeout": said}
            return await http.post("/v1/chat/completions", json=ask_body(), headers=headers)

    reply = asyncio.run(run())
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "timeout")
    assert [record.status for record in log.records] == ["invalid_value"]


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
