"""A chat request taken apart: the conversation, its pictures as bytes, the question, the wishes.

A knob is honoured or refused by name, never ignored.

Knows the wire types and what makes a request impossible; knows nothing of models, queues or HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from router.decision import Constraints, resolve_constraints
from router.errors import RoutingError
from serve.errors import BadRequest, UnknownModel, no_second_look, refusal
from serve.protocol import ChatRequest, ImagePart, Message, TextPart, model_ids
from serve.received_pictures import bytes_of_data_url, check_header
from serve.settings import ServeSettings

TAKEN_APART_AT_ONCE = 200_000  # bytes of a body: a millisecond; more would hold up all others
# Fields that never change an answer: accepted, and that is all.
HARMLESS = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "user",
    }
)
# Fields that are not honoured, with the values that ask for nothing; null never does.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),  # without functions, auto is none
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tool_choice": ("none", "auto"),  # without tools, auto is none
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}


@dataclass(frozen=True)
class ParsedRequest:
    """What encoder and generator need of a request.

    Attributes:
        messages: as the processor takes them, ``{"type": "image"}`` for each picture.
        pictures: bytes as they came, in order.
        question: text of the user's last turn; what the router looks at. Where that is only a
            picture, the latest earlier text of the user's.
        constraints: what binds the scale.
    """

    messages: tuple[dict[str, Any], ...]
    pictures: tuple[bytes, ...]
    question: str
    constraints: Constraints


def parse_request(
    request: ChatRequest, scales: tuple[int, ...], settings: ServeSettings
) -> ParsedRequest:
    """Return the request's parts; picture headers are read, nothing is decoded.

    Raises:
        BadRequest: a knob that is not honoured, a bad picture, no question, an impossible wish.
        UnknownModel: the model id is none of this checkpoint's.
    """
    strict = settings.unknown_fields == "refuse"
    if (refused := refused_knob(request, strict=strict)) is not None:
        field, sentence = refused
        raise BadRequest(sentence, field, "unsupported_parameter")
    ids = model_ids(scales)
    if request.model not in ids:
        raise UnknownModel(
            f"The model '{request.model}' does not exist here. Choose one of {', '.join(ids)}.",
            "model",
        )
    places = _places_of_pictures(request.messages)
    if len(places) > settings.max_pictures:
        raise BadRequest(
            f"The request has {len(places)} pictures; at most {settings.max_pictures} are "
            "accepted. Split it.", "messages", "too_many_images",
        )  # fmt: skip
    question = _question(request.messages)
    constraints = _constraints(request, ids[request.model], places, scales, settings)
    pictures = []
    for param, part in places:
        data = bytes_of_data_url(part.image_url.url, param)
        check_header(data, settings.pictures, param)
        pictures.append(data)
    messages = tuple(_as_processor_takes_it(message) for message in request.messages)
    return ParsedRequest(messages, tuple(pictures), question, constraints)


def _places_of_pictures(messages: list[Message]) -> list[tuple[str, ImagePart]]:
    places = []
    for i, message in enumerate(messages):
        if isinstance(message.content, str):
            continue
        for j, part in enumerate(message.content):
            if isinstance(part, TextPart):
                continue
            param = f"messages.{i}.content.{j}.image_url.url"
            if message.role != "user":
                raise BadRequest(
                    f"A picture stands in a message of the role '{message.role}'. "
                    "Put pictures into user messages.", param,
                )  # fmt: skip
            places.append((param, part))
    return places


def _text(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content if isinstance(part, TextPart))


def _question(messages: list[Message]) -> str:
    last = len(messages) - 1
    if messages[last].role != "user":
        raise BadRequest(
            "The last message must be the user's: it holds the question.", f"messages.{last}.role"
        )
    # The picture may have come in an earlier turn than the question, or in a later one.
    earlier = messages[-2::-1] if _places_of_pictures(messages[-1:]) else []
    for message in [messages[last], *earlier]:
        if message.role == "user" and (question := _text(message).strip()):
            return question
    raise BadRequest(
        "The last message has no text. Add the question as text.",
        f"messages.{last}.content", "empty_question",
    )  # fmt: skip


def _constraints(
    request: ChatRequest,
    model_scale: int | None,
    places: list[tuple[str, ImagePart]],
    scales: tuple[int, ...],
    settings: ServeSettings,
) -> Constraints:
    wishes = request.routing
    try:
        constraints = resolve_constraints(
            scales=scales,
            model_scale=model_scale,
            detail=[part.image_url.detail for _, part in places],
            routing_scale=None if wishes is None else wishes.scale,
            max_visual_tokens=None if wishes is None else wishes.max_visual_tokens,
            n_pictures=len(places),
            detail_map=settings.detail_scales,
            explain=wishes is not None and wishes.explain,
            max_harm=None if wishes is None else wishes.max_harm,
            focus=None if wishes is None else wishes.focus,
        )
    except RoutingError as error:
        raise refusal(error) from error
    wanted = None if wishes is None else wishes.second_look
    obstacle = _against_second_look(request, constraints, len(places))
    if wanted and obstacle is not None:
        raise no_second_look(obstacle)
    return replace(constraints, second_look=obstacle is None and wanted is not False)


def needs_second_look(request: ChatRequest) -> bool:
    """Return whether a request is to be refused where no second look can follow."""
    return request.routing is not None and request.routing.second_look is True


def _against_second_look(
    request: ChatRequest, constraints: Constraints, n_pictures: int
) -> str | None:
    if n_pictures != 1:
        return "it needs a request with exactly one picture"
    if request.n != 1:
        return "it needs n = 1"
    if constraints.pinned is not None:
        return "the scale is pinned"
    if constraints.max_harm is not None:
        return "max_harm is certified for the first answer"
    if request.temperature:
        return "only greedy answers (temperature 0) say how sure the model is"
    return None


def _as_processor_takes_it(message: Message) -> dict[str, Any]:
    role = "system" if message.role == "developer" else message.role
    if isinstance(message.content, str):
        return {"role": role, "content": message.content}
    parts = [
        {"type": "text", "text": part.text} if isinstance(part, TextPart) else {"type": "image"}
        for part in message.content
    ]
    return {"role": role, "content": parts}


def refused_knob(request: ChatRequest, *, strict: bool = True) -> tuple[str, str] | None:
    """Return (field, sentence) for the first field that would be ignored, or None.

    Not ``strict``: fields that this service has never heard of may be.
    """
    for field, value in (request.model_extra or {}).items():
        if field in HARMLESS:
            continue
        if field not in NEUTRAL:
            if not strict:
                continue
            return field, f"Unknown field '{field}'. Remove it."
        # `1 == True` in Python, not in JSON: compare the types as well.
        if not any(value == ok and isinstance(value, bool) == isinstance(ok, bool)
                   for ok in NEUTRAL[field]):  # fmt: skip
            return field, f"'{field}' is not supported by this service. Remove it."
    asked = request.stream_options
    if asked is not None and asked.wants_usage and not request.stream:
        return "stream_options", "'stream_options' needs 'stream': true. Remove one of the two."
    if asked is not None and asked.include_obfuscation:
        field = "stream_options.include_obfuscation"
        return field, f"'{field}' is not supported by this service. Remove it."
    if request.top_logprobs and not request.logprobs:
        return "top_logprobs", "'top_logprobs' needs 'logprobs': true. Add it, or remove this one."
    both = request.max_tokens, request.max_completion_tokens
    if None not in both and both[0] != both[1]:
        return "max_tokens", "'max_tokens' and 'max_completion_tokens' differ. Send one of them."
    return None
