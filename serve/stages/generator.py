"""A prompt and visual tokens in; the answer out, in parts of a few tokens.

Knows the engine and the prompt's form; knows no pictures, no routing, no HTTP and no Ray.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, cast

from m3model.engine.interface import Engine, Sampling, TokenEvent
from m3model.errors import BadRequest as EngineRefusal
from m3model.errors import EngineBusy, EngineClosed, PromptTooLong, RequestFailed
from serve.errors import BadRequest, NotReady, QueueFull, ReplicaDied, ServiceError, too_much_text
from serve.metrics import Metrics
from serve.settings import ServeSettings
from serve.stages.messages import AnswerPart, GenerateRequest, GeneratorStatus

if TYPE_CHECKING:
    from m3model import M3Processor

# Below this a draw is the greedy choice in every digit that matters, and 1/t would overflow.
COLDEST = 1e-3
# More text than this is tokenised in a thread: it would hold up every other request meanwhile.
MOST_CHARACTERS_AT_ONCE = 4_000


class Generator:
    """One generator replica.

    Args:
        engine: generates.
        processor: of the same checkpoint.
        settings: of the service.
        metrics: where the engine's load goes.
    """

    def __init__(
        self, engine: Engine, processor: M3Processor, settings: ServeSettings, metrics: Metrics
    ) -> None:
        self._engine, self._processor, self._settings = engine, processor, settings
        self._metrics = metrics
        self._most_characters = processor.most_characters(engine.max_length)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="m3-prompts")

    async def generate(self, request: GenerateRequest) -> AsyncIterator[AnswerPart]:
        """Yield the parts of the answer, the last with its finish reason.

        Closing the iterator, or cancelling its consumer, ends the generation within a token.

        Raises:
            BadRequest: the prompt does not fit the context.
            ReplicaDied: the engine took the request and died, perhaps of it.
            QueueFull, NotReady, ServiceError: as they say.
        """
        import torch

        prompt = await self._prompt_ids(request.messages)
        text_tokens = len(prompt) - len(request.visual_tokens)
        tokens = [torch.from_numpy(array.copy()) for array in request.visual_tokens]
        pending, taken = _Pending(text_tokens), False
        try:
            # The engine's id is our own: callers may repeat theirs.
            events = self._engine.submit(uuid.uuid4().hex, prompt, tokens, self._sampling(request))
            taken = True
            self._note_load()
            async with aclosing(cast(Any, events)) as stream:
                async for event in stream:
                    pending.add(event)
                    if self._is_due(pending, request.tokens_per_part):
                        yield pending.take()
        except PromptTooLong as error:
            raise BadRequest(_sentence(error), "messages", "context_length_exceeded") from error
        except EngineRefusal as error:
            raise BadRequest(_sentence(error)) from error
        except EngineBusy as error:
            raise QueueFull() from error
        except EngineClosed as error:
            raise (ReplicaDied() if taken else NotReady()) from error
        except RequestFailed as error:
            raise ServiceError("The model failed on this request. Try again.") from error
        finally:
            self._note_load()

    async def status(self) -> GeneratorStatus:
        """Return the state of this replica."""
        stats = self._engine.stats()
        return GeneratorStatus(
            stats.running, stats.waiting, stats.visual_tokens, stats.heartbeat_s,
            stats.text_tokens, stats.kv_pages, stats.kv_pages_used, stats.alive,
        )  # fmt: skip

    async def check_health(self) -> None:
        """Return if the loop runs and the engine's worker is alive.

        Raises:
            NotReady: the worker has been silent for too long.
        """
        stats = self._engine.stats()
        if not stats.alive:
            raise NotReady("the engine is dead or closed")
        if stats.heartbeat_s > self._settings.heartbeat_limit_s:
            raise NotReady(f"the engine's worker is silent for {stats.heartbeat_s:.0f} s")

    def close(self) -> None:
        """Stop the engine and the thread."""
        self._thread.shutdown(wait=False)
        self._engine.close()

    async def _prompt_ids(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        characters = _n_characters(messages)
        if characters > self._most_characters:
            raise too_much_text(characters, self._most_characters)
        if characters <= MOST_CHARACTERS_AT_ONCE:
            return self._processor.prompt_ids(messages)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._processor.prompt_ids, messages)

    def _note_load(self) -> None:
        stats = self._engine.stats()
        self._metrics.gauge("m3_engine_running", stats.running)
        self._metrics.gauge("m3_engine_waiting", stats.waiting)
        self._metrics.gauge(
            "m3_engine_kv_share", stats.kv_pages_used / stats.kv_pages if stats.kv_pages else 0.0
        )

    def _sampling(self, request: GenerateRequest) -> Sampling:
        return Sampling(
            max_new_tokens=request.max_tokens or self._settings.default_max_tokens,
            temperature=0.0 if request.temperature < COLDEST else request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            stop=request.stop,
        )

    def _is_due(self, pending: _Pending, tokens_per_part: int | None) -> bool:
        if pending.finish_reason is not None:
            return True
        if tokens_per_part is None:
            return False
        if pending.is_first:
            return bool(pending.text)  # the first words go out at once
        waited_ms = (time.monotonic() - pending.since) * 1000.0
        return pending.n_tokens >= tokens_per_part or waited_ms >= self._settings.max_part_ms


class _Pending:
    """Token events that have not been yielded yet."""

    def __init__(self, text_tokens: int) -> None:
        self.text_tokens, self.is_first = text_tokens, True
        self._reset()

    def _reset(self) -> None:
        self.text, self.n_tokens, self.logprob = "", 0, 0.0
        self.finish_reason: str | None = None
        self.since = time.monotonic()

    def add(self, event: TokenEvent) -> None:
        self.text += event.text_delta
        self.n_tokens += 1
        self.logprob += event.logprob
        self.finish_reason = event.finish_reason

    def take(self) -> AnswerPart:
        part = AnswerPart(
            self.text, self.n_tokens, self.logprob, self.text_tokens, self.finish_reason
        )
        self.is_first = False
        self._reset()
        return part


def _n_characters(messages: Sequence[dict[str, Any]]) -> int:
    n = 0
    for message in messages:
        content = message.get("content") or ()
        if isinstance(content, str):
            n += len(content)
        else:
            n += sum(len(part.get("text") or "") for part in content)
    return n


def _sentence(error: Exception) -> str:
    text = str(error)
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
