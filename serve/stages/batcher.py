"""A batcher that closes a batch when the worker is free, never on a timer.

While one batch runs, the next one fills; an idle worker starts at once with what there is, oldest
first. Knows asyncio and one worker thread; knows nothing of pictures or Ray.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class DrainBatcher(Generic[Item, Result]):
    """Runs ``work`` on batches of submitted items in one thread.

    Args:
        work: takes a batch, returns one result per item in order; called in the worker thread.
        max_items: the largest batch.
        name: of the thread.
    """

    def __init__(
        self, work: Callable[[list[Item]], Sequence[Result]], max_items: int, name: str
    ) -> None:
        self._work, self._max_items = work, max_items
        self._waiting: deque[tuple[Item, asyncio.Future[Result], Callable[[], bool]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._drain: asyncio.Task[None] | None = None
        self._busy_since: float | None = None
        self._beat = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def heartbeat_s(self) -> float:
        """Seconds the worker has been silent on the batch in its hands; 0 when it has none."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - max(since, self._beat)

    def beat(self) -> None:
        """Note that the worker gets on with its batch; called by ``work``."""
        self._beat = time.monotonic()

    async def submit(self, item: Item, wanted: Callable[[], bool] = lambda: True) -> Result:
        """Return the result for one item; a cancelled wait takes the item out of the queue.

        Args:
            item: waits for its turn.
            wanted: asked when that has come; if not, the wait is cancelled.

        Raises:
            Exception: what ``work`` raised for the item's batch.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future, wanted))
        if self._drain is None or self._drain.done():
            self._drain = asyncio.create_task(self._run())
        return await future

    def close(self) -> None:
        """Let the batch in hand end and take no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next_batch():
            self._busy_since = time.monotonic()
            try:
                results = await loop.run_in_executor(
                    self._thread, self._work, [item for item, _ in batch]
                )
                if len(results) != len(batch):
                    raise RuntimeError(f"{len(results)} results for a batch of {len(batch)}")
            except Exception as error:  # each waiter gets it; the batcher goes on
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), result in zip(batch, results, strict=True):
                    if not future.done():
                        future.set_result(result)
            finally:
                self._busy_since = None

    def _next_batch(self) -> list[tuple[Item, asyncio.Future[Result]]]:
        batch: list[tuple[Item, asyncio.Future[Result]]] = []
        while self._waiting and len(batch) < self._max_items:
            item, future, wanted = self._waiting.popleft()
            if future.done():  # its caller has left
                continue
            if wanted():
                batch.append((item, future))
            else:
                future.cancel()
        return batch
