"""Streams whose reader stays connected and takes nothing."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from starlette.types import Message

from serve.protocol import ErrorBody
from serve.web import stream


@pytest.mark.parametrize("spec_version", ["2.0", "2.4"])  # of ASGI: Starlette sends differently
def test_a_caller_who_takes_nothing_is_given_up(
    monkeypatch: pytest.MonkeyPatch, spec_version: str
) -> None:
    monkeypatch.setattr(stream, "TAKEN_WITHIN_S", 0.05)
    sent: list[Message] = []
    closed = False

    async def rest() -> AsyncGenerator[ErrorBody]:
        nonlocal closed
        try:
            while True:
                yield ErrorBody(message="more", type="x")
        finally:
            closed = True

    async def send(message: Message) -> None:
        if len(sent) == 3:
            await asyncio.Event().wait()  # the connection's buffer is full
        sent.append(message)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def run() -> None:
        answer = stream.EventStream(ErrorBody(message="first", type="x"), rest(), {})
        scope = {"type": "http", "asgi": {"spec_version": spec_version}}
        async with asyncio.timeout(20):
            await answer(scope, receive, send)

    asyncio.run(run())
    assert closed
    assert [message["type"] for message in sent] == ["http.response.start"] + 2 * [
        "http.response.body"
    ]
