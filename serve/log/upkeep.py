"""What a log needs now and then while it is written: compaction, retention, erasures.

Knows when; what is done then is in `router.log.compaction`. Runs in a thread of its own, so that
writing goes on meanwhile.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pyarrow as pa

from router.log.compaction import compact
from router.log.faults import LogBusy
from router.log.layout import ERASED
from router.places import Place, StoredPlace

LOG = logging.getLogger(__name__)
EVERY_S = 600.0
BUSY_S = 10.0
LOOK_S = 2.0  # for pictures that were erased meanwhile
LOOK_AT_STORE_S = 60.0  # where each look costs a listing


class Upkeep:
    """Compacts a log for as long as it is written, and once more when that ends.

    Args:
        log: the folder, or its place in an object store.
        replica: whose segments are compacted at the end.
        keep_days: see `compact`.
        close_segments: leaves the writer's open segments to be compacted; returns when they are.
    """

    def __init__(
        self, log: Place, replica: str, keep_days: int | None, close_segments: Callable[[], None]
    ) -> None:
        self._log, self._replica, self._keep_days = log, replica, keep_days
        self._close_segments = close_segments
        self._ending = threading.Event()
        self._told = ""
        self._thread = threading.Thread(target=self._run, name="decision-log-upkeep", daemon=True)
        self._thread.start()

    def end(self, timeout_s: float) -> None:
        """Compact what this process wrote and stop; a disk that hangs is waited for so long."""
        self._ending.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        due, known = time.monotonic() + EVERY_S, self._erasures()
        look_s = LOOK_AT_STORE_S if isinstance(self._log, StoredPlace) else LOOK_S
        while not self._ending.wait(look_s):
            if (erased := self._erasures()) != known:
                due, known = time.monotonic(), erased
            if time.monotonic() >= due:
                self._close_segments()
                due = time.monotonic() + (EVERY_S if self._compact(None) else BUSY_S)
        self._compact(self._replica)

    def _compact(self, replica: str | None) -> bool:
        """Return whether it was this process's turn."""
        try:
            done = compact(self._log, keep_days=self._keep_days, replica=replica)
        except LogBusy as error:
            self._tell(str(error))
            return False
        except (OSError, pa.ArrowException, ValueError) as error:
            self._tell(f"cannot compact the decision log {self._log}: {error}")
            return True
        self._tell("; ".join(map(str, done.skipped)))
        return True

    def _tell(self, what: str) -> None:
        if what and what != self._told:  # once, not every few minutes
            LOG.warning("%s", what)
        self._told = what

    def _erasures(self) -> float:
        folder = self._log / ERASED
        try:
            if isinstance(folder, StoredPlace):
                return max((each.stat().st_mtime for each in folder.iterdir()), default=0.0)
            return folder.stat().st_mtime_ns
        except OSError:
            return 0
