"""Whether the decisions of a canary fail more often than those of the router in force.

Requests are taken in blocks that end as soon as both arms have one in it: the difference of their
shares of failures is one bet, which cannot win in expectation while the canary's rate is at most
`ALLOWED` above the other's. Wealth starts anew with every block, so a canary that begins to fail
late is noticed as fast; the price is that this may sound for nothing, once in `PATIENCE` blocks
at most (Shiryaev and Roberts; Shin, Ramdas and Rinaldo's e-detectors). Counts requests; knows
neither routers nor metrics.
"""

from __future__ import annotations

ALLOWED = 0.01
BET = 0.9  # of what one block can lose
PATIENCE = 1e6


class Guard:
    """Takes in the requests of both arms; ``failing`` stays once it is so."""

    def __init__(self) -> None:
        self.failing = False
        self._wealth = 0.0
        self._seen = {True: [0, 0], False: [0, 0]}  # of each arm: requests, failures

    def saw(self, canary: bool, failed: bool) -> bool:
        """Return whether the canary is known to fail, this request counted.

        Args:
            canary: whether it decided.
            failed: whether the decision did.
        """
        self._seen[canary][0] += 1
        self._seen[canary][1] += failed
        (theirs, their_failures), (ours, our_failures) = self._seen[True], self._seen[False]
        if theirs and ours:
            worse = their_failures / theirs - our_failures / ours
            self._wealth = (self._wealth + 1.0) * (1.0 + BET * (worse - ALLOWED))
            self._seen = {True: [0, 0], False: [0, 0]}
            self.failing |= self._wealth >= PATIENCE
        return self.failing
