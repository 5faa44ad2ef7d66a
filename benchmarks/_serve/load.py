"""Callers in a closed loop, and what they and the machine's processes went through.

Knows HTTP, threads and CPU seconds; knows nothing of what is compared.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import httpx2
import numpy as np
import psutil
from PIL import Image

Body = dict[str, Any]
CHAT = "/v1/chat/completions"


@dataclass
class Timings:
    """Latencies of answered requests in milliseconds by kind, and how many were not answered."""

    ms: dict[str, list[float]] = field(default_factory=dict)
    failed: int = 0
    cpu_s: float = 0.0

    def add(self, other: Timings) -> None:
        """Take another run's into this."""
        for kind, ms in other.ms.items():
            self.ms.setdefault(kind, []).extend(ms)
        self.failed += other.failed
        self.cpu_s += other.cpu_s

    def report(self) -> dict[str, Any]:
        """Return percentiles by kind, and the CPU milliseconds of a request."""
        n = sum(map(len, self.ms.values()))
        kinds = {
            kind: {
                "requests": len(ms),
                **{f"p{p}_ms": round(float(np.percentile(ms, p)), 1) for p in (50, 95, 99)},
            }
            for kind, ms in sorted(self.ms.items())
        }
        return kinds | {"failed": self.failed, "cpu_ms_a_request": round(self.cpu_s * 1000 / n, 1)}


def picture_url(seed: int, size: int = 96) -> str:
    """Return the data URL of a picture of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def question(url: str, scale: int, max_tokens: int) -> Body:
    """Return a chat request about a picture at a pinned scale."""
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What is in the picture?"},
    ]
    return {
        "model": f"m3-{scale}", "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": content}],
    }  # fmt: skip


def closed_loop(
    url: str, requests: Sequence[tuple[str, Body]], callers: int, path: str = CHAT
) -> Timings:
    """Return how requests (kind, body) went that so many callers sent one after the other."""
    timings, cpu_s = Timings(), service_cpu_s()

    def send(client: httpx2.Client, kind: str, body: Body) -> None:
        started = time.perf_counter()
        answered = client.post(path, json=body).status_code == 200
        if answered:
            ms = (time.perf_counter() - started) * 1000.0
            timings.ms.setdefault(kind, []).append(ms)
        else:
            timings.failed += 1

    with httpx2.Client(base_url=url, timeout=120) as client, ThreadPoolExecutor(callers) as pool:
        list(pool.map(lambda each: send(client, *each), requests))
    timings.cpu_s = service_cpu_s() - cpu_s
    return timings


@contextmanager
def keep_asking(url: str, bodies: Sequence[Body], callers: int) -> Iterator[None]:
    """Have so many callers repeat their requests while the context lasts."""
    stop = Event()

    def repeat(body: Body) -> None:
        with httpx2.Client(base_url=url, timeout=120) as client:
            while not stop.is_set():
                client.post(CHAT, json=body)

    with ThreadPoolExecutor(callers) as pool:
        for number in range(callers):
            pool.submit(repeat, bodies[number % len(bodies)])
        try:
            yield
        finally:
            stop.set()


@contextmanager
def sampled(look: Callable[[], Any], every_s: float) -> Iterator[list[tuple[float, Any]]]:
    """Look again and again while the context lasts; gives (seconds since the start, seen)."""
    stop, seen = Event(), list[tuple[float, Any]]()
    started = time.monotonic()

    def watch() -> None:
        while not stop.is_set():
            seen.append((time.monotonic() - started, look()))
            stop.wait(every_s)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield seen
        finally:
            stop.set()
            watching.result()


def service_cpu_s() -> float:
    """Return the CPU seconds so far of every process below this one."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
