"""Draws which requests are audited: a uniform share, which the log may change while it is written.

Knows one number and where it is told; knows nothing of requests, which must not sway it.
"""

from __future__ import annotations

import logging
import random
import time

from router.log.auditing import read_audit_rate
from router.places import Place

LOG = logging.getLogger(__name__)
LOOK_S = 2.0


class Audits:
    """The draw of one process.

    Args:
        log: where another rate may be told; None: nowhere.
        rate: as long as none is.
        seed: draws are the same again; None: nobody can foretell them.
    """

    def __init__(self, log: Place | None, rate: float, seed: int | None = None) -> None:
        self._log, self._began_with = log, rate
        self.rate = rate
        self._draws = random.Random(seed)
        self._looked, self._complaint = -LOOK_S, ""

    def draw(self) -> bool:
        """Return whether the next request is audited."""
        return self._draws.random() < self.rate

    def look(self) -> None:
        """Take over a rate that is told meanwhile; at most every few seconds, by one thread."""
        if self._log is None or time.monotonic() < self._looked + LOOK_S:
            return
        self._looked = time.monotonic()
        try:
            told = read_audit_rate(self._log)
        except (OSError, ValueError) as error:
            if str(error) != self._complaint:  # once, not every few seconds
                LOG.error("%s; %.3g of the requests are audited as before", error, self.rate)
            self._complaint = str(error)
            return
        rate = self._began_with if told is None else told
        if rate != self.rate:
            LOG.info("%.3g of the requests are audited from now on, not %.3g", rate, self.rate)
        self.rate, self._complaint = rate, ""
