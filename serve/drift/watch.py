"""Watches whether the traffic is still what the router was fitted on, and its choices as spread.

Holds the bins of the last `WINDOW` pictures with questions, nothing of what they show or say. Off
where the router brings no population. Every replica watches what it decides itself. Knows features,
decisions and metrics; knows nothing of requests.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Sequence

import numpy as np

from router.decision import Reason, RoutingDecision
from router.drift.population import BINS, Population, read_population
from router.drift.stability import LEAST, Stability, collapsed, stability
from router.places import Place
from router.router import Router
from serve.metrics import Metrics

LOG = logging.getLogger(__name__)
WINDOW = 1_000
EVERY = 20  # pictures between two looks
NAMED = 5  # features that have moved the farthest


class DriftWatch:
    """Counts what one encoder replica decides about; safe for several threads.

    Args:
        metrics: where what is found goes.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._lock = threading.Lock()
        self._population: Population | None = None
        self._router: Router | None = None
        self._since_look: int = 0
        self._told: str = ""
        self._begin_anew()

    def begin(self, router: Router | None, folder: Place | None) -> None:
        """Watch a router that has come into force; its population lies in its folder."""
        found = None if router is None or folder is None else read_population(folder, router)
        with self._lock:
            self._router, self._population = router, found
            self._begin_anew()
            self._tell(None, None)

    def note(
        self,
        router: Router,
        rows: np.ndarray,
        picture_ids: Sequence[str],
        decision: RoutingDecision,
    ) -> None:
        """Take in what was decided about pictures.

        Args:
            router: that decided; another than the one in force is not watched.
            rows: (n, F) features.
            picture_ids: of the n pictures.
            decision: what is read of them.
        """
        population = self._population
        if population is None or self._router is not router:
            return
        bins = population.bins(rows)
        free = decision.reason is Reason.predicted
        actions = [each.action if free else None for each in decision.readings]
        with self._lock:
            if self._population is not population:  # exchanged meanwhile
                return
            for row, name, action in zip(bins, picture_ids, actions, strict=True):
                self._take(row, hash(name), action)
                self._since_look += 1
            if self._since_look >= EVERY:
                self._since_look = 0
                self._look(population)

    @property
    def told(self) -> str:
        """Return in words what has moved or collapsed; "" if nothing."""
        return self._told

    def _begin_anew(self) -> None:
        n_features = 0 if self._population is None else len(self._population.edges)
        self._window: deque[tuple[np.ndarray, int, str | None]] = deque()
        self._counts = np.zeros((n_features, BINS))
        self._all = np.arange(n_features)
        self._pictures: Counter[int] = Counter()
        self._squares = 0  # sum over pictures of the square of their number
        self._choices: Counter[str] = Counter()
        self._since_look = 0
        self._told = ""

    def _take(self, row: np.ndarray, picture: int, action: str | None) -> None:
        if len(self._window) == WINDOW:
            old, left, before = self._window.popleft()
            self._counts[self._all, old] -= 1
            self._squares -= 2 * self._pictures[left] - 1
            self._pictures[left] -= 1
            if not self._pictures[left]:
                del self._pictures[left]
            if before is not None:
                self._choices[before] -= 1
        self._window.append((row, picture, action))
        self._counts[self._all, row] += 1
        self._squares += 2 * self._pictures[picture] + 1
        self._pictures[picture] += 1
        if action is not None:
            self._choices[action] += 1

    def _look(self, population: Population) -> None:
        n = len(self._window)
        worth = n**2 / self._squares
        if worth < LEAST:
            return
        found = stability(population, self._counts, worth)
        choices = +self._choices
        free = worth * choices.total() / n
        self._tell(found, collapsed(choices, population.choices, free))

    def _tell(self, found: Stability | None, one: str | None) -> None:
        gauge = self._metrics.gauge
        choices = self._choices.values()
        gauge("m3_drift_psi_max", 0.0 if found is None else float(found.index.max()))
        gauge("m3_drift_psi_mean", 0.0 if found is None else float(found.index.mean()))
        gauge("m3_drift_features", 0 if found is None else int(found.moved.sum()))
        gauge("m3_action_share", max(choices) / sum(choices) if found and any(choices) else 0.0)
        gauge("m3_router_collapsed", int(one is not None))
        told = "; ".join(filter(None, (self._moved(found), _one(one))))
        if bool(told) != bool(self._told):
            LOG.warning("%s", told or "the traffic is again what the router was fitted on")
        self._told = told

    def _moved(self, found: Stability | None) -> str:
        if found is None or self._router is None or not found.moved.any():
            return ""
        names = self._router.schema.names
        worst = [f"{names[place]} {found.index[place]:.2f}" for place in found.worst(NAMED)]
        return (
            f"{int(found.moved.sum())} of {len(names)} features have moved from what router "
            f"{self._router.version} was fitted on: {', '.join(worst)}"
        )


def _one(action: str | None) -> str:
    return "" if action is None else f"nearly all is read by {action}, and was not at the fit"
