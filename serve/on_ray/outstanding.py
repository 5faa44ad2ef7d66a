"""How much work a request is, and how much of it has been handed out and not come back.

One unit for all: tokens. Knows values and counts; knows neither Ray nor which replica is best.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterator
from contextlib import contextmanager

from serve.stages.messages import GenerateRequest

# Names of what a replica tells Ray's autoscaler.
OUTSTANDING, USUAL = "m3_outstanding_tokens", "m3_usual_tokens"
REMEMBERED = 32  # requests that the usual size is a mean of, about


def answer_work(request: GenerateRequest, expected: int) -> int:
    """Return a request's visual tokens and the tokens to expect of its answers, one or several.

    Callers send the largest ``max_tokens`` there is and read ten words: it says how long an answer
    may become, so no more than ``expected`` is taken for it.
    """
    visual = sum(len(tokens) for tokens in request.visual_tokens)
    return visual + request.n * min(request.max_tokens or expected, expected)


class Ledger:
    """What was sent to each replica and has not come back, as far as one sender knows."""

    def __init__(self) -> None:
        self._sent: dict[str, tuple[Hashable, int]] = {}
        self._sums: Counter[Hashable] = Counter()

    def __len__(self) -> int:
        return len(self._sent)

    def of(self, replica: Hashable) -> int:
        """Return the work that is at a replica."""
        return self._sums[replica]

    def charge(self, request: str, replica: Hashable, work: int) -> None:
        """Write a request down for a replica; for another one before, it no longer counts."""
        self.settle(request)
        self._sent[request] = replica, work
        self._sums[replica] += work

    def settle(self, request: str) -> None:
        """Strike a request out; one that is not written down changes nothing."""
        replica, work = self._sent.pop(request, (None, 0))
        self._sums[replica] -= work
        if not self._sums[replica]:
            del self._sums[replica]

    def keep_only(self, replicas: Collection[Hashable]) -> None:
        """Forget whatever was sent to others: they are gone, and so is their work."""
        for request, (replica, _) in list(self._sent.items()):
            if replica not in replicas:
                self.settle(request)


class Workload:
    """What one replica has taken on and not done, and what a request usually is."""

    def __init__(self) -> None:
        self.outstanding, self.usual, self._n = 0, 0.0, 0

    @contextmanager
    def taken(self, work: int) -> Iterator[None]:
        """Count work in while the context lasts."""
        self._n = min(self._n + 1, REMEMBERED)
        self.usual += (work - self.usual) / self._n
        self.outstanding += work
        try:
            yield
        finally:
            self.outstanding -= work

    def stats(self) -> dict[str, float]:
        """Return both for Ray, which listens to plain numbers only."""
        return {OUTSTANDING: float(self.outstanding), USUAL: float(self.usual)}
