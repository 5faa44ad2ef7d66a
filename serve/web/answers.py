"""The paths under /v1: answers, decisions without an answer, feedback, the models.

Knows the gateway's methods and what each path takes and returns; who may call is told by
`serve.web.callers`, what an error looks like by `serve.web.api`.
"""

from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request, Response
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from serve.errors import NotReady, ServiceError, UnknownModel
from serve.gateway.call import Call, timeout_of
from serve.gateway.gateway import Gateway
from serve.protocol import (
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    FeedbackReply,
    FeedbackRequest,
    ModelEntry,
    ModelList,
    RouteReply,
    model_ids,
)
from serve.web.body import Body, announced_bytes, check_headers, parse_body, read_body
from serve.web.callers import Callers
from serve.web.remote_pictures import RemotePictures
from serve.web.stream import EventStream, unless_disconnected

# What each path takes, for the description: bodies are read by hand, up to a limit.
BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/route": ChatRequest,
    "/v1/feedback": FeedbackRequest,
}
_PICTURE = (  # one pixel
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGM4IScHAAK2AQ"
    "U0pnWqAAAAAElFTkSuQmCC"
)
_QUESTION = [
    {"type": "image_url", "image_url": {"url": _PICTURE}},
    {"type": "text", "text": "what colour is it?"},
]
_ASKED = {"messages": [{"role": "user", "content": _QUESTION}], "max_tokens": 8}
EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        "asked": _ASKED, "streamed": _ASKED | {"stream": True},
        "pinned": _ASKED | {"model": "m3-auto", "routing": {"scale": 9}},
    },
    "/v1/route": {"asked": _ASKED, "explained": _ASKED | {"routing": {"explain": True}}},
    "/v1/feedback": {"scored": {"request_id": "chatcmpl-abc", "score": 1.0}},
}  # fmt: skip
STREAMED = "/v1/chat/completions"


def add_answers(app: FastAPI, gateway: Gateway, callers: Callers) -> None:
    """Put in the paths that take a body: chat completions, decisions, feedback."""
    remote = RemotePictures(gateway.settings.remote_pictures)
    caller = Annotated[Call, Depends(callers.admit)]

    @app.post("/v1/chat/completions", response_model=ChatCompletion)
    async def chat_completions(request: Request, call: caller) -> Response:
        """Answer a question about pictures; server-sent events with ``stream``."""
        body, call = await _chat_of(request, gateway, call, remote)
        if body.stream:
            # Until the first chunk is there, an error has a status of its own.
            chunks = gateway.stream(body, call)
            first = await unless_disconnected(request, _first(chunks))
            scale = None if first.routing is None else first.routing.scale
            return EventStream(first, chunks, callers.headers(call, scale))
        reply = await unless_disconnected(request, gateway.complete(body, call))
        return _json(reply, callers.headers(call, reply.routing.scale))

    @app.post("/v1/route", response_model=RouteReply)
    async def route(request: Request, call: caller) -> Response:
        """Return the decision for a chat request without answering it."""
        body, call = await _chat_of(request, gateway, call, remote)
        reply = await unless_disconnected(request, gateway.route(body, call))
        return _json(reply, callers.headers(call, reply.routing.scale))

    @app.post("/v1/feedback", response_model=FeedbackReply)
    async def feedback(request: Request, call: caller) -> Response:
        """Record what is known about an earlier answer."""
        body, call = await _body_of(request, FeedbackRequest, gateway, call)
        gateway.feedback(body, call)
        return _json(FeedbackReply(), callers.headers(call))


def add_models(app: FastAPI, gateway: Gateway, callers: Callers) -> None:
    """Put in the paths that list the model ids."""
    caller = Annotated[Call, Depends(callers.admit)]

    @app.get("/v1/models", response_model=ModelList)
    async def models(call: caller) -> Response:
        """List the model ids: the routed one, and one for each scale."""
        return _json(ModelList(data=_models(gateway)), callers.headers(call))

    @app.get("/v1/models/{model}", response_model=ModelEntry)
    async def model(model: str, call: caller) -> Response:
        """Return one model id."""
        for entry in _models(gateway):
            if entry.id == model:
                return _json(entry, callers.headers(call))
        known = ", ".join(model_ids(gateway.card.scales))
        raise UnknownModel(
            f"The model '{model}' does not exist here. Choose one of {known}.", "model"
        )


async def _body_of(
    request: Request, kind: type[Body], gateway: Gateway, call: Call
) -> tuple[Body, Call]:
    """Return a request's body, and the call with its length; the gateway is told of one that it
    never sees.
    """
    settings = gateway.settings
    try:
        call = replace(call, timeout_s=timeout_of(request.headers.get("timeout")))
        check_headers(request.headers)
        # Counted as they come: half a body held back costs what has arrived of it, no more.
        announced = announced_bytes(request.headers, settings.max_body_bytes)
        with gateway.admission.reading(0, announced, is_work=kind is ChatRequest) as take:
            raw = await read_body(request, settings.max_body_bytes, settings.body_timeout_s, take)
            return await parse_body(raw, kind), replace(call, n_bytes=len(raw))
    except ServiceError as error:
        gateway.refused(call, error)
        raise
    except ClientDisconnect:  # no fault of anybody's here: nothing for the log of errors
        gone = NotReady("The caller went away.", code="cancelled")
        gateway.refused(call, gone)
        raise gone from None


async def _chat_of(
    request: Request, gateway: Gateway, call: Call, remote: RemotePictures
) -> tuple[ChatRequest, Call]:
    """Return a chat request with the pictures that it names, and the call with their bytes."""
    body, call = await _body_of(request, ChatRequest, gateway, call)
    n_pictures = remote.count(body)
    if not 0 < n_pictures <= gateway.settings.max_pictures:
        return body, call  # none, or too many: the gateway says so
    try:
        room = n_pictures * gateway.settings.remote_pictures.max_bytes
        with gateway.admission.reading(call.n_bytes + room):
            fetched = await unless_disconnected(request, remote.put_in(body))
            return body, replace(call, n_bytes=call.n_bytes + fetched)
    except ServiceError as error:
        gateway.refused(call, error)
        raise


async def _first(chunks: AsyncGenerator[ChatChunk]) -> ChatChunk:
    return await anext(chunks)


def _json(reply: BaseModel, headers: dict[str, str]) -> Response:
    return Response(reply.model_dump_json(), media_type="application/json", headers=headers)


def _models(gateway: Gateway) -> list[ModelEntry]:
    ids = model_ids(gateway.card.scales)
    return [ModelEntry(id=i, created=gateway.started_at, scale=scale) for i, scale in ids.items()]
