"""The blocking client.

What is sent and parsed is in `wire`, what is retried in `errors`, the way there in `connection`.
"""

from __future__ import annotations

import time
from collections.abc import Generator
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


class M3Client:
    """Asks the service about pictures.

    Failed connections and the statuses 408, 409, 429 and 5xx are tried again ``max_retries`` times,
    after 0.5 to 8 s or what Retry-After says; a stream never once its first event has arrived.
    ``timeout`` is in seconds and per try; ``transport`` replaces the network. Proxies are the
    environment's, for other machines than this one.

    Raises:
        ValueError: the API key cannot be sent.
        APIConnectionError: the proxy cannot be used.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        api_key: str | None = None,
        timeout: float = 60.0,
        max_retries: int = 2,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self._http, self._proxy = connect(httpx2.Client, base_url, api_key, timeout, transport)
        self.max_retries = max_retries

    def ask(self, picture: Pictures, question: str, **options: Unpack[AskOptions]) -> Answer:
        """Return the answer to one question about one picture, several, or none.

        Args:
            picture: path, bytes, PIL image, uint8 array or data URL; a list for several; None for a
                question about no picture.
            question: plain text.
            **options: see `AskOptions`.

        Raises:
            APIError: `serve.client.errors` draws the tree of its kinds.
        """
        started = time.perf_counter()
        reply = self._send("POST", CHAT, chat_body(picture, question, options))
        return parse_answer(reply.json(), reply.headers, started)

    def stream(
        self, picture: Pictures, question: str, **options: Unpack[AskOptions]
    ) -> AnswerStream:
        """Return the answer as an iterator of pieces; its ``answer`` is whole when it ends."""
        body = chat_body(picture, question, options, stream=True)
        return AnswerStream(self._http, body, Tries(self.max_retries, self._proxy))

    def route(self, picture: Pictures, question: str, **options: Unpack[AskOptions]) -> Route:
        """Return the decision for a question without having it answered."""
        return parse_route(self._send("POST", ROUTE, chat_body(picture, question, options)).json())

    def feedback(
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
        self._send("POST", FEEDBACK, feedback_body(request_id, reference, score))

    def health(self) -> dict[str, Any]:
        """Return what /health says, without retries; its ``status`` is "ok" when all is well."""
        try:
            reply = self._http.get("/health")
        except httpx2.TransportError as broken:
            raise connection_error(broken, self._proxy) from broken
        return parse_health(reply.status_code, reply.content, reply.headers)

    def models(self) -> list[str]:
        """Return the model ids: ``m3-auto`` and one pinned id per scale."""
        return [model["id"] for model in self._send("GET", "/v1/models").json()["data"]]

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, method: str, path: str, body: object = None) -> httpx2.Response:
        tries = Tries(self.max_retries, self._proxy)
        while True:
            try:
                reply = self._http.request(method, path, json=body)
                if reply.is_success:
                    return reply
                wait_s = tries.after_reply(reply.status_code, reply.content, reply.headers)
            except httpx2.TransportError as broken:
                wait_s = tries.after_break(broken)
            time.sleep(wait_s)


class AnswerStream:
    """Iterates over the pieces of one answer; leaving its ``with`` block early hangs up."""

    def __init__(self, http: httpx2.Client, body: object, tries: Tries) -> None:
        self._pieces = self._receive(http, body, tries)
        self._answer: Answer | None = None

    @property
    def answer(self) -> Answer:
        """The whole answer, once every piece has been taken."""
        if self._answer is None:
            raise APIError("the answer is not complete: iterate over the stream first")
        return self._answer

    def _receive(
        self, http: httpx2.Client, body: object, tries: Tries
    ) -> Generator[str, None, None]:
        started, parts = time.perf_counter(), StreamedAnswer()
        while True:
            try:
                with http.stream("POST", CHAT, json=body) as reply:
                    if reply.is_success:
                        for event in httpx2.EventSource(reply):
                            if piece := parts.feed(event.data):
                                yield piece
                        self._answer = parts.answer(reply.headers, started)
                        return
                    failure = reply.read()
                wait_s = tries.after_reply(reply.status_code, failure, reply.headers)
            except httpx2.TransportError as broken:
                wait_s = tries.after_break(broken, begun=parts.begun)
            time.sleep(wait_s)

    def __iter__(self) -> Generator[str, None, None]:
        return self._pieces

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; the service stops generating."""
        self._pieces.close()
