"""Labels what a log gains, one small batch at a time, whenever the service has nothing to do.

Knows when to look, when to wait and what to tell; does not know what a log holds nor how a
picture is labelled.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

from training.errors import NotEnoughData
from training.oracle.workers import (
    CollectJob,
    Runner,
    label_shard,
    labeller_of,
    write_shard,
)
from training.sources.tasks import Source

LOG = logging.getLogger(__name__)
LOOK_S = 10.0  # between looks at the log
LOOK_SHARE = 0.1  # of the time at most is spent on looking
# A run over the new pictures makes files of its own: few pictures wait for others.
ENOUGH_PICTURES, LONGEST_WAIT_S = 100, 600.0
FIRST_POLL_S, LONGEST_POLL_S = 0.1, 1.0
ANSWER_S = 5.0

Tell = Callable[[int, int], None]  # pictures labelled so far, pictures that wait
Label = Callable[[Source, Runner], object]


def follow(
    read: Callable[[], Source],
    label: Label,
    turn: Callable[[], None],
    tell: Tell,
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> NoReturn:
    """Label what the source holds and gains, until the process is ended.

    Nothing is lost by an end at any instant but the pictures of the shard that was under way.

    Args:
        read: returns the source as it is now; NotEnoughData while there is nothing to label.
        label: labels what of a source is not labelled yet, by the given runner.
        turn: returns when there is time for a small batch.
        tell: told how far it is whenever that changes.
        sleep: waits.
    """
    runner = InTurns(turn, tell)
    known: dict[str, Any] | None = None  # what the source was when it was labelled
    pictures, labelled_at = 0, -LONGEST_WAIT_S
    tell(0, 0)
    while True:
        turn()
        began = time.monotonic()
        source = _read(read)
        reading_s = time.monotonic() - began
        if source is not None:
            new = max(0, len(source) - pictures)
            is_due = new >= ENOUGH_PICTURES or began - labelled_at >= LONGEST_WAIT_S
            if is_due and (content := source.parameters()) != known:
                label(source, runner)
                known, pictures, labelled_at, new = content, len(source), time.monotonic(), 0
            runner.tell_waiting(new)
        sleep(max(LOOK_S, reading_s / LOOK_SHARE))


def _read(read: Callable[[], Source]) -> Source | None:
    try:
        return read()
    except NotEnoughData:
        return None


class InTurns:
    """Runs shards in this process, each small batch when it is its turn (a `Runner`).

    Args:
        turn: returns when there is time for a small batch.
        tell: told after each.
    """

    def __init__(self, turn: Callable[[], None], tell: Tell) -> None:
        self._turn, self._tell = turn, tell
        self._labelled = 0
        self._loaded: tuple[CollectJob, Any] | None = None

    def __call__(self, job: CollectJob, planned: dict[int, range], workers: int) -> Iterator[int]:
        """Yield the index of each shard once it is on disk; ``workers`` is always one here."""
        waiting = sum(map(len, planned.values()))
        for index, pictures in planned.items():
            self._turn()
            before = partial(self._before, self._labelled, waiting)
            write_shard(job, index, label_shard(job, self._labeller(job), pictures, before))
            self._labelled += len(pictures)
            waiting -= len(pictures)
            self._tell(self._labelled, waiting)
            yield index

    def _before(self, labelled: int, waiting: int, done: int) -> None:
        self._tell(labelled + done, waiting - done)
        self._turn()

    def tell_waiting(self, pictures: int) -> None:
        """Tell of pictures that are not being labelled yet."""
        self._tell(self._labelled, pictures)

    def _labeller(self, job: CollectJob) -> Any:
        """Return the model of the job; it is loaded once, a log only grows."""
        if self._loaded is None or _model_of(self._loaded[0]) != _model_of(job):
            self._loaded = None  # before the other is loaded: there may be room for one
            self._loaded = job, labeller_of(job)
        return self._loaded[1]


def _model_of(job: CollectJob) -> tuple[object, ...]:
    return (
        job.model, job.model_hash, job.device, job.max_new_tokens, job.relevance,
        job.text_encoder, job.space,
    )  # fmt: skip


class IdleService:
    """Waits until a service has nothing to do: a turn to take before each small batch.

    A service that does not answer is starting, ending or at its limit: it is waited for.

    Args:
        url: of the service.
        sleep: waits.
    """

    def __init__(self, url: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        import httpx2

        self._url, self._sleep, self._silent = url, sleep, False
        self._http = httpx2.Client(base_url=url, timeout=ANSWER_S, trust_env=False)

    def __call__(self) -> None:
        """Return once no request is being worked on."""
        pause_s = FIRST_POLL_S
        while self._is_busy():
            self._sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_POLL_S)

    def _is_busy(self) -> bool:
        import httpx2

        try:
            reply = self._http.get("/health/inflight").raise_for_status()
            inflight = int(reply.json()["inflight"])
        except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
            if not self._silent:
                LOG.warning("%s does not say what it does, so nothing is labelled: %s", self._url,
                            error)  # fmt: skip
            self._silent = True
            return True
        self._silent = False
        return inflight > 0
