"""Limits on waits, which all end at once when a gateway has no more time.

Knows asyncio's timeouts; knows nothing of requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from serve.errors import NotReady
from serve.stages.in_time import in_time

Result = TypeVar("Result")


class Ending:
    """The end of a gateway's time. For one event loop; `has_come` never turns back."""

    def __init__(self) -> None:
        self.has_come = False
        self._waits: set[asyncio.Timeout] = set()

    async def or_in_time(self, work: Awaitable[Result], left_s: float, too_late: str) -> Result:
        """Return what ``work`` returns; it is cancelled when the end comes.

        Raises:
            NotReady: the end has come.
            TimedOut: the time is over, as ``too_late`` says.
        """
        try:
            async with asyncio.timeout(0.0 if self.has_come else None) as wait:
                self._waits.add(wait)
                try:
                    return await in_time(work, left_s, too_late)
                finally:
                    self._waits.discard(wait)
        except TimeoutError as error:
            raise NotReady(
                "The service stopped before the answer was complete. Ask again after a while."
            ) from error

    def come(self) -> None:
        """End every wait there is, and those to come as soon as they begin."""
        self.has_come = True
        now = asyncio.get_running_loop().time()
        for wait in self._waits:
            if not wait.expired():
                wait.reschedule(now)
