"""Limits on waits, which all end at once when a gateway has no more time.

Knows asyncio's timeouts; knows nothing of requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Ending:
    """The end of a gateway's time. For one event loop; `has_come` never turns back."""

    def __init__(self) -> None:
        self.has_come = False
        self._waits: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def or_after(self, seconds: float) -> AsyncIterator[None]:
        """Cancel what the context waits for when the end comes, or after so many seconds.

        Raises:
            TimeoutError: it was cancelled for one of the two.
        """
        async with asyncio.timeout(0.0 if self.has_come else seconds) as wait:
            self._waits.add(wait)
            try:
                yield
            finally:
                self._waits.discard(wait)

    def come(self) -> None:
        """End every wait there is, and those to come as soon as they begin."""
        self.has_come = True
        now = asyncio.get_running_loop().time()
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(now)
