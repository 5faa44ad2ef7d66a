"""What the service says: a finished or growing trace as OpenAI's reply types.

Pure functions from values to wire types; knows nothing of queues, HTTP or models.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Literal, cast

from router.decision import Reason
from serve.protocol import (
    AnswerMessage,
    Certified,
    ChatChunk,
    ChatCompletion,
    Choice,
    ChunkChoice,
    Delta,
    PromptTokensDetails,
    RouteReply,
    Routing,
    SecondLooked,
    Usage,
)

if TYPE_CHECKING:
    from serve.gateway.request_trace import FirstLook, Trace
    from serve.stages.messages import Encoded

FinishReason = Literal["stop", "length"]


def completion(trace: Trace) -> ChatCompletion:
    """Return the whole reply of a finished trace."""
    return ChatCompletion(
        id=trace.reply_id,
        created=trace.created,
        model=trace.body.model,
        choices=[
            Choice(message=AnswerMessage(content=trace.text), finish_reason=_finish_reason(trace))
        ],
        usage=_usage(trace),
        routing=_routing(trace),
    )


def first_chunk(trace: Trace) -> ChatChunk:
    """Return the chunk that opens a stream: the role and the decision."""
    delta = ChunkChoice(delta=Delta(role="assistant", content=""))
    return _chunk(trace, [delta], routing=_routing(trace))


def text_chunk(trace: Trace, text: str) -> ChatChunk:
    """Return a chunk with some of the answer."""
    return _chunk(trace, [ChunkChoice(delta=Delta(content=text))])


def last_chunk(trace: Trace) -> ChatChunk:
    """Return the chunk that closes a stream: why it ended, and the decision again."""
    end = ChunkChoice(delta=Delta(), finish_reason=_finish_reason(trace))
    return _chunk(trace, [end], routing=_routing(trace))


def usage_chunk(trace: Trace) -> ChatChunk:
    """Return the chunk with the token counts, which has no choice."""
    return _chunk(trace, [], usage=_usage(trace))


def route_reply(trace: Trace) -> RouteReply:
    """Return the decision without an answer."""
    return RouteReply(model=trace.body.model, routing=_routing(trace))


def _chunk(
    trace: Trace,
    choices: list[ChunkChoice],
    *,
    routing: Routing | None = None,
    usage: Usage | None = None,
) -> ChatChunk:
    options = trace.body.stream_options
    if options is not None and options.continuous_usage_stats:
        usage = _usage(trace)
    return ChatChunk(
        id=trace.reply_id,
        created=trace.created,
        model=trace.body.model,
        choices=choices,
        routing=routing,
        usage=usage,
    )


def _finish_reason(trace: Trace) -> FinishReason:
    return cast(FinishReason, trace.finish_reason or "stop")


def _usage(trace: Trace) -> Usage:
    encoded = cast("Encoded", trace.encoded)
    prompt, answer = trace.prompt_tokens, trace.completion_tokens
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=answer,
        total_tokens=prompt + answer,
        prompt_tokens_details=PromptTokensDetails(
            image_tokens=encoded.decision.visual_tokens, text_tokens=trace.text_tokens
        ),
    )


def _routing(trace: Trace) -> Routing:
    decision = cast("Encoded", trace.encoded).decision
    return Routing(
        scale=decision.scale,
        visual_tokens=decision.visual_tokens,
        reason=decision.reason.value,
        p_suffices=_by_scale(decision.p_suffices),
        router_version=decision.router_version or None,
        latency_ms=round(decision.latency_ms, 3),
        explain=decision.explanation,
        certified=decision.certified and Certified(**asdict(decision.certified)),
        price=decision.price if decision.reason is Reason.degraded else None,
        second_look=trace.first and _second_look(trace.first, decision.visual_tokens),
    )


def _second_look(first: FirstLook, both: int) -> SecondLooked:
    told = {
        "from": first.scale,
        "confidence": round(first.confidence, 6),
        "first_visual_tokens": first.visual_tokens,
        "second_visual_tokens": both - first.visual_tokens,
    }
    return SecondLooked.model_validate(told)


def _by_scale(numbers: dict[int, float] | None) -> dict[str, float] | None:
    return None if numbers is None else {str(scale): float(p) for scale, p in numbers.items()}
