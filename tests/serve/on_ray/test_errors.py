"""What Ray's and gRPC's own exceptions become: real ones, made as Ray 2.60 makes them."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

import grpc
import pytest
import ray.exceptions as of_ray
from ray.serve import exceptions as of_serve

from serve.errors import BadRequest, NotReady, QueueFull, ReplicaDied, ServiceError, TimedOut
from serve.on_ray.stages import ours, ray_errors
from serve.web.stream import unless_disconnected


def from_replica(cause: Exception) -> Exception:
    """As `await handle.method.remote()` raises what a replica's code raised."""
    error = of_ray.RayTaskError("generate", "Traceback ...", cause, "title", 1, "127.0.0.1")
    return error.as_instanceof_cause()  # type: ignore[no-any-return]


def rpc(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details="gone")


LOST = ("00ff", None, "")
TABLE: list[tuple[BaseException, type[BaseException]]] = [
    (of_ray.ActorDiedError(), ReplicaDied),
    (of_ray.ActorUnavailableError("restarting", None), ReplicaDied),
    (of_ray.ObjectLostError(*LOST), ReplicaDied),
    (of_ray.OwnerDiedError(*LOST), ReplicaDied),
    (of_ray.ObjectFetchTimedOutError(*LOST), ReplicaDied),
    (of_ray.ReferenceCountingAssertionError(*LOST), ReplicaDied),
    (of_ray.WorkerCrashedError(), ReplicaDied),
    (of_ray.NodeDiedError("preempted"), ReplicaDied),
    (of_ray.LocalRayletDiedError(), ReplicaDied),
    (of_ray.OutOfMemoryError("node"), ReplicaDied),
    (of_ray.RpcError("closed", 14), ReplicaDied),
    (from_replica(of_ray.ActorDiedError()), ReplicaDied),
    (from_replica(of_ray.OwnerDiedError(*LOST)), ReplicaDied),
    (rpc(grpc.StatusCode.UNAVAILABLE), ReplicaDied),
    (rpc(grpc.StatusCode.CANCELLED), ReplicaDied),  # said by a replica that shuts down
    (rpc(grpc.StatusCode.INTERNAL), ReplicaDied),
    (rpc(grpc.StatusCode.UNKNOWN), ReplicaDied),
    (rpc(grpc.StatusCode.UNIMPLEMENTED), NotReady),
    (rpc(grpc.StatusCode.RESOURCE_EXHAUSTED), QueueFull),
    (rpc(grpc.StatusCode.DEADLINE_EXCEEDED), TimedOut),
    (of_ray.GetTimeoutError("late"), TimedOut),
    (of_ray.PendingCallsLimitExceeded(), QueueFull),
    (of_serve.BackPressureError(9, 8), QueueFull),
    (from_replica(of_serve.BackPressureError(9, 8)), QueueFull),
    (of_serve.ReplicaUnavailableError("r1"), NotReady),
    (of_serve.DeploymentUnavailableError("generator"), NotReady),  # type: ignore[arg-type]
    (of_serve.RayServeException("an upstream replica crashed"), ReplicaDied),
    (of_serve.RequestCancelledError("r"), NotReady),
    (of_ray.TaskCancelledError(), NotReady),
    (from_replica(of_ray.TaskCancelledError()), NotReady),
    (from_replica(NotReady()), NotReady),
    (from_replica(QueueFull()), QueueFull),
]


@pytest.mark.parametrize(("error", "wanted"), TABLE, ids=lambda each: repr(each)[:60])
def test_what_ray_raises_becomes_ours(error: BaseException, wanted: type[BaseException]) -> None:
    with pytest.raises(wanted) as caught, ray_errors():
        raise error
    assert caught.type is wanted  # a death and a refusal are different things to the gateway


def test_every_exception_of_ray_has_an_answer() -> None:
    """Also those that another version adds: nothing that is Ray's own becomes a 500."""
    kinds = [
        kind
        for module in (of_ray, of_serve)
        for kind in vars(module).values()
        if inspect.isclass(kind) and issubclass(kind, of_ray.RayError | of_serve.RayServeException)
    ]
    assert len(kinds) > 30
    for kind in kinds:
        error = kind.__new__(kind)
        if not isinstance(error, of_ray.RayTaskError):
            assert isinstance(ours(error), ServiceError), kind


def test_an_error_of_ours_arrives_as_it_was_raised() -> None:
    error = BadRequest("The picture is cut off.", "messages", "invalid_image")
    with pytest.raises(BadRequest) as caught, ray_errors():
        raise from_replica(error)
    assert caught.value.args == error.args


def test_a_fault_in_a_replica_stays_a_fault() -> None:
    with pytest.raises(KeyError), ray_errors():
        raise from_replica(KeyError("a bug"))


def test_work_that_is_cancelled_elsewhere_is_told_to_a_caller_who_waits() -> None:
    class Waiting:
        async def receive(self) -> dict[str, Any]:
            await asyncio.sleep(3600)
            return {}

    async def work() -> None:
        with ray_errors():
            raise of_serve.RequestCancelledError("r")

    request: Any = Waiting()
    with pytest.raises(NotReady) as caught:
        asyncio.run(unless_disconnected(request, work()))
    # Not "cancelled", which metrics and budgets take for a caller who left.
    assert caught.value.code == "not_ready"


def test_who_is_cancelled_stays_cancelled() -> None:
    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            with ray_errors():  # as Ray tells of it, on the way out
                raise of_ray.TaskCancelledError from None

    async def cancel() -> None:
        task = asyncio.create_task(work())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
