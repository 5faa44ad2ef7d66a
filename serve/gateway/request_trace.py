"""What is known about one request while it is worked on, and the record it leaves behind.

Knows the stages' values and the decision record; knows nothing of queues, retries or HTTP.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, cast

from m3model.engine.recipe import cut_after
from router.actions import Reading
from router.decision import Reason
from router.records import DecisionRecord
from router.records.rows import SERVICE_FAULTS
from router.wishes import constraints_to_json
from serve.gateway.call import Call
from serve.gateway.question import ParsedRequest
from serve.metrics import Metrics
from serve.protocol import REPLY_ID_PREFIX, ChatRequest
from serve.settings import ServeSettings
from serve.stages.messages import (
    AnswerPart,
    Encoded,
    GenerateRequest,
    TokenLogprob,
    focus_name,
)
from serve.telemetry import spans


@dataclass(frozen=True)
class FirstLook:
    """The answer that a second look replaced: what it read, its confidence and tokens."""

    reading: Reading
    confidence: float
    text_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass
class ChoiceSoFar:
    """One of the answers to a request, as far as it has come."""

    text: str = ""
    logprob: float = 0.0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, part: AnswerPart) -> None:
        """Take a part of it in."""
        self.text += part.text
        self.logprob += part.logprob
        self.logprobs += part.logprobs
        self.finish_reason = part.finish_reason or self.finish_reason


@dataclass
class Trace:
    """What is known about one request so far; becomes its decision record."""

    call: Call
    endpoint: str
    body: ChatRequest
    started: float = field(default_factory=time.perf_counter)
    created: int = field(default_factory=lambda: int(time.time()))
    parsed: ParsedRequest | None = None
    encoded: Encoded | None = None
    first: FirstLook | None = None
    text_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0  # of all choices
    status: str = "cancelled"
    deaths: int = 0  # replicas that died while they worked on it
    together: int = 1  # requests in flight when it was admitted, itself among them
    begun: bool = False  # an answer has
    refused: bool = True  # nothing was done for it: its time is no latency
    charged: int = 0  # visual tokens taken off its tenant's budget
    span: spans.Span = spans.OFF
    signed_id: str | None = None  # of its reply, where feedback can be given on it
    logged_as: str | None = None  # its name in the log, where others had its id before

    def charge(self, visual_tokens: int) -> None:
        """Take off its tenant's budget what will be read, before anything is.

        Raises:
            RateLimited: the budget is used up; never for the second of two looks.
        """
        if self.call.budget is not None:
            (self.call.budget.owe if self.charged else self.call.budget.take)(visual_tokens)
        self.charged += visual_tokens

    def give_back(self) -> None:
        """Give the charge back, the service having failed, if nothing was answered before."""
        if not self.completion_tokens:
            if self.call.budget is not None:
                self.call.budget.give_back(self.charged)
            self.charged = 0

    def __post_init__(self) -> None:
        self.choices = [ChoiceSoFar() for _ in range(self.body.n)]

    def add(self, part: AnswerPart) -> None:
        """Take a part of an answer in."""
        self.choices[part.index].add(part)
        self.text_tokens = part.text_tokens + (self.first.text_tokens if self.first else 0)
        self.cached_tokens = part.cached_tokens + (self.first.cached_tokens if self.first else 0)
        self.completion_tokens += part.n_tokens

    @property
    def all_ended(self) -> bool:
        """Whether no answer goes on."""
        return all(choice.finish_reason is not None for choice in self.choices)

    def generate_request(self, tokens_per_part: int | None) -> GenerateRequest:
        """Return what the generator is asked, once the picture is encoded."""
        body, parsed = self.body, cast(ParsedRequest, self.parsed)
        return GenerateRequest(
            request_id=self.call.request_id,
            messages=parsed.messages,
            visual_tokens=cast(Encoded, self.encoded).visual_tokens,
            max_tokens=self._max_tokens,
            temperature=body.temperature or 0.0,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=body.seed,
            stop=body.stop_strings(),
            tokens_per_part=tokens_per_part,
            n=body.n,
            top_logprobs=body.top_logprobs if body.logprobs else None,
            traceparent=self.span.traceparent,
        )

    def look_again(self, parts: Sequence[AnswerPart], confidence: float, finer: Reading) -> None:
        """Take in that another answer follows, which reads more; tokens count for both."""
        encoded = cast(Encoded, self.encoded)
        decision = encoded.decision
        self.completion_tokens = sum(part.n_tokens for part in parts)
        self.first = FirstLook(
            decision.readings[0], confidence, parts[-1].text_tokens, self.completion_tokens,
            parts[-1].cached_tokens,
        )  # fmt: skip
        told = decision.explanation and decision.explanation.before_second_look(
            confidence, finer.words
        )
        both = decision.visual_tokens + finer.visual_tokens
        decision = replace(
            decision, scale=finer.scale, readings=(finer,), visual_tokens=both, explanation=told
        )
        self.encoded = replace(encoded, decision=decision)

    def tell_span(self) -> None:
        """Attach to the span what is known now; no word of question or answer."""
        self.span.set(
            request_id=self.call.request_id, status=self.status,
            completion_tokens=self.completion_tokens, prompt_tokens=self.prompt_tokens,
        )  # fmt: skip
        if self.encoded is not None:
            decision = self.encoded.decision
            self.span.set(
                scale=decision.scale, reason=decision.reason.value,
                scales=decision.scales if len(decision.scales) > 1 else None,
                visual_tokens=decision.visual_tokens, router_version=decision.router_version,
                focus=focus_name(decision.readings),
                first_scale=None if self.first is None else self.first.reading.scale,
                first_focus=None if self.first is None else focus_name((self.first.reading,)),
            )  # fmt: skip

    def count_for_arm(self, metrics: Metrics) -> None:
        """Count the answer for the router that was to decide, one of two where one is tried."""
        if self.encoded is None:
            return
        arm, decision = self.encoded.arm, self.encoded.decision
        metrics.count("m3_arm_requests", arm=arm)
        metrics.count("m3_arm_visual_tokens", decision.visual_tokens, arm=arm)
        if decision.reason is Reason.fallback or self.status in SERVICE_FAULTS:
            metrics.count("m3_arm_failures", arm=arm)
        metrics.count("m3_arm_latency_ms", self.elapsed_ms, arm=arm)

    @property
    def reply_id(self) -> str:
        """The id of its reply."""
        return self.signed_id or REPLY_ID_PREFIX + self.call.request_id

    @property
    def group_id(self) -> str | None:
        """What its caller says it belongs to."""
        return None if self.body.routing is None else self.body.routing.group_id

    @property
    def elapsed_ms(self) -> float:
        """Milliseconds since the request arrived."""
        return (time.perf_counter() - self.started) * 1000.0

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt that reached the language model, visual ones included."""
        if self.encoded is None or not self.text_tokens:
            return 0
        return self.text_tokens + self.encoded.decision.visual_tokens

    def decision_record(
        self, settings: ServeSettings, scales: tuple[int, ...], audited: bool
    ) -> DecisionRecord:
        """Return the record; question and answer are in it only where they may be stored.

        Args:
            settings: of the service.
            scales: of the model, ascending.
            audited: drawn independently of everything about the request.
        """
        may_keep = settings.log_prompts or (settings.log_images and audited)
        encoded = self.encoded
        decision = None if encoded is None else encoded.decision
        held_to = None if encoded is None else encoded.constraints
        body, limit = self.body, self._max_tokens or settings.default_max_tokens
        bound = None if decision is None else decision.certified
        p_suffices = None
        if decision is not None and decision.p_suffices is not None:
            p_suffices = tuple(decision.p_suffices[scale] for scale in scales)
        answered = self.completion_tokens > 0
        told = self.choices[0]  # of several answers one stands for all
        return DecisionRecord(
            request_id=self.logged_as or self.call.request_id,
            time_utc=datetime.now(UTC),
            picture_ids=() if encoded is None else encoded.picture_ids,
            question=self.parsed.question if may_keep and self.parsed is not None else None,
            model=body.model,
            scale=0 if decision is None else decision.scale,
            visual_tokens=0 if decision is None else decision.visual_tokens,
            reason="" if decision is None else decision.reason.value,
            p_suffices=p_suffices,
            price=None if decision is None else decision.price,
            router_version="" if decision is None else decision.router_version,
            answer=told.text if may_keep and answered else None,
            confidence=math.exp(told.logprob) if answered else None,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            route_ms=0.0 if decision is None else decision.latency_ms,
            encode_ms=0.0 if encoded is None else encoded.encode_ms,
            total_ms=self.elapsed_ms,
            audited=audited,
            status=self.status,
            max_harm=None if bound is None else bound.max_harm,
            escalated_from=None if self.first is None else self.first.reading.scale,
            first_confidence=None if self.first is None else self.first.confidence,
            tenant=self.call.tenant or None,
            scales=None if decision is None else decision.scales,
            actions=None if decision is None else tuple(r.action for r in decision.readings),
            action_space=None if encoded is None else encoded.action_space,
            cells=None if decision is None else tuple(r.cells for r in decision.readings),
            constraints=None if held_to is None else constraints_to_json(held_to),
            second_look=None if held_to is None else held_to.second_look,
            temperature=body.temperature or 0.0,
            max_tokens=limit,
            messages=self._messages() if may_keep else None,
            certificate=None if encoded is None else encoded.certificate,
            arm=None if encoded is None else encoded.arm,
            group_id=self.group_id,
            shadow=None if encoded is None else encoded.shadow,
            label_recipe=cut_after(encoded.label_recipe, limit) if encoded else None,
        )

    @property
    def _max_tokens(self) -> int | None:
        """After how many tokens an answer ends, where the request says so."""
        return self.body.max_completion_tokens or self.body.max_tokens

    def _messages(self) -> str | None:
        """Return the conversation as JSON; the last turn also says what ends an answer to it.

        A picture is told by its identity. None where there is no answer: a conversation that was
        answered is no longer than the context, others may be as long as a body.
        """
        if self.parsed is None or self.encoded is None or self.status != "ok":
            return None
        names = iter(self.encoded.picture_ids)

        def told(part: dict[str, Any]) -> dict[str, Any]:
            return part if part["type"] == "text" else {**part, "picture_id": next(names)}

        messages = [
            message
            if isinstance(message["content"], str)
            else {**message, "content": [told(part) for part in message["content"]]}
            for message in self.parsed.messages
        ]
        if stop := self.body.stop_strings():
            messages[-1] = {**messages[-1], "stop": list(stop)}
        return json.dumps(messages, ensure_ascii=False)
