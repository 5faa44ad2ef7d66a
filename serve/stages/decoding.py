"""Pictures decoded apart from everything else, as many pixels at once as memory is meant for.

Small pictures have threads of their own, so they never wait behind large ones; large ones are
admitted by the pixels that their headers promise. Knows asyncio, threads and pixels; knows no
models: what is done with a picture's bytes is given.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")

# A screen's worth. Decoded in tens of milliseconds and megabytes, so threads alone bound them.
SMALL_PIXELS = 2_500_000
SMALL_THREADS, LARGE_THREADS = 2, 4


class PixelBudget:
    """Admits work while its pixels stay within a bound, in order of arrival.

    Work that is larger than the whole bound goes alone. For one event loop.

    Args:
        most: pixels in flight.
    """

    def __init__(self, most: int) -> None:
        self._most, self.in_flight = most, 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, pixels: int) -> None:
        """Return once the pixels are the caller's, who must `give_back` them; a cancelled wait
        holds none.
        """
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, future))
        self._admit()
        try:
            await future
        except asyncio.CancelledError:
            if future.cancelled():
                self._admit()  # it may have been the first, with smaller ones behind it
            else:
                self.give_back(pixels)  # admitted in the moment of leaving
            raise

    def give_back(self, pixels: int) -> None:
        """Let others have the pixels."""
        self.in_flight -= pixels
        self._admit()

    def _admit(self) -> None:
        while self._waiting:
            pixels, future = self._waiting[0]
            if not future.done():
                if self.in_flight and self.in_flight + pixels > self._most:
                    return
                self.in_flight += pixels
                future.set_result(None)
            self._waiting.popleft()


class Decoder(Generic[Result]):
    """Runs ``decode`` on pictures' bytes in threads, within a budget of pixels.

    Args:
        count_pixels: what a picture's header promises; called in a thread.
        decode: called in a thread.
        max_pixels: decoded at once, pictures of at most `SMALL_PIXELS` not counted.
    """

    def __init__(
        self, count_pixels: Callable[[bytes], int], decode: Callable[[bytes], Result],
        max_pixels: int,
    ) -> None:  # fmt: skip
        self._count_pixels, self._decode = count_pixels, decode
        self.budget = PixelBudget(max_pixels)
        self._small = ThreadPoolExecutor(SMALL_THREADS, thread_name_prefix="m3-small-pictures")
        self._large = ThreadPoolExecutor(LARGE_THREADS, thread_name_prefix="m3-large-pictures")

    async def decode(self, data: bytes) -> Result:
        """Return what ``decode`` makes of the picture.

        Raises:
            Exception: what ``count_pixels`` and ``decode`` raise.
        """
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._small, self._count_pixels, data)
        if pixels <= SMALL_PIXELS:
            return await loop.run_in_executor(self._small, self._decode, data)
        await self.budget.take(pixels)
        work = self._large.submit(self._decode, data)
        # By the thread's end, not the caller's: who leaves cannot stop a decoder.
        work.add_done_callback(partial(self._give_back, loop, pixels))
        return await asyncio.wrap_future(work)

    def close(self) -> None:
        """Stop the threads."""
        for threads in (self._small, self._large):
            threads.shutdown(wait=False, cancel_futures=True)

    def _give_back(
        self, loop: asyncio.AbstractEventLoop, pixels: int, work: Future[Result]
    ) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(self.budget.give_back, pixels)


@dataclass
class _Shared(Generic[Result]):
    task: asyncio.Task[Result]
    callers: int = 0


class SharedWork(Generic[Result]):
    """One piece of work for all who ask for the same; it ends when the last of them has left."""

    def __init__(self) -> None:
        self._shared: dict[Hashable, _Shared[Result]] = {}

    async def join(self, key: Hashable, start: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Return the result of ``start()``, or of the same work that somebody has started.

        Raises:
            Exception: what the work raises, to each of its callers.
        """
        shared = self._shared.get(key)
        if shared is None:
            shared = self._shared[key] = _Shared(asyncio.create_task(start()))
        shared.callers += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.callers -= 1
            if not shared.callers:
                shared.task.cancel()  # nothing, where it is done
            if (not shared.callers or shared.task.done()) and self._shared.get(key) is shared:
                del self._shared[key]
