"""Callers who go away, and answers that are sent piece by piece.

Knows Starlette's responses and server-sent events; knows nothing of what is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing, suppress
from typing import Any, TypeVar, cast

from fastapi import Request
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from pydantic import BaseModel
from starlette.types import Message, Send

from serve.errors import NotReady, ServiceError
from serve.protocol import ErrorBody, ErrorReply

Reply = TypeVar("Reply")
# A connection that is full for longer holds its request's place among those admitted no more.
TAKEN_WITHIN_S = 30.0


def envelope(error: ServiceError) -> ErrorReply:
    """Return the error in OpenAI's envelope."""
    return ErrorReply(
        error=ErrorBody(message=error.message, type=error.type, param=error.param, code=error.code)
    )


async def unless_disconnected(request: Request, work: Coroutine[Any, Any, Reply]) -> Reply:
    """Return what ``work`` returns, cancelling it if the caller goes away.

    Raises:
        NotReady: the caller is gone, nobody will read it; or the work was cancelled elsewhere.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.cancelled():  # by whoever worked on it: the caller is still here and is told
            raise NotReady("The request was given up. Try again.")
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.wait({task})
        raise NotReady("The caller went away.", code="cancelled")
    finally:
        for each in (task, gone):
            each.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class EventStream(StreamingResponse):
    """Server-sent events whose source is closed when the caller goes away.

    Args:
        first: sent at once.
        rest: sent as it comes. A ServiceError becomes the last event; else [DONE] is.
        headers: of the response.
    """

    media_type = "text/event-stream"

    def __init__(
        self, first: BaseModel, rest: AsyncGenerator[BaseModel], headers: Mapping[str, str]
    ) -> None:
        unbuffered = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(_events(first, rest), headers={**headers, **unbuffered})

    async def stream_response(self, send: Send) -> None:
        """Send the events, for as long as somebody takes them."""

        async def in_time(message: Message) -> None:
            async with asyncio.timeout(TAKEN_WITHIN_S):
                await send(message)

        async with aclosing(cast(AsyncGenerator[bytes], self.body_iterator)):
            with suppress(TimeoutError):  # whoever serves this closes a reply without an end
                await super().stream_response(in_time)


async def _events(first: BaseModel, rest: AsyncGenerator[BaseModel]) -> AsyncGenerator[bytes]:
    async with aclosing(rest):
        try:
            yield _event(first)
            async for each in rest:
                yield _event(each)
        except ServiceError as error:  # the status is sent already: the error is an event
            yield _event(envelope(error))
            return
        yield format_sse_event(data_str="[DONE]")


def _event(content: BaseModel) -> bytes:
    return format_sse_event(data_str=content.model_dump_json())
