"""A prompt and visual tokens in; the answer out, or several of them, in parts of a few tokens.

Knows the engine and the prompt's form; knows no pictures, no routing, no HTTP and no Ray.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from m3model.engine.interface import Engine, EngineStats, Sampling, TokenEvent
from m3model.errors import BadRequest as EngineRefusal
from m3model.errors import EngineBusy, EngineClosed, PromptTooLong, RequestFailed
from serve.errors import BadRequest, NotReady, QueueFull, ReplicaDied, ServiceError, as_sentence
from serve.metrics import Metrics
from serve.settings import ServeSettings
from serve.stages.in_time import in_time
from serve.stages.messages import AnswerPart, GenerateRequest, GeneratorStatus, TokenLogprob
from serve.stages.prompts import Prompts, too_long
from serve.telemetry import spans
from serve.telemetry.answering import AnswerTimes

if TYPE_CHECKING:
    import torch

    from m3model import M3Processor
    from m3model.engine.pieces import Pieces

# Below this a draw is the greedy choice in every digit that matters, and 1/t would overflow.
COLDEST = 1e-3
# In all answers to a request: some hundred megabytes, from the engine to the reply.
MOST_LOGPROBS = 100_000
UNLIKELY = -9999.0  # OpenAI's log-probability of what the model never says; JSON has no infinity


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
        from m3model.engine.pieces import Pieces

        self._engine, self._settings, self._metrics = engine, settings, metrics
        self._prompts = Prompts(processor, engine.max_length)
        self._pieces = Pieces(processor.tokenizer)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[AnswerPart]:
        """Yield the parts of each answer, the last of each with its finish reason.

        Closing the iterator, or cancelling its consumer, ends the generation within a token. Whole
        answers come together at the end: a replica that dies before has said nothing.

        Raises:
            BadRequest: the prompt does not fit the context.
            ReplicaDied: the engine took the request and died, perhaps of it.
            QueueFull, NotReady, TimedOut, ServiceError: as they say.
        """
        with spans.span("m3.generate", request.traceparent) as work:
            async with aclosing(cast(Any, self._generate(request, work))) as parts:
                async for part in parts:
                    yield part

    async def _generate(
        self, request: GenerateRequest, work: spans.Span
    ) -> AsyncIterator[AnswerPart]:
        import torch

        prompt = await self._prompts.ids(request.messages)
        text_tokens = len(prompt) - len(request.visual_tokens)
        tokens = [torch.from_numpy(array.copy()) for array in request.visual_tokens]
        self._check_logprobs(request, text_tokens + sum(map(len, tokens)))
        pieces = None if request.top_logprobs is None else self._pieces
        pending = [_Pending(index, text_tokens, pieces) for index in range(request.n)]
        whole, times = [], dict[int, AnswerTimes]()
        work.set(text_tokens=text_tokens, visual_tokens=sum(map(len, tokens)))
        try:
            async with aclosing(self._events(request, prompt, tokens, times)) as events:
                said = await in_time(anext(events, None), request.time_left_s)
                while said is not None:
                    index, event, cached = said
                    times[index].token(event.queued_s)
                    pending[index].add(event, cached)
                    if self._is_due(pending[index], request.tokens_per_part):
                        if request.tokens_per_part is None:
                            whole.append(pending[index].take())
                        else:
                            yield pending[index].take()
                    said = await anext(events, None)
            for part in whole:  # some have waited for others
                yield replace(part, since_first_ms=pending[part.index].since_first_ms)
        except PromptTooLong as error:
            raise too_long(error) from error
        except EngineRefusal as error:
            raise BadRequest(as_sentence(error)) from error
        except EngineBusy as error:
            raise QueueFull() from error
        except EngineClosed as error:
            raise (ReplicaDied() if times else NotReady()) from error
        except RequestFailed as error:
            raise ServiceError("The model failed on this request. Try again.") from error
        finally:
            self._note_load()
            for each in times.values():
                each.tell(self._metrics, work.traceparent)
            work.set(completion_tokens=sum(each.n_tokens for each in times.values()))

    async def status(self) -> GeneratorStatus:
        """Return the state of this replica."""
        stats = self._note_load()
        return GeneratorStatus(
            stats.running, stats.waiting, stats.visual_tokens, stats.heartbeat_s,
            stats.text_tokens, stats.kv_pages, stats.kv_pages_used, stats.alive,
        )  # fmt: skip

    async def check_health(self) -> None:
        """Return if the loop runs and the engine's worker is alive.

        Raises:
            NotReady: the worker has been silent for too long.
        """
        stats = self._note_load()
        if not stats.alive:
            raise NotReady("the engine is dead or closed")
        if stats.heartbeat_s > self._settings.heartbeat_limit_s:
            raise NotReady(f"the engine's worker is silent for {stats.heartbeat_s:.0f} s")

    def close(self) -> None:
        """Stop the engine and the thread."""
        self._prompts.close()
        self._engine.close()

    async def _events(
        self,
        request: GenerateRequest,
        prompt: list[int],
        visual: Sequence[torch.Tensor],
        times: dict[int, AnswerTimes],
    ) -> AsyncGenerator[tuple[int, TokenEvent, int]]:
        """Yield (which answer, its next token, prompt tokens that needed no reading).

        The first answer goes ahead until the prompt is read: the others find the keys and values of
        its pictures ready. Of the prompt, which counts once, its reading is the one that is told.
        """
        # The engine's ids are our own: callers may repeat theirs.
        names = [uuid.uuid4().hex for _ in range(request.n)]

        def submit(index: int) -> AsyncIterator[TokenEvent]:
            sampling, since = self._sampling(request, index), AnswerTimes()
            events = self._engine.submit(names[index], prompt, visual, sampling)
            times[index] = since  # the engine's own clock began after it
            return events

        first = submit(0)
        self._note_load()
        async with aclosing(cast(Any, first)) as events:
            if request.n == 1:
                async for event in events:
                    yield 0, event, event.cached_tokens
                return
            try:
                opening = await anext(events)
                cached = opening.cached_tokens
                # All are in the queue, or refused together, before anything is said.
                others = {index: submit(index) for index in range(1, request.n)}
                self._note_load()
                yield 0, opening, cached
                async with aclosing(_merged({0: events, **others})) as merged:
                    async for index, event in merged:
                        yield index, event, cached
            finally:
                for name in names:  # some may never have been listened to
                    self._engine.cancel(name)

    def _note_load(self) -> EngineStats:
        """Return the engine's load, now that the gauges tell it: also to probes and scrapes, or
        they would tell what the last request saw.
        """
        stats = self._engine.stats()
        self._metrics.gauge("m3_engine_running", stats.running)
        self._metrics.gauge("m3_engine_waiting", stats.waiting)
        self._metrics.gauge(
            "m3_engine_kv_share", stats.kv_pages_used / stats.kv_pages if stats.kv_pages else 0.0
        )
        return stats

    def _check_logprobs(self, request: GenerateRequest, prompt_tokens: int) -> None:
        """Return if as many log-probabilities as may come fit into a reply.

        Raises:
            BadRequest: they do not.
        """
        if request.top_logprobs is None:
            return
        most = request.max_tokens or self._settings.default_max_tokens
        tokens = request.n * min(most, self._engine.max_length - prompt_tokens)
        if tokens * (1 + request.top_logprobs) > MOST_LOGPROBS:
            raise BadRequest(
                f"The reply might hold more than {MOST_LOGPROBS:,} log-probabilities. Ask for "
                "fewer answers, a smaller max_tokens or a smaller top_logprobs.",
                "top_logprobs", "too_many_logprobs",
            )  # fmt: skip

    def _sampling(self, request: GenerateRequest, index: int) -> Sampling:
        return Sampling(
            max_new_tokens=request.max_tokens or self._settings.default_max_tokens,
            temperature=0.0 if request.temperature < COLDEST else request.temperature,
            top_p=request.top_p,
            seed=choice_seed(request.seed, index),
            stop=request.stop,
            top_logprobs=request.top_logprobs or 0,
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
    """Token events of one answer that have not been yielded yet.

    Args:
        index: of the answer.
        text_tokens: of the prompt.
        pieces: where the tokens themselves are wanted: told once their text is.
    """

    def __init__(self, index: int, text_tokens: int, pieces: Pieces | None) -> None:
        self._index, self._text_tokens, self._cached = index, text_tokens, 0
        self._pieces, self.is_first = pieces, True
        self._first_at: float | None = None
        self._untold: deque[TokenEvent] = deque()
        self._n_told = 0
        self._before: int | None = None  # the last told token that is text
        self._reset()

    def _reset(self) -> None:
        self.text, self.n_tokens, self.logprob = "", 0, 0.0
        self._logprobs: list[TokenLogprob] = []
        self.finish_reason: str | None = None
        self.since = time.monotonic()

    @property
    def since_first_ms(self) -> float:
        """Milliseconds since its first token came."""
        return 0.0 if self._first_at is None else (time.monotonic() - self._first_at) * 1000.0

    def add(self, event: TokenEvent, cached: int) -> None:
        self._cached = cached
        if self._first_at is None:
            self._first_at = time.monotonic()
        self.text += event.text_delta
        self.n_tokens += 1
        self.logprob += event.logprob
        self.finish_reason = event.finish_reason
        if self._pieces is not None:
            self._untold.append(event)
            self._tell(self._pieces, event.n_shown)

    def _tell(self, pieces: Pieces, n_shown: int) -> None:
        while self._n_told < n_shown:
            event = self._untold.popleft()
            self._n_told += 1
            top = tuple(_token(pieces, *each, self._before) for each in event.top)
            told = replace(_token(pieces, event.token_id, event.logprob, self._before), top=top)
            self._logprobs.append(told)
            if told.raw is not None:
                self._before = event.token_id

    def take(self) -> AnswerPart:
        part = AnswerPart(
            self.text, self.n_tokens, self.logprob, self._text_tokens, self.finish_reason,
            self._cached, self._index, tuple(self._logprobs), self.since_first_ms,
        )  # fmt: skip
        self.is_first = False
        self._reset()
        return part


def _token(pieces: Pieces, token_id: int, logprob: float, before: int | None) -> TokenLogprob:
    piece = pieces.of(token_id, before)
    return TokenLogprob(piece.text, piece.raw, max(logprob, UNLIKELY))


def choice_seed(seed: int | None, index: int) -> int | None:
    """Return the seed of one of several answers; the first has the request's own.

    No two of nearby seeds share an answer, as they would if these were added up.
    """
    if seed is None or index == 0:
        return seed
    digest = hashlib.blake2b(f"{seed} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


async def _merged(
    streams: Mapping[int, AsyncIterator[TokenEvent]],
) -> AsyncGenerator[tuple[int, TokenEvent]]:
    """Yield (which stream, its next event) as they come; the first failure ends all."""
    said: asyncio.Queue[tuple[int, TokenEvent] | Exception | None] = asyncio.Queue()

    async def listen(index: int, stream: AsyncIterator[TokenEvent]) -> None:
        try:
            async for event in stream:
                said.put_nowait((index, event))
            said.put_nowait(None)
        except Exception as error:
            said.put_nowait(error)

    tasks = [asyncio.create_task(listen(*each)) for each in streams.items()]
    left = len(tasks)
    try:
        while left:
            item = await said.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
