"""What one pass reads of one request."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """Consecutive new tokens of one request: `new` of them, after `past` that lie in the pool.

    `start` is the pool row of the request's first token, `room` how many its extent holds (0: no
    more than are there after the pass).
    """

    start: int
    past: int
    new: int
    room: int = 0

    @property
    def fits(self) -> int:
        """How many tokens its extent holds."""
        return max(self.room, self.past + self.new)
