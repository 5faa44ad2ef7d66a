"""The two stages as the gateway sees them when they are Ray Serve deployments.

Knows handles and Ray's errors, and turns the latter into the service's own; knows nothing of
requests' meaning.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import ActorUnavailableError, RayActorError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle

from serve.errors import NotReady, QueueFull, ReplicaDied, ServiceError
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
        ServiceError: ours as it was raised; ReplicaDied, QueueFull or NotReady for Ray's.
    """
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, ServiceError):
            raise error.cause from None
        if isinstance(error.cause, RayActorError):
            raise ReplicaDied() from error
        raise
    except (RayActorError, ActorUnavailableError, ReplicaUnavailableError) as error:
        raise ReplicaDied() from error
    except BackPressureError as error:
        raise QueueFull() from error
    except DeploymentUnavailableError as error:
        raise NotReady() from error


class RayEncoder:
    """The encoder deployment."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def encode_and_route(self, request: EncodeRequest) -> Encoded:
        """Return the decision and the tokens."""
        with ray_errors():
            encoded: Encoded = await self._handle.encode_and_route.remote(request)
            return encoded

    async def pool(self, request: PoolRequest) -> NDArray[np.float16]:
        """Return the tokens (scale, D) of a picture at another scale."""
        with ray_errors():
            tokens: NDArray[np.float16] = await self._handle.pool.remote(request)
            return tokens

    async def status(self) -> EncoderStatus:
        """Return the state of one replica."""
        with ray_errors():
            status: EncoderStatus = await self._handle.status.remote()
            return status


class RayGenerator:
    """The generator deployment."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def generate(self, request: GenerateRequest) -> AsyncIterator[AnswerPart]:
        """Yield the parts of the answer; closing the iterator cancels the request."""
        parts: Any = self._handle.options(stream=True).generate.remote(request)
        try:
            with ray_errors():
                async for part in parts:
                    yield part
        finally:
            parts.cancel()

    async def status(self) -> GeneratorStatus:
        """Return the state of one replica."""
        with ray_errors():
            status: GeneratorStatus = await self._handle.status.remote()
            return status
