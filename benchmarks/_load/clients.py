"""Closed-loop clients in a process of their own: as little work a request as a client can do.

    python benchmarks/_load/clients.py HOST PORT BODIES.json CLIENTS SECONDS

BODIES.json is a list of request bodies as text; the clients send them in turn, each once where
SECONDS is 0. Prints one line of JSON: latencies and times to the first part of an answer in
seconds, and statuses.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Seen:
    """What the clients saw."""

    latency_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wall_s: float = 0.0


async def one_client(
    host: str, port: int, bodies: Iterator[bytes], until: float, seen: Seen
) -> None:
    """Send one request after another over one connection."""
    reader, writer = await asyncio.open_connection(host, port, limit=2**22)
    for body in bodies:
        if time.perf_counter() >= until:
            break
        began = time.perf_counter()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
        )
        writer.write(body)
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.lower().split(b"\r\n")
        first = None
        if b"transfer-encoding: chunked" in lines:
            while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
                chunk = await reader.readexactly(size + 2)
                if first is None and b'"content":"' in chunk and b'"content":""' not in chunk:
                    first = time.perf_counter() - began
            await reader.readuntil(b"\r\n")
        else:
            length = next(line for line in lines if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.split(b":")[1]))
        seen.latency_s.append(time.perf_counter() - began)
        if first is not None:
            seen.first_s.append(first)
        seen.statuses[int(head.split(b" ", 2)[1])] += 1
    writer.close()


async def load(host: str, port: int, bodies: list[str], clients: int, seconds: float) -> Seen:
    """Return what so many clients saw in so many seconds."""
    seen = Seen()
    sent = [body.encode() for body in bodies]
    turns = itertools.cycle(sent) if seconds else iter(sent)
    began = time.perf_counter()
    until = began + (seconds or 600)
    await asyncio.gather(*(one_client(host, port, turns, until, seen) for _ in range(clients)))
    seen.wall_s = time.perf_counter() - began
    return seen


if __name__ == "__main__":
    host, port, file, clients, seconds = sys.argv[1:]
    bodies = json.loads(Path(file).read_text("utf-8"))
    seen = asyncio.run(load(host, int(port), bodies, int(clients), float(seconds)))
    print(json.dumps(vars(seen)))
