"""How many requests and bytes a gateway holds at once, and whether it takes any more.

Knows counts and the settings' bounds; knows nothing of what requests ask.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve.errors import NotReady, QueueFull
from serve.metrics import Metrics
from serve.settings import ServeSettings

# Bodies that are being read, of each request that may be admitted: one costs its connection and
# the bytes that have come, which are counted by themselves. Slow senders must not shut others out.
READERS = 8


class Admission:
    """Counts requests in and out. For one event loop.

    Args:
        settings: of the service.
        metrics: told how many there are.
    """

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._reading, self._bytes = 0, 0
        self.inflight, self.draining = 0, False

    @contextmanager
    def reading(self, n_bytes: int, announced: int = 0) -> Iterator[Callable[[int], None]]:
        """Count a body in while it is being read; the request itself is admitted afterwards.

        Args:
            n_bytes: that are here already, or will be.
            announced: that the sender says will follow: there must be room for them now, but they
                count as they come, by calls of what the context gives. Who sends nothing holds
                nothing.

        Raises:
            QueueFull: as many bodies are being read, or bytes here, as the settings allow; also by
                what the context gives.
        """
        self._refuse_if_full(self._reading // READERS, n_bytes + announced)
        held = 0

        def take(n_more: int) -> None:  # or give back, where it is negative
            nonlocal held
            self._refuse_if_full(0, n_more)
            self._bytes += n_more
            held += n_more

        take(n_bytes)
        self._reading += 1
        try:
            yield take
        finally:
            self._reading -= 1
            self._bytes -= held

    @contextmanager
    def admitted(self, n_bytes: int) -> Iterator[None]:
        """Count a request in while the context lasts.

        Raises:
            QueueFull: as many requests, or bytes, are here as the settings allow.
            NotReady: the service is stopping.
        """
        if self.draining:
            raise NotReady("The service is stopping. Try again after the seconds in Retry-After.")
        self._refuse_if_full(self.inflight, n_bytes)
        self.inflight += 1
        self._bytes += n_bytes
        self._metrics.gauge("m3_inflight_requests", self.inflight)
        try:
            yield
        finally:
            self.inflight -= 1
            self._bytes -= n_bytes
            self._metrics.gauge("m3_inflight_requests", self.inflight)

    async def drain(self) -> bool:
        """Take no further requests; return whether all in flight ended in time."""
        self.draining = True
        deadline = time.monotonic() + self._settings.drain_s
        while self.inflight and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return self.inflight == 0

    def _refuse_if_full(self, here: int, n_bytes: int) -> None:
        full = here >= self._settings.max_inflight_requests
        if full or self._bytes + n_bytes > self._settings.max_inflight_bytes:
            raise QueueFull()
