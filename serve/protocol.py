"""The wire: OpenAI's chat completion types as far as they are honoured, and the `routing` object.

Knows JSON shapes and which knobs are honoured; knows nothing of models, routers or HTTP. A knob is
honoured or refused, never ignored: `serve.gateway.question` names the first that would change an
answer. What a reply tells of the decision is in `serve.routing_reply`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from serve.routing_reply import Routing as Routing
from serve.routing_reply import is_none

ROUTED_MODEL = "m3-auto"
PINNED_MODEL_PREFIX = "m3-"
# Far above any conversation; validation ends at the first error.
MAX_MESSAGES, MAX_PARTS = 1_000, 1_000
MAX_CHOICES, MAX_TOP_LOGPROBS = 16, 20  # answers to one request; OpenAI's bound
EMPTY: tuple[Any, ...] = (None, "", [], {})  # what asks for nothing, whatever the field
REPLY_ID_PREFIX = "chatcmpl-"  # before a request's id: the id of its reply


class Wire(BaseModel):
    """A part of a request: JSON types are taken as they are, unknown fields are errors.

    null means that a field is not given, wherever it stands: many callers send every field they
    know.
    """

    model_config = ConfigDict(strict=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, sent: Any) -> Any:
        if not isinstance(sent, dict):
            return sent
        return {key: value for key, value in sent.items() if value is not None}


class ImageURL(Wire):
    """A picture as a data URL, or by https from a host that the service lists."""

    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(Wire):
    """A picture within a message."""

    type: Literal["image_url"]
    image_url: ImageURL


class TextPart(Wire):
    """Text within a message."""

    type: Literal["text"]
    text: str


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Wire):
    """One turn of the conversation; an assistant's may be a reply as it was received.

    A reply holds more than text (``refusal``, ``tool_calls``, ``annotations``, what other services
    add): empty, that asks for nothing. ``content`` null or missing is a reply without text.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(max_length=MAX_PARTS, fail_fast=True)]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _reply_as_received(cls, sent: Any) -> Any:
        if not isinstance(sent, dict) or sent.get("role") != "assistant":
            return sent
        return {"content": ""} | {
            key: value
            for key, value in sent.items()
            if (key in cls.model_fields and value is not None) or value not in EMPTY
        }


class StreamOptions(Wire):
    """What a stream carries besides text. ``include_obfuscation`` false is all there is.

    ``include_usage`` is a last chunk with the tokens; ``continuous_usage_stats`` puts the tokens so
    far into every chunk, as load generators want them.
    """

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False

    @property
    def wants_usage(self) -> bool:
        """Whether anything is asked for."""
        return self.include_usage or self.continuous_usage_stats


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it must be printable characters")
    return text


class RoutingRequest(Wire):
    """The caller's own wishes: which scale, how much may be spent, whether to explain; and what the
    request belongs to."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    scale: int | None = None
    """Pins the scale of all pictures, whatever model id, detail and cap say."""
    max_visual_tokens: Annotated[int, Field(ge=1)] | None = None
    """Cap on the visual tokens of the whole request, all its pictures and both looks together;
    pictures share it where it adds most."""
    max_harm: Annotated[float, Field(gt=0, lt=1)] | None = None
    """At most this share of the answers that the finest scale gets right may be lost, counted over
    all questions; kept by the router's certificate or refused."""
    explain: bool = False
    """Also say why this scale."""
    second_look: bool | None = None
    """false keeps the first answer, true refuses where no second look can follow, left out takes
    what there is."""
    focus: bool | None = None
    """false has every picture read at one scale all over; else one may be read coarsely, with fine
    tokens where the question looks. true beside a pinned scale or several pictures is refused."""
    group_id: (
        Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_printable)] | None
    ) = None
    """What the request belongs to, by a name of the caller's: a document, a session. Requests of a
    group are decided by one router where two are tried, and count as one where routers are judged.
    It is kept in the decision log."""


class ChatRequest(Wire):
    """The body of POST /v1/chat/completions and POST /v1/route; without a temperature, greedy."""

    model_config = ConfigDict(extra="allow")  # `serve.gateway.question` refuses them by name

    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    model: str = ROUTED_MODEL
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] = 1
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] = 0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: (
        Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4)]
        | None
    ) = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    routing: RoutingRequest | None = None

    def stop_strings(self) -> tuple[str, ...]:
        """Return the stop strings, none, one or several."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class CountedTokens(BaseModel):
    """How many prompt tokens were visual, and how many text."""

    image_tokens: int
    text_tokens: int


class PromptTokensDetails(CountedTokens):
    """How many prompt tokens were visual, and how many text."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    cached_tokens: int
    """Of both kinds: their keys and values were left by an earlier request about the pictures."""


class Usage(BaseModel):
    """Tokens that reached the language model, and that came out of it: both looks' together.

    The prompt counts once, the answers all, however many were asked for.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class AnswerMessage(BaseModel):
    """The answer's text."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Likely(BaseModel):
    """A token, and how likely it was."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    token: str
    """Its text; bytes that are no whole character are written as \\xNN."""
    logprob: float
    """Natural logarithm of the model's own probability, before temperature and top_p; -9999 is
    impossible."""
    bytes: list[int] | None
    """Its text in UTF-8; null where it is none, as of the end of an answer."""


class TokenLogprob(Likely):
    """A token of the answer."""

    top_logprobs: list[Likely]
    """The most probable tokens in its place, as many as asked for."""


class Logprobs(BaseModel):
    """The tokens whose text, or the beginning of it, stands in the answer."""

    content: list[TokenLogprob]
    refusal: None = None


class Choice(BaseModel):
    """An answer; one of ``n``."""

    index: int
    message: AnswerMessage
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """The whole reply of a request that does not stream."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    routing: Routing


class Delta(BaseModel):
    """A piece of an answer: its role at the beginning, then text, nothing at the end."""

    role: Literal["assistant"] | None = Field(None, exclude_if=is_none)
    content: str | None = Field(None, exclude_if=is_none)


class ChunkChoice(BaseModel):
    """An answer, piece by piece; ``logprobs`` are of this piece."""

    index: int
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class ChatChunk(BaseModel):
    """One event of a stream; ``routing`` is in the first and in the last with a choice."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = Field(None, exclude_if=is_none)
    routing: Routing | None = Field(None, exclude_if=is_none)


class CountedChunk(ChatChunk):
    """An event of a stream that was asked for ``usage``: null until it is known."""

    usage: Usage | None = None


class RouteUsage(BaseModel):
    """Tokens of the prompt as one look would read it."""

    prompt_tokens: int
    prompt_tokens_details: CountedTokens


class RouteReply(BaseModel):
    """The reply of POST /v1/route: the decision without an answer."""

    object: Literal["routing.decision"] = "routing.decision"
    model: str
    usage: RouteUsage
    routing: Routing


class FeedbackRequest(Wire):
    """What the caller knows about an earlier answer: the right one, or a score for it."""

    request_id: Annotated[str, Field(min_length=1, max_length=200)]
    reference: Annotated[str, Field(min_length=1, max_length=10_000)] | None = None
    score: Annotated[float, Field(ge=0, le=1)] | None = None


class FeedbackReply(BaseModel):
    """The reply of POST /v1/feedback."""

    status: Literal["recorded"] = "recorded"


class ModelEntry(BaseModel):
    """One model id; ``scale`` is None where the router chooses."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "m3-router"
    scale: int | None = None


class ModelList(BaseModel):
    """The reply of GET /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelEntry]


class ErrorBody(BaseModel):
    """What went wrong and what to do."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorReply(BaseModel):
    """OpenAI's error envelope; every reply with a status of 400 or above has it."""

    error: ErrorBody


def model_ids(scales: tuple[int, ...]) -> dict[str, int | None]:
    """Return a checkpoint's model ids, each with its pinned scale (None: the router chooses)."""
    return {ROUTED_MODEL: None} | {f"{PINNED_MODEL_PREFIX}{scale}": scale for scale in scales}
