"""The two stages as the gateway sees them when they are Ray Serve deployments.

Knows handles and Ray's errors, and turns the latter into the service's own; knows nothing of
requests' meaning.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray
from ray.exceptions import (
    PendingCallsLimitExceeded,
    RayError,
    RayTaskError,
    TaskCancelledError,
)
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RayServeException,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle

from serve.errors import NotReady, QueueFull, ReplicaDied, ServiceError, TimedOut
from serve.on_ray.choice import picture_key
from serve.stages.messages import (
    AnswerPart,
    Encoded,
    EncodeRequest,
    EncoderStatus,
    GenerateRequest,
    GeneratorStatus,
    PoolRequest,
)


@contextmanager
def ray_errors() -> Iterator[None]:
    """Raise what Ray raises as the service's errors.

    Raises:
        ServiceError: ours as it was raised; one of ours for Ray's, see `ours`.
        CancelledError: the request was cancelled somewhere.
    """
    try:
        yield
    except Exception as error:
        told = ours(error)
        if told is None:
            raise
        raise told from error


def ours(error: BaseException) -> BaseException | None:
    """Return what an error of Ray means here, None for one that code of ours raised and meant not.

    Whatever Ray's plumbing says that is not known better counts as a death: another replica is
    asked once, and not as often as one that never saw the request.
    """
    if isinstance(error, RayTaskError):  # raised by the code in a replica, or on its way there
        return ours(error.cause)
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, TaskCancelledError | asyncio.CancelledError):
        # Ours only if somebody cancels us; else the replica gave up, and the caller waits.
        if _is_being_cancelled():
            return asyncio.CancelledError()
        return NotReady("The request was given up on its way. Try again.")
    if isinstance(error, BackPressureError | PendingCallsLimitExceeded):
        return QueueFull()
    if isinstance(error, DeploymentUnavailableError | ReplicaUnavailableError):
        return NotReady()
    if isinstance(error, grpc.RpcError):
        return _of_status(error)
    if isinstance(error, TimeoutError):
        return TimedOut("A replica did not answer in time. Try again.")
    return ReplicaDied() if isinstance(error, RayError | RayServeException) else None


def _is_being_cancelled() -> bool:
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop runs
        return False
    return task is not None and task.cancelling() > 0


def _of_status(error: grpc.RpcError) -> ServiceError:
    """Return what a failed call means; the caller's own cancellation is none of these."""
    code = getattr(error, "code", lambda: None)()  # a bare RpcError has none
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return QueueFull()
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return TimedOut("A replica did not answer in time. Try again.")
    if code in (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.FAILED_PRECONDITION):
        return NotReady()  # it does not know what is asked: a replica of another version
    return ReplicaDied()


class RayEncoder:
    """The encoder deployment; a picture's calls go where it was encoded before."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def encode_and_route(self, request: EncodeRequest) -> Encoded:
        """Return the decision and the tokens."""
        with ray_errors():
            # Of several the first: a conversation keeps it when more are added.
            handle = await self._near(*request.pictures[:1])
            encoded: Encoded = await handle.encode_and_route.remote(request)
            return encoded

    async def pool(self, request: PoolRequest) -> NDArray[np.float16]:
        """Return the tokens (scale, D) of a picture at another scale."""
        with ray_errors():
            handle = await self._near(request.picture)
            tokens: NDArray[np.float16] = await handle.pool.remote(request)
            return tokens

    async def status(self) -> EncoderStatus:
        """Return the state of one replica."""
        with ray_errors():
            status: EncoderStatus = await self._handle.status.remote()
            return status

    async def _near(self, *pictures: bytes) -> DeploymentHandle:
        """Return a handle to the replica that has the picture; of no picture, to any."""
        if not pictures:
            return self._handle
        return self._handle.options(session_id=await picture_key(pictures[0]))


class RayGenerator:
    """The generator deployment."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle
        self._streaming = handle.options(stream=True)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[AnswerPart]:
        """Yield the parts of the answer; closing the iterator cancels the request."""
        if request.tokens_per_part is None:
            for part in await self._whole(request):
                yield part
            return
        parts: Any = self._streaming.generate.remote(request)
        try:
            with ray_errors():
                async for part in parts:
                    yield part
        finally:
            parts.cancel()

    async def _whole(self, request: GenerateRequest) -> list[AnswerPart]:
        """Return answers that come together at their end: one call costs Ray half of a stream."""
        response = self._handle.generate_whole.remote(request)
        answered = False
        try:
            with ray_errors():
                parts: list[AnswerPart] = await response
                answered = True
                return parts
        finally:
            if not answered:
                response.cancel()

    async def status(self) -> GeneratorStatus:
        """Return the state of one replica."""
        with ray_errors():
            status: GeneratorStatus = await self._handle.status.remote()
            return status
