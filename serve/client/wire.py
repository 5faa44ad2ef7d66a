"""What the client sends and what it makes of replies: pure functions and values.

Knows the wire format; knows no connection, so both clients share every line of it.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from serve.client.errors import APIConnectionError, APIError, status_error
from serve.client.explain import RouteExplanation, action_key, parse_explanation
from serve.client.focus import Focus, Look, parse_focus
from serve.client.pictures import png_of

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    Picture: TypeAlias = str | Path | bytes | Image | np.ndarray[Any, Any]
else:
    Picture: TypeAlias = Any  # Pillow and numpy load only when a picture of their kind is sent
Pictures: TypeAlias = "Picture | list[Picture] | tuple[Picture, ...] | None"

CHAT, ROUTE, FEEDBACK = "/v1/chat/completions", "/v1/route", "/v1/feedback"
DEFAULT_URL = "http://127.0.0.1:8000"
MAGIC = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}


@dataclass(frozen=True)
class Route:
    """The scale chosen for a request, and why.

    ``focus`` tells where fine tokens were read beside those of ``scale``, None where the whole
    picture was read at one scale. ``action`` is what the one picture was read by, as the router
    calls it: its scale, or the name of a focus. ``p_suffices`` maps each scale, and each kind of
    focus by its name, to P(its answer suffices); it is None where the router was not asked (a
    pinned scale, no picture, a fallback). ``latency_ms`` is the decision alone.
    ``certified`` is the bound that was kept where ``max_harm`` asked for one. Where the answer was
    asked for again, ``second_look`` tells the first scale ("from") and "focus", its answer's
    "confidence" and what each look read ("first_visual_tokens", "second_visual_tokens");
    ``visual_tokens`` is the sum, ``scale``, ``action`` and ``focus`` are the second one's, and
    ``explain`` tells why the first was chosen.

    ``scales`` has the scale of each picture, in order; of several, ``scale`` is the finest,
    ``p_suffices`` the mean, and ``explain.pictures`` tells each one's.
    """

    scale: int
    visual_tokens: int
    reason: str
    p_suffices: dict[int | str, float] | None = None
    router_version: str | None = None
    latency_ms: float | None = None
    explain: RouteExplanation | None = None
    certified: dict[str, Any] | None = None
    second_look: dict[str, Any] | None = None
    scales: tuple[int, ...] = ()
    focus: Focus | None = None
    action: int | str | None = None

    @property
    def looks(self) -> tuple[Look, ...]:
        """What was read of the picture in one look or two, the one that counts last.

        Of several pictures, and of none, nothing.
        """
        if len(self.scales) > 1 or not self.scale:
            return ()
        last = Look(self.scale, self.focus)
        if self.second_look is None:
            return (last,)
        return Look(int(self.second_look["from"]), parse_focus(self.second_look.get("focus"))), last


@dataclass(frozen=True)
class Answer(Route):
    """An answer with the decision it was given under.

    `feedback` wants the answer itself, or its ``reply_id``; ``request_id`` names the request in the
    service's logs. ``total_ms`` is measured here, retries included. ``cached_tokens`` of the prompt
    had been read for an earlier request.
    """

    text: str = ""
    request_id: str | None = None
    reply_id: str | None = None
    model: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_ms: float = 0.0
    cached_tokens: int = 0


class AskOptions(TypedDict, total=False):
    """What may be said about a question besides the picture and the text."""

    scale: int | None  # pin this scale
    max_visual_tokens: int | None  # cap over all pictures of the request
    max_harm: float | None  # share of right answers that may be lost: certified or refused
    second_look: bool | None  # False: keep the first answer; True: refuse if none can follow
    focus: bool | None  # False: read the whole picture at one scale
    group_id: str | None  # what the request belongs to: a document, a session; it is logged
    explain: bool  # also say why: values, costs, contributions, what would change the choice
    # "auto" (the router decides), "low", "high", "original": for all pictures, or one for each
    detail: str | Sequence[str]
    max_tokens: int  # of the answer; 64
    temperature: float  # 0: greedy
    model: str  # "m3-auto", or a pinned id such as "m3-144"


def data_url(picture: Picture) -> str:
    """Return the picture as a data URL: files and bytes as they are, PIL and numpy as PNG.

    A string is a path unless it already is a ``data:`` or ``http(s):`` URL.
    """
    if isinstance(picture, str) and picture.startswith(("data:", "http://", "https://")):
        return picture
    if isinstance(picture, str | Path):
        payload = Path(picture).expanduser().read_bytes()
    elif isinstance(picture, bytes | bytearray | memoryview):
        payload = bytes(picture)
    else:
        payload = png_of(picture)
    kind = next((name for magic, name in MAGIC.items() if payload.startswith(magic)), None)
    mime = f"image/{kind}" if kind else "application/octet-stream"
    return f"data:{mime};base64,{base64.b64encode(payload).decode('ascii')}"


def chat_body(
    picture: Pictures, question: str, options: AskOptions, stream: bool = False
) -> dict[str, Any]:
    """Return the JSON body of POST /v1/chat/completions (and of /v1/route)."""
    known = AskOptions.__annotations__.keys()
    if unknown := sorted(options.keys() - known):
        raise TypeError(f"unknown option {unknown[0]!r}; known are {', '.join(known)}")
    if picture is None:
        pictures: Sequence[Picture] = ()
    else:
        pictures = picture if isinstance(picture, list | tuple) else (picture,)
    detail = options.get("detail", "auto")
    details = [detail] * len(pictures) if isinstance(detail, str) else detail
    if len(details) != len(pictures):
        raise ValueError(f"{len(details)} details for {len(pictures)} pictures: give one for each")
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": data_url(each), "detail": its}}
        for each, its in zip(pictures, details, strict=True)
    ]
    content.append({"type": "text", "text": question})
    body: dict[str, Any] = {
        "model": options.get("model", "m3-auto"),
        "messages": [{"role": "user", "content": content}],
        "max_tokens": options.get("max_tokens", 64),
        "temperature": options.get("temperature", 0),
    }
    routing = {
        "scale": options.get("scale"),
        "max_visual_tokens": options.get("max_visual_tokens"),
        "max_harm": options.get("max_harm"),
        "second_look": options.get("second_look"),
        "focus": options.get("focus"),
        "group_id": options.get("group_id"),
        "explain": options.get("explain") or None,
    }
    if routing := {key: value for key, value in routing.items() if value is not None}:
        body["routing"] = routing
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return body


def feedback_body(
    request_id: Answer | str, reference: str | None, score: float | None
) -> dict[str, Any]:
    """Return the JSON body of POST /v1/feedback."""
    if reference is None and score is None:
        raise ValueError("feedback needs a reference answer or a score")
    if isinstance(request_id, Answer):
        request_id = request_id.reply_id or request_id.request_id or ""
    said = {"request_id": request_id, "reference": reference, "score": score}
    return {key: value for key, value in said.items() if value is not None}


def _route_fields(routing: Mapping[str, Any]) -> dict[str, Any]:
    p_suffices = routing.get("p_suffices")
    return {
        "scale": int(routing.get("scale", 0)),
        "visual_tokens": int(routing.get("visual_tokens", 0)),
        "reason": str(routing.get("reason", "")),
        "p_suffices": p_suffices and {action_key(name): float(p) for name, p in p_suffices.items()},
        "router_version": routing.get("router_version"),
        "latency_ms": routing.get("latency_ms"),
        "explain": parse_explanation(routing.get("explain")),
        "certified": routing.get("certified"),
        "second_look": routing.get("second_look"),
        "scales": tuple(map(int, routing.get("scales") or ())),  # an older service sends none
        "focus": parse_focus(routing.get("focus")),
        "action": action_key(routing["action"]) if routing.get("action") else None,
    }


def parse_route(body: Mapping[str, Any]) -> Route:
    """Return the decision in a reply of /v1/route."""
    return Route(**_route_fields(body["routing"]))


def parse_health(status: int, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the state in a reply of /health, also when it is not "ok" (503).

    Raises:
        APIStatusError: something else than the service answered.
    """
    with suppress(ValueError):
        state = json.loads(body)
        if isinstance(state, dict) and isinstance(state.get("status"), str):
            return state
    raise status_error(status, body, headers)


def parse_answer(body: Mapping[str, Any], headers: Mapping[str, str], started: float) -> Answer:
    """Return the answer in a ``chat.completion`` body; ``started`` is a `time.perf_counter`."""
    choice, usage = body["choices"][0], body.get("usage") or {}
    return Answer(
        **_route_fields(body.get("routing") or {}),
        text=choice["message"]["content"] or "",
        request_id=headers.get("x-request-id") or body.get("id"),
        reply_id=body.get("id"),
        model=body.get("model"),
        finish_reason=choice.get("finish_reason"),
        prompt_tokens=usage.get("prompt_tokens", 0),
        completion_tokens=usage.get("completion_tokens", 0),
        total_ms=(time.perf_counter() - started) * 1000.0,
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
    )


@dataclass
class StreamedAnswer:
    """Collects the events of one stream; `answer` is the same value `ask` would have returned."""

    pieces: list[str] = field(default_factory=list)
    body: dict[str, Any] = field(default_factory=dict)
    finish_reason: str | None = None
    begun: bool = False
    done: bool = False

    def feed(self, data: str) -> str:
        """Return the text in one event's data, often empty.

        Raises:
            APIError: the service reports that it failed after the stream had begun.
        """
        self.begun = True
        if data == "[DONE]":
            self.done = True
            return ""
        chunk = json.loads(data)
        if "error" in chunk:
            raise APIError(chunk["error"].get("message") or "the service failed while answering")
        self.body |= {
            key: chunk[key] for key in ("id", "model", "routing", "usage") if chunk.get(key)
        }
        piece = ""
        for choice in chunk.get("choices") or ():
            piece += (choice.get("delta") or {}).get("content") or ""
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        self.pieces.append(piece)
        return piece

    def answer(self, headers: Mapping[str, str], started: float) -> Answer:
        """Return the whole answer.

        Raises:
            APIConnectionError: the closing event never came, so the text may be cut short.
        """
        if not self.done:
            raise APIConnectionError("the stream broke off before its end")
        message = {"content": "".join(self.pieces)}
        choices = [{"message": message, "finish_reason": self.finish_reason}]
        return parse_answer({**self.body, "choices": choices}, headers, started)
