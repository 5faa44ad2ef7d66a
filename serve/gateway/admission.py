"""How many requests and bytes a gateway holds at once, and whether it takes any more.

Knows counts, waits and the settings' bounds; knows nothing of what requests ask.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serve.errors import NotReady, QueueFull
from serve.gateway.pressure import Pressure
from serve.metrics import Metrics
from serve.settings import ServeSettings

LOOK_AGAIN_S = 1.0
LONGEST_RETRY_S = 30
# Bodies that are being read, of each request that may be admitted: one costs its connection and
# the bytes that have come, which are counted by themselves. Slow senders must not shut others out.
READERS = 8


class Admission:
    """Counts requests in and out. For one event loop.

    Args:
        settings: of the service.
        metrics: told how many there are, and how far the price may rise.
    """

    def __init__(self, settings: ServeSettings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._reading, self._bytes = 0, 0
        self.inflight, self.draining = 0, False
        self._pressure = Pressure(settings.overload.max_wait_s, settings.max_inflight_requests)
        self._looks_again = False

    @contextmanager
    def reading(
        self, n_bytes: int, announced: int = 0, *, is_work: bool = True
    ) -> Iterator[Callable[[int], None]]:
        """Count a body in while it is being read; the request itself is admitted afterwards.

        Args:
            n_bytes: that are here already, or will be.
            announced: that the sender says will follow: there must be room for them now, but they
                count as they come, by calls of what the context gives. Who sends nothing holds
                nothing.
            is_work: whether what it asks would have to wait its turn.

        Raises:
            QueueFull: as many bodies are being read, or bytes here, as the settings allow, also by
                what the context gives; or the request would not be admitted anyway: under overload
                reading bodies is what costs.
        """
        self._refuse_if_full(self._reading // READERS, n_bytes + announced)
        if is_work:
            self._refuse_if_long()
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
    def admitted(self, n_bytes: int) -> Iterator[int]:
        """Count a request in while the context lasts; gives how many there are with it.

        Raises:
            QueueFull: as many requests, or bytes, are here as the settings allow, or it would have
                to wait too long.
            NotReady: the service is stopping.
        """
        if self.draining:
            raise NotReady("The service is stopping. Try again after the seconds in Retry-After.")
        self._refuse_if_full(self.inflight, n_bytes)
        self._refuse_if_long()
        self.inflight += 1
        self._bytes += n_bytes
        self._note()
        try:
            yield self.inflight
        finally:
            self.inflight -= 1
            self._bytes -= n_bytes
            self._note()

    @property
    def pressure(self) -> float:
        """How far the price may rise now, from 0 to 1."""
        return self._pressure.value(self.inflight)

    def begun(self, wait_s: float, together: int) -> None:
        """Take in how long an answer took to begin; see `Pressure.begun`."""
        self._pressure.begun(wait_s, together)

    async def drain(self) -> bool:
        """Take no further requests; return whether all in flight ended in time."""
        self.draining = True
        return await self.emptied(self._settings.drain_s)

    async def emptied(self, seconds: float) -> bool:
        """Return whether, within so many seconds, no request is here."""
        deadline = time.monotonic() + seconds
        while self.inflight and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return self.inflight == 0

    def _refuse_if_full(self, here: int, n_bytes: int) -> None:
        full = here >= self._settings.max_inflight_requests
        if full or self._bytes + n_bytes > self._settings.max_inflight_bytes:
            raise QueueFull(retry_after_s=self._retry_after_s())

    def _refuse_if_long(self) -> None:
        if self._pressure.refuses(self.inflight + 1):
            raise QueueFull(retry_after_s=self._retry_after_s())

    def _retry_after_s(self) -> int:
        """Return when the request would have been answered, had it been let in, in seconds."""
        expected_s = self._pressure.expected_s(self.inflight + 1)
        return min(max(1, math.ceil(expected_s)), LONGEST_RETRY_S)

    def _note(self) -> None:
        """Tell the metrics, and look again while there is pressure: nobody else may come."""
        self._metrics.gauge("m3_inflight_requests", self.inflight)
        pressure = self.pressure
        self._metrics.gauge("m3_overload_pressure", pressure)
        if not pressure:
            self._metrics.gauge("m3_price_floor", 0.0)
        elif not self._looks_again:
            self._looks_again = True
            asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look_again)

    def _look_again(self) -> None:
        self._looks_again = False
        self._note()
