"""The asyncio client: `serve.client` with await.

The same requests, values, errors and retries, from the same functions; only the waiting differs.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any, Self, Unpack

import httpx2

from serve.client.connection import connect
from serve.client.errors import APIError, Tries, connection_error
from serve.client.wire import (
    CHAT,
    DEFAULT_URL,
    FEEDBACK,
    ROUTE,
    Answer,
    AskOptions,
    Pictures,
    Route,
    StreamedAnswer,
    chat_body,
    feedback_body,
    parse_answer,
    parse_health,
    parse_route,
)


class AsyncM3Client:
    """`M3Client` for asyncio: the same arguments, answers, errors and retries."""

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        timeout: float = 60.0,
        max_retries: int = 2,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self._http, self._proxy = connect(httpx2.AsyncClient, base_url, api_key, timeout, transport)
        self.max_retries = max_retries

    async def ask(self, picture: Pictures, question: str, **options: Unpack[AskOptions]) -> Answer:
        """Return the answer to one question; see `M3Client.ask`."""
        started = time.perf_counter()
        body = await asyncio.to_thread(chat_body, picture, question, options)  # reads, encodes
        reply = await self._send("POST", CHAT, body)
        return parse_answer(reply.json(), reply.headers, started)

    def stream(
        self, picture: Pictures, question: str, **options: Unpack[AskOptions]
    ) -> AsyncAnswerStream:
        """Return the answer as an async iterator of pieces; see `M3Client.stream`."""
        body = chat_body(picture, question, options, stream=True)
        return AsyncAnswerStream(self._http, body, Tries(self.max_retries, self._proxy))

    async def route(self, picture: Pictures, question: str, **options: Unpack[AskOptions]) -> Route:
        """Return the decision for a question without having it answered."""
        body = await asyncio.to_thread(chat_body, picture, question, options)
        return parse_route((await self._send("POST", ROUTE, body)).json())

    async def feedback(
        self,
        request_id: Answer | str,
        *,
        reference: str | None = None,
        score: float | None = None,
    ) -> None:
        """Record the right answer, or a score in [0, 1], for an answer given earlier.

        Args:
            request_id: the answer, or its ``reply_id``; its ``request_id`` is known for a while to
                the gateway that gave the answer, and to no other.
            reference: the right answer.
            score: of the given one.
        """
        await self._send("POST", FEEDBACK, feedback_body(request_id, reference, score))

    async def health(self) -> dict[str, Any]:
        """Return what /health says, without retries; its ``status`` is "ok" when all is well."""
        try:
            reply = await self._http.get("/health")
        except httpx2.TransportError as broken:
            raise connection_error(broken, self._proxy) from broken
        return parse_health(reply.status_code, reply.content, reply.headers)

    async def models(self) -> list[str]:
        """Return the model ids: ``m3-auto`` and one pinned id per scale."""
        return [model["id"] for model in (await self._send("GET", "/v1/models")).json()["data"]]

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _send(self, method: str, path: str, body: object = None) -> httpx2.Response:
        tries = Tries(self.max_retries, self._proxy)
        while True:
            try:
                reply = await self._http.request(method, path, json=body)
                if reply.is_success:
                    return reply
                wait_s = tries.after_reply(reply.status_code, reply.content, reply.headers)
            except httpx2.TransportError as broken:
                wait_s = tries.after_break(broken)
            await asyncio.sleep(wait_s)


class AsyncAnswerStream:
    """`AnswerStream` for ``async for`` and ``async with``."""

    def __init__(self, http: httpx2.AsyncClient, body: object, tries: Tries) -> None:
        self._pieces = self._receive(http, body, tries)
        self._answer: Answer | None = None

    @property
    def answer(self) -> Answer:
        """The whole answer, once every piece has been taken."""
        if self._answer is None:
            raise APIError("the answer is not complete: iterate over the stream first")
        return self._answer

    async def _receive(
        self, http: httpx2.AsyncClient, body: object, tries: Tries
    ) -> AsyncGenerator[str, None]:
        started, parts = time.perf_counter(), StreamedAnswer()
        while True:
            try:
                async with http.stream("POST", CHAT, json=body) as reply:
                    if reply.is_success:
                        async for event in httpx2.EventSource(reply):
                            if piece := parts.feed(event.data):
                                yield piece
                        self._answer = parts.answer(reply.headers, started)
                        return
                    failure = await reply.aread()
                wait_s = tries.after_reply(reply.status_code, failure, reply.headers)
            except httpx2.TransportError as broken:
                wait_s = tries.after_break(broken, begun=parts.begun)
            await asyncio.sleep(wait_s)

    def __aiter__(self) -> AsyncGenerator[str, None]:
        return self._pieces

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pieces.aclose()
