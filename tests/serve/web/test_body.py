"""Bodies of requests: their type, coding and size, how long they take, what they count as."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

import httpx2
import pytest
from pydantic import ValidationError

from router.log import read_log
from serve.web.body import parse_body, read_body

from .conftest import is_envelope

URL = "/v1/chat/completions"


def test_an_upload_that_is_broken_off_is_no_error_of_the_service(
    running: Any, caplog: pytest.LogCaptureFixture
) -> None:
    address = httpx2.URL(running.url)
    log = running.service.gateway.log
    written: list[str] = []

    def seen() -> None:
        log._log.flush()
        rows = read_log(running.log_dir).decisions.to_pylist()
        written[:] = [row["status"] for row in rows if row["request_id"] == "broken-off"]

    with socket.create_connection((address.host, address.port)) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-request-id: broken-off\r\n"
            b"content-type: application/json\r\ncontent-length: 5000\r\n\r\n{"
        )
    deadline = time.monotonic() + 20
    while not written:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        seen()
    assert written == ["cancelled"]
    assert not [each for each in caplog.records if each.levelname == "ERROR"], caplog.text


@pytest.mark.parametrize(
    "path",
    ["/health", "/health/live", "/health/ready", "/v1/models", "/", "/metrics", "/openapi.json",
     "/pictures/scene-00.png"],
)  # fmt: skip
def test_head_is_get_without_a_body(http: httpx2.Client, path: str) -> None:
    got, head = http.get(path), http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json"]
)
def test_a_body_must_say_that_it_is_json(http: httpx2.Client, ask_body, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    reply = http.post(URL, content=json.dumps(ask_body()).encode(), headers=headers)
    assert "application/json" in is_envelope(reply, 415, "unsupported_media_type")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/problem+json"])
def test_json_may_say_more(http: httpx2.Client, ask_body, kind: str) -> None:
    content = json.dumps(ask_body()).encode()
    assert http.post(URL, content=content, headers={"content-type": kind}).status_code == 200


@pytest.mark.parametrize("coding", ["gzip", "zstd", "br", "gzip, identity"])
def test_compressed_bodies_are_refused_by_that_name(http: httpx2.Client, ask_body, coding) -> None:
    content = gzip.compress(json.dumps(ask_body()).encode())
    headers = {"content-type": "application/json", "content-encoding": coding}
    reply = http.post(URL, content=content, headers=headers)
    assert "Content-Encoding" in is_envelope(reply, 415, "unsupported_media_type")
    assert reply.headers["accept-encoding"] == "identity"


def test_many_values_are_refused_before_they_are_parsed(http: httpx2.Client) -> None:
    for inner in (b"0," * 400_000 + b"0", b"[" * 100_001 + b"]" * 100_001):
        raw = b'{"messages":[' + inner + b"]}"
        reply = http.post(URL, content=raw, headers={"content-type": "application/json"})
        is_envelope(reply, 400, "too_many_values")


@pytest.mark.parametrize(
    "raw",
    [
        b'{"messages":[' + b"0," * 90_000 + b"0]}",
        b'{"messages":[{"role":"user","content":[' + b"0," * 90_000 + b"0]}]}",
    ],
)
def test_validation_ends_at_the_first_mistake(raw: bytes) -> None:
    """90,000 wrong messages or parts make a handful of complaints, not 90,000."""
    from serve.protocol import ChatRequest

    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate_json(raw)
    assert caught.value.error_count() <= 3  # of one place; content may be of two types
    with pytest.raises(Exception, match=r"messages\.0") as told:
        asyncio.run(parse_body(raw, ChatRequest))
    assert told.value.status == 400


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "what is this?", "cache_control": {"type": "ephemeral"}},
        {"type": "image_url", "image_url": {"url": "data:,"}, "cache_control": {"type": "x"}},
    ],
)
def test_an_extra_key_in_a_part_is_named_itself(http: httpx2.Client, part) -> None:
    reply = http.post(URL, json={"messages": [{"role": "user", "content": [part]}]})
    error = reply.json()["error"]
    assert error["param"] == "messages.0.content.0.cache_control"
    assert "Remove it" in error["message"]


def test_a_sender_of_too_much_gets_to_read_why(running: Any) -> None:
    """Without a content length, and still sending when the limit is passed."""
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as caller:
        head = (
            f"POST {URL} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
            "transfer-encoding: chunked\r\n\r\n"
        )
        caller.sendall(head.encode())
        piece = b" " * 100_000
        for _ in range(80):  # 8 MB where 3 are allowed
            caller.sendall(b"%x\r\n" % len(piece) + piece + b"\r\n")
        caller.sendall(b"0\r\n\r\n")
        reply = caller.recv(65536)
    assert reply.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"request_too_large"' in reply.replace(b": ", b":")


def test_a_body_that_only_trickles_is_given_up() -> None:
    """Never idle for long, and never done: the deadline of the whole body ends it."""

    class Trickling:
        def __init__(self) -> None:
            self.headers: dict[str, str] = {}
            self.pieces = 0

        async def stream(self) -> Any:
            while self.pieces < 1_000:
                self.pieces += 1
                yield b" "
                await asyncio.sleep(0.01)

    caller, taken = Trickling(), list[int]()
    with pytest.raises(Exception, match=r"did not arrive within 0\.1 s") as caught:
        asyncio.run(read_body(caller, 10_000, 0.1, taken.append))  # type: ignore[arg-type]
    assert sum(taken) == caller.pieces
    assert caught.value.status == 408
    assert 0 < caller.pieces < 1_000


def test_a_body_that_pauses_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pausing:
        headers: ClassVar[dict[str, str]] = {}

        async def stream(self) -> Any:
            yield b"{"
            await asyncio.Event().wait()

    monkeypatch.setattr("serve.web.body.IDLE_S", 0.01)
    with pytest.raises(Exception, match=r"or paused for 0\.01 s") as caught:
        asyncio.run(read_body(Pausing(), 1000, 3600.0, print))  # type: ignore[arg-type]
    assert caught.value.status == 408


def test_bodies_are_counted_before_they_are_read(running: Any) -> None:
    from serve.errors import QueueFull

    gateway = running.service.gateway
    limit = gateway.settings.max_inflight_bytes
    with gateway.admission.reading(limit - 10):
        with gateway.admission.reading(10):
            pass
        with pytest.raises(QueueFull), gateway.admission.reading(11):
            pass
    with gateway.admission.reading(limit):
        pass


def test_a_body_counts_as_it_comes_whatever_it_announces(running: Any) -> None:
    from serve.errors import QueueFull

    gateway = running.service.gateway
    limit = gateway.settings.max_inflight_bytes
    with ExitStack() as held:
        half_sent = [held.enter_context(gateway.admission.reading(0, limit)) for _ in range(200)]
        half_sent[0](limit - 10)
        with pytest.raises(QueueFull):
            held.enter_context(gateway.admission.reading(0, 11))
        half_sent[1](10)
        with pytest.raises(QueueFull):
            half_sent[2](1)
        half_sent[0](-1)
        half_sent[2](1)
    with gateway.admission.reading(limit):
        pass


@pytest.mark.parametrize("announces", [True, False])
def test_who_is_refused_while_sending_reads_why(running: Any, announces: bool) -> None:
    gateway = running.service.gateway
    body = b"[" + b" " * 900_000 + b"]"

    def pieces() -> Iterator[bytes]:
        yield from (body[start : start + 50_000] for start in range(0, len(body), 50_000))

    content = body if announces else pieces()
    headers = {"content-type": "application/json"}
    with gateway.admission.reading(gateway.settings.max_inflight_bytes - 300_000):
        reply = httpx2.post(running.url + URL, content=content, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "queue_full")
    assert httpx2.post(running.url + URL, content=body, headers=headers).status_code == 400
