"""Whether every part of the service is well, and whether a request would be answered now.

Knows the two stages' states; knows nothing of requests or HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from serve.errors import QueueFull
from serve.settings import ServeSettings
from serve.stages.messages import EncoderStage, EncoderStatus, GeneratorStage, GeneratorStatus

LOG = logging.getLogger(__name__)
Result = TypeVar("Result")
StageStatus = EncoderStatus | GeneratorStatus
STATUS_WAIT_S = 3.0


class Health:
    """Asks the two stages how they are.

    Args:
        encoder, generator: the stages.
        settings: of the service.
    """

    def __init__(
        self, encoder: EncoderStage, generator: GeneratorStage, settings: ServeSettings
    ) -> None:
        self._encoder, self._generator, self._settings = encoder, generator, settings

    async def parts(self) -> tuple[str, EncoderStatus | None, GeneratorStatus | None]:
        """Return ok, unavailable or stalled, and the state of a replica of each stage that gave
        one soon.
        """
        encoder, generator = await asyncio.gather(
            _answered(self._encoder.status()), _answered(self._generator.status())
        )
        if encoder is None or generator is None:
            return "unavailable", encoder, generator
        silent_s = max(encoder.heartbeat_s, generator.heartbeat_s)
        stalled = silent_s > self._settings.heartbeat_limit_s or not generator.alive
        return "stalled" if stalled else "ok", encoder, generator

    async def ready(self) -> bool:
        """Return whether a request that came now would be answered; not whether every part is well.

        Each stage is asked as often as a request would be tried: one replica that is well will do.
        """
        try:
            async with asyncio.timeout(STATUS_WAIT_S):
                answers = await asyncio.gather(
                    self._would_answer(self._encoder.status),
                    self._would_answer(self._generator.status),
                )
                return all(answers)
        except TimeoutError:
            return False

    async def _would_answer(self, status: Callable[[], Awaitable[StageStatus]]) -> bool:
        for _ in range(self._settings.retries + 1):
            try:
                state = await status()
            except QueueFull:
                return True  # busy is not unwell: callers get their 429
            except Exception as error:  # whatever it is, this replica does not answer
                LOG.warning("a part of the service is not ready: %r", error)
                continue
            alive = not isinstance(state, GeneratorStatus) or state.alive
            if alive and state.heartbeat_s <= self._settings.heartbeat_limit_s:
                return True
        return False


async def _answered(status: Awaitable[Result]) -> Result | None:
    """Return a part's state, or None if it does not give one soon."""
    try:
        return await asyncio.wait_for(status, STATUS_WAIT_S)
    except Exception as error:  # whatever it is, the part did not answer
        LOG.warning("a part of the service does not give its state: %r", error)
        return None
