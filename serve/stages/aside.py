"""Where work of some milliseconds is done: on the event loop if it is quick, in a thread if not.

Knows functions and threads; knows nothing of what is done.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Result = TypeVar("Result")


class Aside:
    """Some threads of one name."""

    def __init__(self, threads: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def done(self, quick: bool, function: Callable[..., Result], *arguments: Any) -> Result:
        """Return what the function returns; unless it is quick, from a thread."""
        if quick:
            return function(*arguments)
        run = contextvars.copy_context().run  # lines of the log name the request there too
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, run, function, *arguments)

    def close(self) -> None:
        """Begin nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
