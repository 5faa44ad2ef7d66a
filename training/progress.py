"""How far a long piece of work has come, told to whoever shows it.

Knows counts and the name of what is being done now; does not know bars or terminals.
"""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]  # done, total, what is being done now


def unseen(done: int, total: int, now: str) -> None:
    """Show nothing: the progress of a call that nobody watches."""


class Steps:
    """Counts the steps of one piece of work and tells of each as it begins.

    Args:
        progress: called with (done, total, now).
        total: steps in all.
    """

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def begin(self, now: str) -> None:
        """Tell of the next step; the one before it is done."""
        self._progress(self._done, self._total, now)
        self._done += 1

    def skip(self, count: int) -> None:
        """Leave out planned steps that turned out not to be needed."""
        self._done += count

    def finish(self) -> None:
        """Tell that nothing is left."""
        self._progress(self._total, self._total, "")
