"""One request as bytes on a connection of its own, pauses included, and how it ended.

Knows sockets and HTTP's first line; knows nothing of what is sent.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

CHAT, ROUTE = "/v1/chat/completions", "/v1/route"
JSON = {"content-type": "application/json"}
# The service gives a body 60 s and a request 120 s.
HANG_S = 150.0
CLOSED, HANGS = 0, -1


@dataclass(frozen=True)
class Request:
    """What is sent.

    Attributes:
        pieces: bytes, and seconds to wait between them.
        leaves: whether the sender goes without an answer.
        is_http: False where the server may answer before the service sees it.
    """

    pieces: Iterable[bytes | float]
    leaves: bool = False
    is_http: bool = True


@dataclass(frozen=True)
class Ended:
    """How it ended: a status, or `CLOSED`, or `HANGS`; and what was wrong with the answer."""

    status: int
    seconds: float
    fault: str = ""


def post(
    path: str, body: bytes, headers: Mapping[str, str] = JSON, length: int | None = None
) -> Request:
    """Return a whole POST; ``length`` is another than the body's."""
    return Request([head("POST", path, headers, len(body) if length is None else length), body])


def head(
    method: str, path: str, headers: Mapping[str, str] = JSON, length: int | None = None
) -> bytes:
    """Return the lines before a body."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", "connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [] if length is None else [f"content-length: {length}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def send(request: Request, host: str, port: int) -> Ended:
    """Send a request; return how it ended."""
    started = time.perf_counter()
    answer = b""
    try:
        with socket.create_connection((host, port), timeout=HANG_S) as connection:
            with contextlib.suppress(ConnectionError):  # refused while sending: why can be read
                for piece in request.pieces:
                    if isinstance(piece, bytes):
                        connection.sendall(piece)
                    else:
                        time.sleep(piece)
            if not request.leaves:
                while piece := connection.recv(65_536):
                    answer += piece
    except TimeoutError:
        return Ended(HANGS, time.perf_counter() - started)
    except ConnectionError:
        pass
    status = int(answer[9:12]) if answer[9:12].isdigit() else CLOSED
    fault = _fault(request, status, answer)
    return Ended(status, time.perf_counter() - started, fault)


def _fault(request: Request, status: int, answer: bytes) -> str:
    if request.leaves:
        return ""
    if status == CLOSED:
        return "" if not request.is_http else "closed without an answer"
    if status < 400 or not request.is_http:
        return ""
    try:
        error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    except (ValueError, KeyError, TypeError):
        return f"{status} without the envelope"
    if set(error) != {"message", "type", "param", "code"} or not error["message"].endswith("."):
        return f"{status} with another envelope"
    return ""
