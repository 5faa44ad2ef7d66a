"""Ray's own routing loop with our choice in it; replicas are names, nothing is sent anywhere."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.serve._private.common import (
    DeploymentHandleSource,
    DeploymentID,
    ReplicaID,
    RequestMetadata,
)
from ray.serve.request_router import PendingRequest, RequestRouter

from router.actions import Reading
from router.decision import Constraints
from serve.errors import NotReady
from serve.on_ray.app import is_well
from serve.on_ray.outstanding import Ledger, answer_work
from serve.on_ray.replica_routing import WELL, PictureRouter, TokenRouter
from serve.stages.messages import EncodeRequest, GenerateRequest, PoolRequest

DEPLOYMENT = DeploymentID("generator", "m3")


@dataclass
class Replica:
    """A running replica as far as routing asks for it."""

    name: str
    routing_stats: dict[str, Any] = field(default_factory=dict)
    max_ongoing_requests: int = 100
    queue: int = 0

    @property
    def replica_id(self) -> ReplicaID:
        return ReplicaID(self.name, DEPLOYMENT)

    async def get_queue_len(self, *, deadline_s: float) -> int:
        return self.queue


def routed(
    kind: type[RequestRouter], work: Callable[[Any], Awaitable[None]], *replicas: Replica,
    **kwargs: int,
) -> Any:  # fmt: skip
    """Runs `work` with a router that knows the replicas; returns the router."""

    async def run() -> Any:
        router: Any = kind(
            DEPLOYMENT, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True
        )
        router.initialize_state(**kwargs)
        router.update_replicas(list(replicas))
        async with asyncio.timeout(20):
            await work(router)
        return router

    return asyncio.run(run())


def asked(argument: object = None, session: str = "", name: str = "r") -> PendingRequest:
    return PendingRequest(
        [] if argument is None else [argument], {},
        RequestMetadata(name, internal_request_id=name, session_id=session),
    )  # fmt: skip


def question(visual: int, max_tokens: int | None = None) -> GenerateRequest:
    return GenerateRequest("r", (), (np.zeros((visual, 2), np.float16),), max_tokens)


async def send(router: Any, request: PendingRequest) -> str:
    """Routes as Ray's sender does, up to the point where the request would leave."""
    replica = await router._choose_replica_for_request(request)
    router.on_send_request(replica.replica_id)
    return str(replica.name)


def test_work_is_visual_tokens_and_no_more_answer_than_expected() -> None:
    assert answer_work(question(576, 20), 64) == 596
    assert answer_work(question(576, 4096), 64) == 640
    assert answer_work(question(9), 64) == 73
    two = GenerateRequest("r", (), (np.zeros((9, 2), np.float16),) * 2, 1)
    assert answer_work(two, 64) == 19
    assert answer_work(replace(two, n=16), 64) == 34  # the pictures are read once


def test_tokens_count_and_not_requests() -> None:
    async def work(router: Any) -> None:
        large = [await send(router, asked(question(576)))]
        small = [await send(router, asked(question(9))) for _ in range(8)]
        assert {large[0], *small} == {"a", "b"}
        assert large[0] not in small  # 8 x 73 = 584 is still less than 640
        assert await send(router, asked(question(9))) not in large
        assert await send(router, asked(question(9))) in large

    routed(TokenRouter, work, Replica("a"), Replica("b"), expected_answer_tokens=64)


def test_requests_that_come_together_do_not_herd() -> None:
    async def work(router: Any) -> None:
        taken = await asyncio.gather(*(send(router, asked(question(144))) for _ in range(12)))
        assert Counter(taken) == {"a": 4, "b": 4, "c": 4}

    names = [Replica(name) for name in "abc"]
    routed(TokenRouter, work, *names, expected_answer_tokens=64)


def test_calls_of_one_request_do_not_lose_one_another() -> None:
    """They share an id in Ray, which looks waiting calls up by it."""

    async def work(router: Any) -> None:
        calls = [asked(question(9), name="the same") for _ in range(6)]
        taken = await asyncio.gather(*(send(router, call) for call in calls))
        assert Counter(taken) == {"a": 3, "b": 3}
        for call, name in zip(calls, taken, strict=True):
            done = call.metadata.internal_request_id
            router.on_request_completed(ReplicaID(name, DEPLOYMENT), done)
        assert len(router._ledger) == 0

    routed(TokenRouter, work, Replica("a"), Replica("b"), expected_answer_tokens=64)


def test_a_replica_that_is_not_well_gets_nothing_while_another_is() -> None:
    sick = Replica("sick", {WELL: False})

    async def work(router: Any) -> None:
        assert {await send(router, asked(question(576))) for _ in range(9)} == {"well"}
        assert {await send(router, asked()) for _ in range(9)} == {"well"}
        router.update_replicas([sick])
        assert await send(router, asked(question(9))) == "sick"

    routed(TokenRouter, work, sick, Replica("well"), expected_answer_tokens=64)


def test_a_replica_is_well_as_long_as_its_health_check_says_so() -> None:
    async def fine() -> None: ...

    async def dead() -> None:
        raise NotReady("the engine is dead or closed")

    assert asyncio.run(is_well(fine))
    assert not asyncio.run(is_well(dead))


def test_a_full_replica_is_passed_over() -> None:
    full = Replica("full", max_ongoing_requests=1, queue=1)

    async def work(router: Any) -> None:
        await asyncio.sleep(0)
        assert {await send(router, asked(question(9))) for _ in range(5)} == {"free"}

    routed(TokenRouter, work, full, Replica("free"), expected_answer_tokens=64)


def test_what_is_gone_is_forgotten() -> None:
    async def work(router: Any) -> None:
        for _ in range(4):
            await send(router, asked(question(576)))
        dead = ReplicaID("a", DEPLOYMENT)
        assert router._ledger.of(dead) == 1280
        router.on_replica_actor_died(dead)
        assert (router._ledger.of(dead), len(router._ledger)) == (0, 2)
        router.update_replicas([Replica("c")])
        assert len(router._ledger) == 0
        router.on_request_completed(dead, "late")
        assert await send(router, asked(question(9))) == "c"

    routed(TokenRouter, work, Replica("a"), Replica("b"), expected_answer_tokens=64)


def test_who_leaves_before_a_replica_is_found_owes_nothing() -> None:
    full = Replica("full", max_ongoing_requests=1, queue=1)

    async def work(router: Any) -> None:
        waiting = asyncio.create_task(send(router, asked(question(576))))
        await asyncio.sleep(0.1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.sleep(0.1)
        assert len(router._ledger) == 0

    routed(TokenRouter, work, full, expected_answer_tokens=64)


def test_what_cannot_be_weighed_still_goes_somewhere() -> None:
    broken = GenerateRequest("r", (), (5,))  # type: ignore[arg-type]

    async def work(router: Any) -> None:
        taken = [await send(router, asked(broken)) for _ in range(4)]
        assert set(taken) <= {"a", "b"}
        assert len(router._ledger) == 0

    routed(TokenRouter, work, Replica("a"), Replica("b"), expected_answer_tokens=64)


def test_a_picture_s_calls_land_alike_and_move_on_when_its_replica_dies() -> None:
    replicas = [Replica(name) for name in "abc"]
    encode = EncodeRequest((b"png",), "what", Constraints())
    pool = PoolRequest("id", b"png", Reading.uniform(9))

    async def work(router: Any) -> None:
        homes = {}
        for picture in map(str, range(30)):
            taken = [await send(router, asked(each, picture)) for each in (encode, pool, encode)]
            assert len(set(taken)) == 1
            homes[picture] = taken[0]
        assert set(homes.values()) == {"a", "b", "c"}
        router.on_replica_actor_died(ReplicaID("a", DEPLOYMENT))
        for picture, home in homes.items():
            now = await send(router, asked(encode, picture))
            assert now == home if home != "a" else now in "bc"
        assert {await send(router, asked()) for _ in range(30)} == {"b", "c"}  # states: anywhere

    routed(PictureRouter, work, *replicas, slack=1000)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2), st.integers(0, 700))))
def test_accounts_are_the_sums_of_what_is_out(steps: list[tuple[int, int, int]]) -> None:
    ledger, out = Ledger(), dict[str, tuple[int, int]]()
    for name, replica, work in steps:
        if work % 3 == 0:
            ledger.settle(str(name))
            out.pop(str(name), None)
        else:
            ledger.charge(str(name), replica, work)
            out[str(name)] = replica, work
        if work % 100 == 1:
            ledger.keep_only({0, 1})
            out = {key: value for key, value in out.items() if value[0] < 2}
        assert len(ledger) == len(out)
        for each in range(3):
            assert ledger.of(each) == sum(w for r, w in out.values() if r == each)
