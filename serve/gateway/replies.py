"""What the service says: a finished or growing trace as OpenAI's reply types.

Pure functions from values to wire types; knows nothing of queues, HTTP or models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, cast

from router.actions import Reading
from router.decision import Reason
from serve.protocol import (
    AnswerMessage,
    ChatChunk,
    ChatCompletion,
    Choice,
    ChunkChoice,
    CountedChunk,
    CountedTokens,
    Delta,
    Likely,
    Logprobs,
    PromptTokensDetails,
    RouteReply,
    RouteUsage,
    TokenLogprob,
    Usage,
)
from serve.routing_reply import Certified, Focused, Routing, SecondLooked

if TYPE_CHECKING:
    from serve.gateway.request_trace import FirstLook, Trace
    from serve.stages import messages
    from serve.stages.messages import AnswerPart, Encoded

FinishReason = Literal["stop", "length"]


def completion(trace: Trace) -> ChatCompletion:
    """Return the whole reply of a finished trace."""
    return ChatCompletion(
        id=trace.reply_id,
        created=trace.created,
        model=trace.body.model,
        choices=[
            Choice(
                index=index,
                message=AnswerMessage(content=choice.text),
                logprobs=_logprobs(trace, choice.logprobs),
                finish_reason=_finish_reason(choice.finish_reason),
            )
            for index, choice in enumerate(trace.choices)
        ],
        usage=_usage(trace),
        routing=_routing(trace),
    )


def first_chunks(trace: Trace) -> Iterator[ChatChunk]:
    """Yield the chunks that open the answers of a stream: the role, and once the decision."""
    for index in range(len(trace.choices)):
        opening = ChunkChoice(index=index, delta=Delta(role="assistant", content=""))
        yield _chunk(trace, [opening], routing=None if index else _routing(trace))


def chunks(trace: Trace, part: AnswerPart) -> list[ChatChunk]:
    """Return what a part says and why its answer ended, if it did; the last with the decision."""
    told = []
    if part.text or part.logprobs:
        said = ChunkChoice(
            index=part.index, delta=Delta(content=part.text),
            logprobs=_logprobs(trace, part.logprobs),
        )  # fmt: skip
        told.append(_chunk(trace, [said]))
    if part.finish_reason is not None:
        end = ChunkChoice(
            index=part.index, delta=Delta(), finish_reason=_finish_reason(part.finish_reason)
        )
        told.append(_chunk(trace, [end], routing=_routing(trace) if trace.all_ended else None))
    return told


def usage_chunk(trace: Trace) -> ChatChunk:
    """Return the chunk with the token counts, which has no choice."""
    return _chunk(trace, [], usage=_usage(trace))


def route_reply(trace: Trace) -> RouteReply:
    """Return the decision without an answer."""
    encoded = cast("Encoded", trace.encoded)
    image, text = encoded.decision.visual_tokens, encoded.text_tokens
    counted = CountedTokens(image_tokens=image, text_tokens=text)
    usage = RouteUsage(prompt_tokens=image + text, prompt_tokens_details=counted)
    return RouteReply(model=trace.body.model, usage=usage, routing=_routing(trace))


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
    counts = options is not None and options.include_usage
    return (CountedChunk if counts else ChatChunk)(
        id=trace.reply_id,
        created=trace.created,
        model=trace.body.model,
        choices=choices,
        routing=routing,
        usage=usage,
    )


def _finish_reason(reason: str | None) -> FinishReason:
    return cast(FinishReason, reason or "stop")


def _logprobs(trace: Trace, tokens: Sequence[messages.TokenLogprob]) -> Logprobs | None:
    if not trace.body.logprobs:
        return None
    return Logprobs(
        content=[
            TokenLogprob(**_likely(token), top_logprobs=[Likely(**_likely(t)) for t in token.top])
            for token in tokens
        ]
    )


def _likely(token: messages.TokenLogprob) -> dict[str, Any]:
    raw = None if token.raw is None else list(token.raw)
    return {"token": token.token, "logprob": token.logprob, "bytes": raw}


def _usage(trace: Trace) -> Usage:
    encoded = cast("Encoded", trace.encoded)
    prompt, answer = trace.prompt_tokens, trace.completion_tokens
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=answer,
        total_tokens=prompt + answer,
        prompt_tokens_details=PromptTokensDetails(
            image_tokens=encoded.decision.visual_tokens,
            text_tokens=trace.text_tokens,
            cached_tokens=trace.cached_tokens,
        ),
    )


def _routing(trace: Trace) -> Routing:
    decision = cast("Encoded", trace.encoded).decision
    reading = decision.readings[0] if len(decision.readings) == 1 else None
    return Routing(
        scale=decision.scale,
        scales=list(decision.scales),
        action=reading and reading.action,
        visual_tokens=decision.visual_tokens,
        reason=decision.reason.value,
        p_suffices=_by_scale(decision.p_suffices),
        router_version=decision.router_version or None,
        latency_ms=round(decision.latency_ms, 3),
        focus=reading and _focused(reading),
        explain=decision.explanation,
        certified=decision.certified and Certified(**asdict(decision.certified)),
        price=decision.price if decision.reason is Reason.degraded else None,
        second_look=trace.first and _second_look(trace.first, decision.visual_tokens),
    )


def _focused(reading: Reading) -> Focused | None:
    if reading.fine is None:
        return None
    return Focused(
        coarse=reading.scale,
        fine=reading.fine,
        cells=list(reading.cells),
        visual_tokens=reading.visual_tokens,
    )


def _second_look(first: FirstLook, both: int) -> SecondLooked:
    tokens = first.reading.visual_tokens
    told = {
        "from": first.reading.scale,
        "confidence": round(first.confidence, 6),
        "first_visual_tokens": tokens,
        "second_visual_tokens": both - tokens,
        "focus": _focused(first.reading),
    }
    return SecondLooked.model_validate(told)


def _by_scale(numbers: dict[int | str, float] | None) -> dict[str, float] | None:
    return None if numbers is None else {str(key): float(p) for key, p in numbers.items()}
