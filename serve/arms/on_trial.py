"""The router on trial beside the one in force, as the registry's last word names it.

Knows folders, the journal's entries and one reference; knows nothing of requests. A router that
cannot be loaded, or does not fit the model, changes nothing but a gauge and a line in the log: then
the router in force decides everything. A canary whose decisions fail is given no more requests
here; to end its trial everywhere, and for good, is the journal's (`m3-train canary`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from router.places import Place
from router.registry import Entry, Trial
from router.router import Router
from serve.arms.assignment import CANARY, is_drawn
from serve.arms.guard import Guard
from serve.metrics import Metrics

LOG = logging.getLogger(__name__)
RETRY_LOOKS = 30  # a router that could not be loaded is tried again after so many


@dataclass(frozen=True)
class _Tried:
    trial: Trial
    router: Router
    guard: Guard = field(default_factory=Guard)


class OnTrial:
    """Holds what is tried; `follow` keeps it equal to the registry's last word.

    Args:
        load: a router's folder -> the router; raises for one that cannot be served.
        metrics: where trouble is told.
        registry: where it lies, or None.
    """

    def __init__(
        self, load: Callable[[Place], Router], metrics: Metrics, registry: Place | None
    ) -> None:
        self._load, self._metrics, self._registry = load, metrics, registry
        self._now: _Tried | None = None
        self._wanted: Trial | None = None
        self._heard = self._looks = 0
        self._complaint = ""

    @property
    def told(self) -> str:
        """Return in a sentence what is tried, "" where nothing is."""
        wanted, now = self._wanted, self._now
        if wanted is None:
            return ""
        of = "sessions" if wanted.kind == CANARY else "requests"
        said = f"{wanted.kind} {wanted.router} on {wanted.share:.3g} of the {of}"
        if now is None:
            return f"{said}, which cannot be loaded"
        return f"{said}, stopped here because it fails" if now.guard.failing else said

    def follow(self, entry: Entry) -> None:
        """Try what an entry says; nothing is loaded again that is tried already."""
        begun = entry.action == "try" and entry.seq != self._heard
        self._heard = entry.seq
        if entry.trial != self._wanted or begun:
            self._take(entry.trial)
        elif self._complaint:
            self._looks += 1
            if self._looks % RETRY_LOOKS == 0:
                self._take(entry.trial)

    def canary_for(self, session: Callable[[], str]) -> Router | None:
        """Return the canary if it is to decide for a session, which is asked for only then."""
        now = self._now
        if now is None or now.trial.kind != CANARY or now.guard.failing:
            return None
        return now.router if is_drawn(session(), now.router.version, now.trial.share) else None

    def shadow(self) -> Router | None:
        """Return the shadow if it is to decide the next request too."""
        now = self._now
        if now is None or now.trial.kind == CANARY or random.random() >= now.trial.share:
            return None
        return now.router

    def saw(self, arm: str, *, failed: bool) -> None:
        """Take in whether a decision of an arm failed."""
        now = self._now
        if now is None or now.trial.kind != CANARY or now.guard.failing:
            return
        if now.guard.saw(arm == CANARY, failed):
            self._metrics.gauge("m3_canary_stopped", 1)
            LOG.error(
                "the canary %s fails more often than the router in force and is given no more "
                "requests here; `m3-train canary --stop --quarantine` ends it everywhere",
                now.trial.router,
            )

    def _take(self, trial: Trial | None) -> None:
        self._wanted, now = trial, None
        try:
            if trial is not None and self._registry is not None:
                now = _Tried(trial, self._load(self._registry / trial.router))
            complaint = ""
        except Exception as error:  # whatever is wrong with a file must not end the service
            complaint = f"router {trial and trial.router} is not tried: {error}"
            if complaint != self._complaint:
                LOG.error("%s; the router in force decides everything", complaint)
        self._now, self._complaint, self._looks = now, complaint, 0
        self._metrics.gauge("m3_trial_stale", int(bool(complaint)))
        self._metrics.gauge("m3_canary_stopped", 0)
        if not complaint:
            LOG.info("on trial: %s", self.told or "nothing")
