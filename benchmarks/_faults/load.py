"""Clients in a closed loop, and how each of their requests ended.

Knows HTTP; knows nothing of faults. Nothing is tried again, except by the openai SDK when told so.
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import numpy as np
import openai
from PIL import Image

CLIENTS = 8
KNOWN_PICTURES = 16
PAUSE_S = 0.3  # between a client's requests: two cores hold service and clients
STREAM_EVERY = 5  # of a client's requests, one is a stream
WAIT_S = 60.0
GOOD, STREAM_ENDS = ("whole",), ("whole", "error event")


@dataclass(frozen=True)
class Ended:
    """One request: "whole", "error event" (of a stream), or what else was seen."""

    stream: bool
    how: str
    started: float
    ended: float

    @property
    def failed(self) -> bool:
        """A stream may end with an error event; nothing else may end but whole."""
        return self.how not in (STREAM_ENDS if self.stream else GOOD)

    @property
    def seconds(self) -> float:
        return self.ended - self.started


class Load:
    """Clients that ask until the context ends; `ended` grows meanwhile.

    Args:
        url: of the service.
        sdk_retries: ask with the openai SDK, which tries again so often; None: with bare HTTP.
        stream_tokens: of streamed answers; the others have a sixth.
        goes_on: whether a client that is refused asks on.
    """

    def __init__(self, url: str, sdk_retries: int | None = None, stream_tokens: int = 150) -> None:
        self.url, self.ended = url, list[Ended]()
        self._stream_tokens, self._retries = stream_tokens, sdk_retries
        self._stop = threading.Event()
        self._open = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask_on, args=(n,)) for n in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def open(self) -> int:
        """Requests that are under way."""
        return self._open

    def until(self, requests: int) -> None:
        """Return once so many requests that are no streams have ended."""
        while sum(not each.stream for each in list(self.ended)) < requests:
            time.sleep(0.05)

    def _ask_on(self, number: int) -> None:
        draw = random.Random(number)
        ask = self._with_http() if self._retries is None else self._with_sdk()
        for turn in itertools.count(number):
            stream = turn % STREAM_EVERY == 0
            tokens = self._stream_tokens if stream else self._stream_tokens // 6
            known = draw.random() < 0.5
            seed = draw.randrange(KNOWN_PICTURES) if known else draw.getrandbits(40)
            body = body_of(seed, stream=stream, max_tokens=tokens)
            started = time.time()
            with self._lock:
                self._open += 1
            how = ask(body)
            with self._lock:
                self._open -= 1
            self.ended.append(Ended(stream, how, started, time.time()))
            if self._stop.is_set():
                return
            time.sleep(PAUSE_S)

    def _with_http(self) -> Callable[[dict[str, Any]], str]:
        http = httpx2.Client(base_url=self.url, timeout=WAIT_S, trust_env=False)

        def ask(body: dict[str, Any]) -> str:
            try:
                reply = http.post("/v1/chat/completions", json=body)
            except httpx2.ConnectError:
                return "refused"
            except httpx2.HTTPError as error:
                return type(error).__name__
            return outcome(reply, stream=body["stream"])

        return ask

    def _with_sdk(self) -> Callable[[dict[str, Any]], str]:
        sdk = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="any", timeout=WAIT_S, max_retries=self._retries
        )

        def ask(body: dict[str, Any]) -> str:
            try:
                reply = sdk.chat.completions.create(**body)
                if body["stream"]:
                    ends = [chunk.choices[0].finish_reason for chunk in reply if chunk.choices]
                    return "whole" if ends and ends[-1] is not None else "cut"
            except openai.APIStatusError as error:
                return str(error.status_code)
            except openai.APIConnectionError as error:
                return type(error.__cause__).__name__
            except openai.APIError:
                return "error event" if body["stream"] else "error"
            except httpx2.HTTPError:
                return "cut"
            return "whole"

        return ask


def body_of(seed: int, *, stream: bool = False, max_tokens: int = 25) -> dict[str, Any]:
    """Return a request about the picture that a seed makes."""
    url = "data:image/png;base64," + base64.b64encode(picture_of(seed)).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": f"What is in picture {seed}?"},
    ]
    messages = [{"role": "user", "content": content}]
    return {"model": "m3-auto", "messages": messages, "max_tokens": max_tokens, "stream": stream}


def picture_of(seed: int) -> bytes:
    """Return a PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def outcome(reply: httpx2.Response, *, stream: bool) -> str:
    """Return how a request ended that got a reply to its end."""
    if reply.status_code != 200:
        told = "told" if "retry-after" in reply.headers else "untold"
        return f"{reply.status_code} {told}"
    if not stream:
        return "whole" if reply.json()["choices"][0]["finish_reason"] else "cut"
    last = reply.text.rstrip().split("\n\n")[-1].removeprefix("data: ")
    if last == "[DONE]":
        return "whole"
    try:
        return "error event" if "error" in json.loads(last) else "cut"
    except json.JSONDecodeError:
        return "cut"


def counts(ended: Sequence[Ended]) -> dict[str, int]:
    """Return how many ended how, the most frequent first."""
    kinds = [f"stream: {each.how}" if each.stream else each.how for each in ended]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds), key=kinds.count, reverse=True)}
