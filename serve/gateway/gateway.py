"""One request from parsed body to logged decision: admission, the two stages, retries, the reply.

Knows the protocol, the two stages and the log; knows neither HTTP nor Ray nor torch. A picture is
encoded once: a generator that cannot answer costs another try with the tokens already here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from router.actions import Reading
from router.decision import Reason
from serve.errors import DiedAgain, NotReady, QueueFull, ReplicaDied, ServiceError, TimedOut
from serve.gateway import replies
from serve.gateway.admission import Admission
from serve.gateway.call import Call
from serve.gateway.ending import Ending
from serve.gateway.escalation import looked_again
from serve.gateway.health import Health
from serve.gateway.question import (
    TAKEN_APART_AT_ONCE,
    ParsedRequest,
    needs_second_look,
    parse_request,
)
from serve.gateway.request_log import RequestLog
from serve.gateway.request_trace import Trace
from serve.metrics import Metrics
from serve.protocol import ChatChunk, ChatCompletion, ChatRequest, FeedbackRequest, RouteReply
from serve.settings import ServeSettings
from serve.stages.checkpoint import ModelCard
from serve.stages.messages import (
    AnswerPart,
    Encoded,
    EncodeRequest,
    EncoderStage,
    GenerateRequest,
    GeneratorStage,
    PoolRequest,
    focus_name,
)
from serve.telemetry import logs, spans

LOG = logging.getLogger(__name__)
Result = TypeVar("Result")
RETRY_WAIT_S = 0.2
LAST_WORDS_S = 3.0  # for what is ended by force to say so
MOST_TOLD_AT_ONCE = 4_000  # log-probabilities: some 25 ms


class Gateway:
    """One gateway replica.

    Args:
        encoder, generator: the two stages, here or elsewhere.
        card: of the model.
        settings: of the service.
        metrics: where measurements go.
        log: where requests are written down.
    """

    def __init__(
        self,
        encoder: EncoderStage,
        generator: GeneratorStage,
        card: ModelCard,
        settings: ServeSettings,
        metrics: Metrics,
        log: RequestLog,
    ) -> None:
        self.card, self.settings, self.metrics = card, settings, metrics
        self._encoder, self._generator, self.log = encoder, generator, log
        self.admission, self._ending = Admission(settings, metrics), Ending()
        self._suspects = asyncio.Lock()
        self._health = Health(encoder, generator, settings)
        self.started_at = int(time.time())

    @contextmanager
    def _worked_on(self, trace: Trace) -> Iterator[None]:
        """Count a request in and write it down; see `Admission.admitted` and `_recorded`."""
        with self._recorded(trace), self.admission.admitted(trace.call.n_bytes) as n:
            trace.together = n
            if trace.endpoint == "chat":
                self.log.name(trace)
                if trace.call.budget is not None:
                    trace.call.budget.check()
            trace.refused = False
            yield

    async def complete(self, body: ChatRequest, call: Call) -> ChatCompletion:
        """Return the whole answer.

        Raises:
            ServiceError: what went wrong, for the caller.
        """
        trace = Trace(call, "chat", body)
        with self._worked_on(trace):
            async with aclosing(self._answer(trace, tokens_per_part=None)) as parts:
                async for part in parts:
                    trace.add(part)
            n_tokens = sum(len(choice.logprobs) for choice in trace.choices)
            return await self._told(trace, n_tokens, replies.completion, trace)

    async def stream(self, body: ChatRequest, call: Call) -> AsyncGenerator[ChatChunk]:
        """Yield the answer's chunks; the first comes only when there is something to say.

        Raises:
            ServiceError: what went wrong; before the first chunk nothing was sent yet.
        """
        trace = Trace(call, "chat", body)
        with self._worked_on(trace):
            async with aclosing(self._answer(trace, self.settings.tokens_per_part)) as parts:
                first = True
                async for part in parts:
                    trace.add(part)
                    if first:
                        # Of streams only: a whole answer comes as one part, at its end.
                        self.metrics.observe("m3_first_token_latency_ms", trace.elapsed_ms)
                        for chunk in replies.first_chunks(trace):
                            yield chunk
                        first = False
                    told = await self._told(trace, len(part.logprobs), replies.chunks, trace, part)
                    for chunk in told:
                        yield chunk
            if body.stream_options is not None and body.stream_options.include_usage:
                yield replies.usage_chunk(trace)

    async def _told(
        self, trace: Trace, n_tokens: int, say: Callable[..., Result], *what: Any
    ) -> Result:
        """Return what a function says; many tokens' log-probabilities hold up nobody else."""
        if n_tokens * (1 + trace.body.top_logprobs) > MOST_TOLD_AT_ONCE:
            return await asyncio.to_thread(say, *what)
        return say(*what)

    def refused(self, call: Call, error: ServiceError) -> None:
        """Count and write down a request whose body could not even be read."""
        self.turned_away(error)
        self._count_for_tenant(call, _word(error))
        self.log.write_unread(call, _word(error))

    def turned_away(self, error: ServiceError) -> None:
        """Count a request that was let in nowhere; strangers write nothing into the log."""
        self.metrics.count("m3_requests", endpoint="any", status=_word(error))

    def feedback(self, body: FeedbackRequest, call: Call) -> None:
        """Write feedback down.

        Raises:
            BadRequest: it says nothing.
            NotReady: there is no log.
            NotFound: on no answer that its tenant was given.
        """
        status = "ok"
        try:
            self.log.feedback(body, call)
        except ServiceError as error:
            status = _word(error)
            raise
        finally:
            self.metrics.count("m3_requests", endpoint="feedback", status=status)
            self._count_for_tenant(call, status)

    async def route(self, body: ChatRequest, call: Call) -> RouteReply:
        """Return the decision without an answer.

        Raises:
            ServiceError: what went wrong, for the caller.
        """
        trace = Trace(call, "route", body)
        with self._worked_on(trace):
            await self._encode(trace, decide_only=True)
            return replies.route_reply(trace)

    async def health(self) -> dict[str, Any]:
        """Return the state of the service; ``status`` is "ok" when every part answers."""
        status, encoder, generator = await self._health.parts()
        if self.admission.draining and status == "ok":
            status = "stopping"
        return {
            "status": status,
            "model": self.card.name,
            "scales": list(self.card.scales),
            "router_version": None if encoder is None else encoder.router_version or None,
            "router_ok": encoder is not None and encoder.router_ok,
            "restricted": None if encoder is None else encoder.restricted or None,
            "inflight": self.admission.inflight,
            "encoder": encoder and asdict(encoder),
            "engine": generator and asdict(generator),
        }

    async def ready(self) -> bool:
        """Return whether a request that came now would be answered."""
        ready = not self.admission.draining and await self._health.ready()
        self.metrics.gauge("m3_ready", ready)
        return ready

    async def drain(self) -> bool:
        """Take no further requests; return whether all in flight ended in time.

        The others are ended then: with an error, as an event where the answer has begun.
        """
        ended = await self.admission.drain()
        if not ended:
            self._ending.come()
            await self.admission.emptied(LAST_WORDS_S)
        await self.log.settle()
        return ended

    async def _encode(self, trace: Trace, *, decide_only: bool) -> Encoded:
        with spans.span("m3.parse", trace.span.traceparent):
            parse = partial(parse_request, trace.body, self.card.scales, self.settings)
            small = 0 < trace.call.n_bytes <= TAKEN_APART_AT_ONCE
            parsed = trace.parsed = parse() if small else await asyncio.to_thread(parse)
        request = EncodeRequest(
            parsed.pictures, parsed.question, parsed.constraints, decide_only=decide_only,
            needs_second_look=needs_second_look(trace.body), tenant=trace.call.tenant,
            group_id=trace.group_id, prompt=parsed.messages, traceparent=trace.span.traceparent,
            pressure=self.admission.pressure, time_left_s=self._left_s(trace),
        )  # fmt: skip
        encoded = trace.encoded = await self._of_encoder(
            trace, lambda: self._encoder.encode_and_route(request)
        )
        decision = encoded.decision
        for scale in decision.scales or (0,):
            self.metrics.count("m3_decisions", scale=str(scale), reason=decision.reason.value)
        if (focus := focus_name(decision.readings)) is not None:
            self.metrics.count("m3_focus_decisions", focus=focus)
        if decision.reason is Reason.degraded:
            self.metrics.gauge("m3_price_floor", decision.price or 0.0)
        if not decide_only:
            trace.charge(decision.visual_tokens)
            finest = self.card.scales[-1] * len(parsed.pictures)
            self.metrics.count("m3_visual_tokens", decision.visual_tokens)
            self.metrics.count("m3_visual_tokens_finest", finest)
        return encoded

    async def _of_encoder(self, trace: Trace, call: Callable[[], Awaitable[Result]]) -> Result:
        attempt = 0
        while True:
            try:
                return await self._in_time(trace, self._alone(call) if trace.deaths else call())
            except NotReady as error:
                await self._before_another(trace, error, attempt, "m3_encoder_retries")
                attempt += 1

    async def _alone(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """Try again what was with an encoder that died, one request of this gateway at a time.

        One of them may be what kills; together, the others would die with it once more.
        """
        async with self._suspects:
            return await call()

    async def _before_another(
        self, trace: Trace, error: NotReady, attempt: int, counter: str
    ) -> None:
        """Return, after a pause, if what failed may be tried on another replica.

        A replica that could not take the request was not harmed by it; one that died while it
        worked may have died of it, so that is risked once more and no further.

        Raises:
            NotReady: the error, since it may not.
        """
        if isinstance(error, ReplicaDied):
            trace.deaths += 1
            self.metrics.count("m3_replica_deaths")
        if trace.deaths > 1:
            raise DiedAgain() from error
        if attempt >= self.settings.retries or self._ending.has_come:
            raise error
        self.metrics.count(counter)
        LOG.warning(
            "request %s is tried again, attempt %d failed: %s (%s)", trace.call.request_id,
            attempt + 1, type(error).__name__, type(error.__cause__).__name__,
        )  # fmt: skip
        await asyncio.sleep(RETRY_WAIT_S * 2**attempt)

    async def _answer(
        self, trace: Trace, tokens_per_part: int | None
    ) -> AsyncGenerator[AnswerPart]:
        """Yield the parts of the answer that counts, after one look or two."""
        encoded = await self._encode(trace, decide_only=False)
        request, parsed = trace.generate_request(tokens_per_part), cast(ParsedRequest, trace.parsed)

        def pool(reading: Reading, parent: str | None) -> Awaitable[NDArray[np.float16]]:
            wanted = PoolRequest(encoded.picture_ids[0], parsed.pictures[0], reading, parent)
            return self._of_encoder(trace, lambda: self._encoder.pool(wanted))

        if (look := encoded.decision.open_look) is None:
            parts = self._parts(request, trace)
        else:
            ask = partial(self._parts, trace=trace)
            parts = looked_again(request, look, trace, ask, pool, self.metrics)
        async with aclosing(parts):
            async for part in parts:
                yield part

    async def _parts(self, request: GenerateRequest, trace: Trace) -> AsyncGenerator[AnswerPart]:
        """Yield the parts; a replica that fails before the first one costs a further try."""
        begun, attempt = False, 0
        while True:
            try:
                request = replace(request, time_left_s=self._left_s(trace))
                async with aclosing(cast(Any, self._generator.generate(request))) as parts:
                    while (part := await self._in_time(trace, anext(parts, None))) is not None:
                        if not (begun or trace.begun or attempt):
                            waited_s = (trace.elapsed_ms - part.since_first_ms) / 1000.0
                            self.admission.begun(waited_s, trace.together)
                        begun = trace.begun = True
                        yield part
                return
            except NotReady as error:
                if begun:
                    raise
                await self._before_another(trace, error, attempt, "m3_generator_retries")
                attempt += 1

    def _left_s(self, trace: Trace) -> float:
        ours = self.settings.request_timeout_s - trace.elapsed_ms / 1000.0
        return min(ours, trace.call.left_s)

    async def _in_time(self, trace: Trace, work: Awaitable[Result]) -> Result:
        limit_s, theirs = self.settings.request_timeout_s, trace.call.timeout_s
        what = f"{limit_s:g} s"
        if theirs is not None and theirs < limit_s:
            what = f"the {theirs:g} s of its timeout header"
        return await self._ending.or_in_time(
            work,
            self._left_s(trace),
            f"The request took longer than {what}. Ask for fewer tokens, or try again when the "
            "service is less busy.",
        )

    @contextmanager
    def _recorded(self, trace: Trace) -> Iterator[None]:
        """Turn surprises into errors for the caller; write the request down whatever happens."""
        trace.span = spans.span(
            "m3.request", trace.call.traceparent, serves=True, endpoint=trace.endpoint
        )
        with trace.span, self._counted(trace):
            yield

    @contextmanager
    def _counted(self, trace: Trace) -> Iterator[None]:
        try:
            yield
            trace.status = "ok"
        except ServiceError as error:
            trace.status = _word(error)
            # Wrong in itself, or too much for now: turned down before, or instead of, the work.
            wrong = 400 <= error.status < 500 and not isinstance(error, TimedOut)
            trace.refused |= isinstance(error, QueueFull) or (wrong and trace.encoded is None)
            # One who leaves, or gives the service too little time, has had the work done.
            if not isinstance(error, TimedOut):
                trace.give_back()
            raise
        except Exception as error:
            trace.status = "internal_error"
            trace.give_back()
            told = logs.failure(error, words=self.settings.log_prompts)
            LOG.error("request %s failed\n%s", trace.call.request_id, told)
            raise ServiceError(
                "The service failed on this request. Try again; if it happens again, report the "
                f"request id {trace.call.request_id}."
            ) from error
        finally:
            self.metrics.count("m3_requests", endpoint=trace.endpoint, status=trace.status)
            self.metrics.count("m3_completion_tokens", trace.completion_tokens)
            self._count_for_tenant(trace.call, trace.status, trace.charged, trace.completion_tokens)
            if not trace.refused:
                self.metrics.observe("m3_request_latency_ms", trace.elapsed_ms)
            if trace.endpoint == "chat":
                trace.count_for_arm(self.metrics)
                self.metrics.count("m3_pictures_not_logged", self.log.write(trace))
                for name, count in self.log.news().items():
                    self.metrics.count(name, count)
            trace.tell_span()

    def _count_for_tenant(
        self, call: Call, status: str, visual_tokens: int = 0, completion_tokens: int = 0
    ) -> None:
        if tenant := call.tenant:
            self.metrics.count("m3_tenant_requests", tenant=tenant, status=status)
            self.metrics.count("m3_tenant_visual_tokens", visual_tokens, tenant=tenant)
            self.metrics.count("m3_tenant_completion_tokens", completion_tokens, tenant=tenant)


def _word(error: ServiceError) -> str:
    """Return the error as metrics and records name it."""
    return error.code or type(error).__name__
