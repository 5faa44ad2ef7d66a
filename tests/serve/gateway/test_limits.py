"""Limits of a gateway: requests and bytes in flight, seconds, and callers who leave."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx2
import pytest

from serve.errors import QueueFull, TimedOut
from serve.gateway.call import Call
from serve.protocol import ChatRequest
from serve.web.api import create_api

from .conftest import Body, PlainEncoder, PlainGenerator, client, make

pytestmark = pytest.mark.usefixtures("tries_follow_at_once")


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
