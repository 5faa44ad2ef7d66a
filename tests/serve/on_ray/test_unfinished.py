"""Replies that Ray's proxy leaves unfinished are finished: behind uvicorn, and for the SDK."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
import openai
import pytest
import uvicorn
from ray._common.utils import import_attr
from ray.serve._private.http_util import _apply_middlewares
from starlette.types import Message, Receive, Scope, Send

from serve.on_ray.headers import IMPORT_PATH

CHUNK = {
    "id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
    "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}],
}  # fmt: skip


def start(kind: bytes) -> Message:
    return {"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]}


def body(text: str, *, more: bool) -> Message:
    return {"type": "http.response.body", "body": text.encode(), "more_body": more}


@contextmanager
def listening(messages: list[Message]) -> Iterator[str]:
    """A proxy whose gateway says so much of a reply and no more; yields its address."""

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            await send(message)

    app = _apply_middlewares(proxy, import_attr(IMPORT_PATH)())
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as here:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[here])))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{here.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def test_no_reply_at_all_becomes_a_503_that_says_what_to_do() -> None:
    with listening([]) as url:
        name = {"x-request-id": "mine-1"}
        reply = httpx2.post(f"{url}/v1/chat/completions", json={}, headers=name)
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "replica_died")
    assert int(reply.headers["retry-after"]) > 0
    assert reply.headers.get_list("x-request-id") == ["mine-1"]


def test_a_stream_that_breaks_off_says_so() -> None:
    begun = [start(b"text/event-stream; charset=utf-8"),
             body(f"data: {json.dumps(CHUNK)}\n\n", more=True)]  # fmt: skip
    with (
        listening(begun) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as sdk,
    ):
        ask = [{"role": "user", "content": "x"}]
        chunks = sdk.chat.completions.create(model="m", messages=ask, stream=True)  # type: ignore[call-overload]
        assert next(chunks).choices[0].delta.content == "a"
        with pytest.raises(openai.APIError, match="gateway"):
            next(chunks)


@pytest.mark.parametrize("kind", [b"text/event-stream", b"application/json"])
def test_whole_replies_stay_as_they_are(kind: bytes) -> None:
    with listening([start(kind), body("data: [DONE]", more=True), body("", more=False)]) as url:
        assert httpx2.get(url).text == "data: [DONE]"


def test_another_reply_that_breaks_off_stays_broken() -> None:
    cut = [start(b"application/json"), body('{"a":', more=True)]
    with listening(cut) as url, pytest.raises(httpx2.RemoteProtocolError):
        httpx2.get(url)
