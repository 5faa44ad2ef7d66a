"""How many visual tokens a minute a tenant may have read: one bucket a name, and what it says.

A bucket is full at first, fills by a minute's worth in a minute, and may be in debt. What a request
reads is known when its scale is decided, before the language model has any work: it is taken off
then, whole, wherever anything is left, and refused where nothing is. So nothing has to be reserved
for the worst case, which would lock out the very traffic that the router makes cheap; a burst
exceeds the budget by the request that emptied it and by second looks of those that were let in
before; and since debt is paid first, the mean is kept exactly. Knows a clock; knows nothing of keys
or HTTP. For one event loop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from serve.errors import RateLimited

MINUTE_S = 60.0


class Budget:
    """The bucket of one tenant, at one gateway.

    Args:
        limit: visual tokens a minute.
        clock: seconds that only go forward.
    """

    def __init__(self, limit: float, clock: Callable[[], float]) -> None:
        self._limit, self._clock = limit, clock
        self._left, self._at = limit, clock()

    def be(self, limit: float) -> Budget:
        """Return this bucket with another limit; what was read before stays read."""
        if limit != self._limit:
            self._fill()
            self._limit, self._left = limit, min(self._left, limit)
        return self

    def check(self) -> None:
        """Return if anything is left.

        Raises:
            RateLimited: nothing is.
        """
        self._fill()
        if self._left <= 0:
            # A whole second at least, and a thousandth for what sums of fractions lose.
            wait_s = math.floor(-self._left / self._per_s + 1e-3) + 1
            raise RateLimited(
                f"This key may have {math.floor(self._limit):,} visual tokens a minute read here, "
                "and they are used up. Try again after the seconds in Retry-After.",
                retry_after_s=wait_s,
            )

    def take(self, visual_tokens: int) -> None:
        """Take off what will be read for a request.

        Raises:
            RateLimited: nothing is left.
        """
        self.check()
        self._left -= visual_tokens

    def owe(self, visual_tokens: int) -> None:
        """Take off what a request reads that was let in before."""
        self._left -= visual_tokens

    def give_back(self, visual_tokens: int) -> None:
        """Put back what was not read after all."""
        self._left = min(self._limit, self._left + visual_tokens)

    def headers(self) -> dict[str, str]:
        """Return the bucket's state as OpenAI's headers say it."""
        self._fill()
        missing_s = (self._limit - self._left) / self._per_s
        return {
            "x-ratelimit-limit-tokens": str(math.floor(self._limit)),
            "x-ratelimit-remaining-tokens": str(max(0, math.floor(self._left))),
            "x-ratelimit-reset-tokens": duration(missing_s),
        }

    def _fill(self) -> None:
        now = self._clock()
        come = (now - self._at) * self._per_s
        self._left, self._at = min(self._limit, self._left + come), now

    @property
    def _per_s(self) -> float:
        return self._limit / MINUTE_S


class Budgets:
    """The buckets of one gateway.

    Args:
        gateways: how many share a tenant's budget now; each enforces an even part.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        gateways: Callable[[], int] = lambda: 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._gateways, self._clock = gateways, clock
        self._by_name: dict[str, Budget] = {}

    def of(self, name: str, limit: int | None) -> Budget | None:
        """Return the bucket of a tenant; None where nothing limits it."""
        if limit is None:
            self._by_name.pop(name, None)
            return None
        here = limit / max(1, self._gateways())
        if (found := self._by_name.get(name)) is None:
            found = self._by_name[name] = Budget(here, self._clock)
        return found.be(here)


def duration(seconds: float) -> str:
    """Return a time as OpenAI's headers say it: 0s, 54ms, 8.64s, 6m0s, 1h2m0s."""
    ms = math.ceil(seconds * 1000.0 - 1e-6)
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    told = f"{ms / 1000:g}s"
    if hours:
        return f"{hours}h{minutes}m{told}"
    return f"{minutes}m{told}" if minutes else told
