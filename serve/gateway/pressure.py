"""How much more there is to do than can be done: what the price follows, and when to refuse.

Two numbers are learnt from the answers that have begun: how long they took to begin, and that
divided by the requests that were in flight when they came. The second, times the requests in flight
now, is what a newcomer has to expect; the first keeps it honest, because one request alone takes as
long as many do together where an engine batches. Knows seconds and counts; knows nothing of
requests, prices or metrics. The clock is given.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

# Of the load at which requests are refused: the price begins to rise, and is at its dearest.
START, FULL = 0.5, 0.8
WEIGHT = 0.2  # of the newest answer
TRUST = 3.0  # nobody is expected to wait longer than so many times what was seen
MEMORY_S = 5.0  # what was seen counts for so long, or twice the longest wait, once nobody waits
RELEASE_S = 2.0  # pressure falls by this time constant,
LEAST = 0.02  # and is nothing below this: after 8 s at the latest
HOLD_S = 1.0  # from full pressure on, before anybody is refused,
RELIEF = 0.5  # unless it fell below this meanwhile


class Pressure:
    """Rises at once with the load, falls slowly: a price that flutters helps nobody.

    Args:
        max_wait_s: for an answer to begin; above it requests are to be refused.
        max_inflight: requests at once.
        clock: seconds that only grow.
    """

    def __init__(
        self, max_wait_s: float, max_inflight: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_wait_s, self._max_inflight, self._clock = max_wait_s, max_inflight, clock
        self._wait_s, self._each_s, self._seen_at = 0.0, 0.0, -math.inf
        self._value, self._at = 0.0, -math.inf
        self._full_since = math.inf

    def begun(self, wait_s: float, together: int) -> None:
        """Take in that an answer began.

        Args:
            wait_s: how long after its request came.
            together: requests in flight when it came, itself among them.
        """
        weight = 1.0 if self._is_forgotten else WEIGHT
        self._wait_s += weight * (wait_s - self._wait_s)
        self._each_s += weight * (wait_s / max(together, 1) - self._each_s)
        self._seen_at = self._clock()

    def expected_s(self, inflight: int) -> float:
        """Return how long a request has to wait that makes them so many; 0 where nothing is known.

        A service that was idle refuses nobody for what it did an hour ago.
        """
        if self._is_forgotten:
            return 0.0
        return min(self._each_s * inflight, self._wait_s * TRUST)

    def load(self, inflight: int) -> float:
        """Return the load of so many requests; at 1 no further one should be taken.

        Who is alone waits for nobody: what takes long then is the answer itself.
        """
        waits = self.expected_s(inflight) / self._max_wait_s if inflight > 1 else 0.0
        return max(waits, inflight / self._max_inflight)

    def value(self, inflight: int) -> float:
        """Return the pressure from 0 to 1 with so many requests in flight."""
        now = self._clock()
        if inflight > 1 and not self._is_forgotten:
            self._seen_at = now  # a service that stands still has not become idle
        wanted = min(max((self.load(inflight) - START) / (FULL - START), 0.0), 1.0)
        faded = self._value * math.exp(-(now - self._at) / RELEASE_S) if self._value else 0.0
        self._value, self._at = max(wanted, faded if faded >= LEAST else 0.0), now
        if self._value >= 1.0:
            self._full_since = min(self._full_since, now)
        elif self._value < RELIEF:
            self._full_since = math.inf
        return self._value

    def refuses(self, inflight: int) -> bool:
        """Return whether a request that makes them so many is to be refused.

        Only what the dearest price could not help, once that had time to show; and nobody who
        would wait for nobody else, however long an answer takes.
        """
        too_long = self.value(inflight) >= 1.0 and self.expected_s(inflight) > self._max_wait_s
        if not too_long or inflight == 1:
            return False
        return self._clock() - self._full_since >= min(HOLD_S, self._max_wait_s)

    @property
    def _is_forgotten(self) -> bool:
        return self._clock() - self._seen_at > max(MEMORY_S, 2.0 * self._max_wait_s)
