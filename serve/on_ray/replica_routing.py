"""How a gateway chooses among the replicas of encoder and generator, in the place of Ray's choice.

Ray's routers compare queue lengths, and a request with 576 visual tokens counts there like one with
a single token. Knows Ray's request routers and what travels to the stages; `serve.on_ray.choice`
decides. Written against Ray 2.60, three of whose habits shape it:

* Within a rank Ray takes the replica with the shortest queue, so every rank holds one replica.
* What `choose_replicas` raises ends the task that routes, and its request waits for ever.
* Calls that one request makes at the same time share an id, by which waiting calls are looked up:
  the second would never be found again. So each call gets an id of its own here, each further try
  too; accounts are kept by it.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from random import Random
from typing import Any

from ray.serve._private.utils import generate_request_id
from ray.serve.request_router import (
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

from serve.on_ray.choice import ReplicaState, anywhere, least_loaded, nearest
from serve.on_ray.outstanding import Ledger, answer_work
from serve.stages.messages import EncodeRequest, GenerateRequest

LOG = logging.getLogger("ray.serve")
WELL = "m3_well"  # in a replica's routing statistics
STATS_PERIOD_S = 1.0


class AccountingRouter(RequestRouter):
    """Keeps accounts of what is at which replica; subclasses say what a call weighs and who is
    best.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ledger, self._random = Ledger(), Random()

    def _work(self, request: PendingRequest) -> int:
        """Return what a call weighs; 0: nothing, it may go anywhere."""
        raise NotImplementedError

    def _order(self, states: list[ReplicaState], request: PendingRequest) -> list[int]:
        """Return the replicas for a call that weighs something, best first, as indices."""
        raise NotImplementedError

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Return the replicas one by one, best first; at a loss, all of them for Ray to choose."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        try:
            return self._chosen(candidate_replicas, pending_request)
        except Exception:
            LOG.exception("choosing a replica failed; Ray chooses")
            return [candidate_replicas]

    def _chosen(
        self, replicas: list[RunningReplica], request: PendingRequest
    ) -> list[list[RunningReplica]]:
        states = [self._state(replica) for replica in replicas]
        work = self._work(request)
        order = self._order(states, request) if work else anywhere(states, self._random)
        if order and not request.future.done():
            # At once: of requests that come together the next must see this one.
            first = replicas[order[0]].replica_id
            self._ledger.charge(request.metadata.internal_request_id, first, work)
        return [[replicas[index]] for index in order]

    def _state(self, replica: RunningReplica) -> ReplicaState:
        return ReplicaState(
            replica.replica_id.unique_id,
            bool(replica.routing_stats.get(WELL, True)),
            self._ledger.of(replica.replica_id),
            self.replica_queue_len_cache.get(replica.replica_id) or 0,
        )

    async def _choose_replica_for_request(
        self, pending_request: PendingRequest, *, is_retry: bool = False
    ) -> RunningReplica:
        """Return the replica that takes a call, which is written down for it."""
        name = generate_request_id()
        pending_request.metadata = replace(pending_request.metadata, internal_request_id=name)
        try:
            taker = await super()._choose_replica_for_request(pending_request, is_retry=is_retry)
        except BaseException:  # the caller left
            self._ledger.settle(name)
            raise
        self._write_down(name, taker, pending_request)
        return taker

    def _write_down(self, name: str, taker: RunningReplica, request: PendingRequest) -> None:
        try:
            self._ledger.charge(name, taker.replica_id, self._work(request))
        except Exception:
            LOG.exception("a request could not be weighed; it counts as nothing")
            self._ledger.settle(name)

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """Strike a call out, however it ended."""
        self._ledger.settle(internal_request_id)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Forget a replica and what was there."""
        super().on_replica_actor_died(replica_id)
        self._ledger.keep_only(self.curr_replicas)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Know these replicas and forget what was at others."""
        super().update_replicas(replicas)
        self._ledger.keep_only(self.curr_replicas)


class TokenRouter(AccountingRouter):
    """For generators: fewest visual and expected answer tokens outstanding."""

    _expected = 0

    def initialize_state(self, **kwargs: Any) -> None:
        """Take over what the settings say: ``expected_answer_tokens``."""
        self._expected = int(kwargs["expected_answer_tokens"])

    def _work(self, request: PendingRequest) -> int:
        asked = request.args[0] if request.args else None
        return answer_work(asked, self._expected) if isinstance(asked, GenerateRequest) else 0

    def _order(self, states: list[ReplicaState], request: PendingRequest) -> list[int]:
        return least_loaded(states, self._random)


class PictureRouter(AccountingRouter):
    """For encoders: the same picture to the same replica, the call's session being the picture."""

    _slack = 0

    def initialize_state(self, **kwargs: Any) -> None:
        """Take over what the settings say: ``slack`` pictures, see `nearest`."""
        self._slack = int(kwargs["slack"])

    def _work(self, request: PendingRequest) -> int:
        if not request.metadata.session_id:
            return 0
        asked = request.args[0] if request.args else None
        return len(asked.pictures) if isinstance(asked, EncodeRequest) else 1

    def _order(self, states: list[ReplicaState], request: PendingRequest) -> list[int]:
        return nearest(states, request.metadata.session_id, self._slack)
