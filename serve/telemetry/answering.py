"""When the tokens of one answer came: for the histograms, and as spans of the generator's work.

Knows times and counts; knows nothing of what was asked or answered.
"""

from __future__ import annotations

import time

from serve.metrics import Metrics
from serve.telemetry import spans


class AnswerTimes:
    """Times of an answer that is asked of an engine now."""

    def __init__(self) -> None:
        self.submitted = self.first = self.last = time.perf_counter()
        self.n_tokens = 0
        self.queued_s: float | None = None

    def token(self, queued_s: float | None) -> None:
        """Note a token that has come; the first tells how long the engine let it wait."""
        self.last = time.perf_counter()
        self.n_tokens += 1
        if self.n_tokens == 1:
            self.first, self.queued_s = self.last, queued_s

    def tell(self, metrics: Metrics, parent: str | None) -> None:
        """Put the times where they belong, once no more tokens come."""
        if not self.n_tokens:
            return
        begun = self.submitted + (self.queued_s or 0.0)
        if self.queued_s is not None:
            metrics.observe("m3_queue_latency_ms", self.queued_s * 1000.0)
            spans.past("m3.queue", parent, self.submitted, begun)
        spans.past("m3.prefill", parent, begun, self.first)
        if self.n_tokens > 1:
            between_ms = (self.last - self.first) * 1000.0 / (self.n_tokens - 1)
            metrics.observe("m3_token_latency_ms", between_ms)
            spans.past("m3.decode", parent, self.first, self.last, tokens=self.n_tokens - 1)
