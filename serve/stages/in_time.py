"""What is waited for as long as the caller still waits: who is late is not begun.

Knows seconds and awaitables; knows nothing of what is done. Stages on other machines get seconds
that are left, not a time of day, so that no two clocks need to agree.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from serve.errors import TimedOut

Result = TypeVar("Result")
TOO_LATE = "The request's time was over before its turn came. Try again, or give it more time."


async def in_time(
    work: Awaitable[Result], left_s: float | None, too_late: str = TOO_LATE
) -> Result:
    """Return what ``work`` returns.

    Args:
        work: not begun where no time is left, cancelled when it is over.
        left_s: None waits for ever.
        too_late: what the caller is told.

    Raises:
        TimedOut: the time is over.
    """
    if left_s is not None and left_s <= 0.0:
        if (close := getattr(work, "close", None)) is not None:
            close()  # a coroutine that is never begun
        raise TimedOut(too_late)
    try:
        async with asyncio.timeout(left_s):
            return await work
    except TimeoutError as error:
        raise TimedOut(too_late) from error
