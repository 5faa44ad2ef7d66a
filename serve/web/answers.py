"""The paths under /v1: answers, decisions without an answer, feedback, the models.

Knows the gateway's methods and what each path takes and returns; who may call is told by
`serve.web.callers`, what an error looks like by `serve.web.api`.
"""

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Depends, FastAPI, Request, Response
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from serve.errors import NotReady, ServiceError, UnknownModel
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
from serve.web.stream import EventStream, unless_disconnected

# What each path takes, for the description: bodies are read by hand, up to a limit.
BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/route": ChatRequest,
    "/v1/feedback": FeedbackRequest,
}


def add_answers(app: FastAPI, gateway: Gateway, callers: Callers) -> None:
    """Put in the paths that take a body: chat completions, decisions, feedback."""
    call = Annotated[str, Depends(callers.admit)]

    @app.post("/v1/chat/completions", response_model=ChatCompletion)
    async def chat_completions(request: Request, name: call) -> Response:
        """Answer a question about pictures; server-sent events with ``stream``."""
        body, n_bytes = await _body_of(request, ChatRequest, gateway, name)
        if body.stream:
            # Until the first chunk is there, an error has a status of its own.
            chunks = gateway.stream(body, name, n_bytes)
            first = await unless_disconnected(request, _first(chunks))
            scale = None if first.routing is None else first.routing.scale
            return EventStream(first, chunks, callers.headers(name, scale))
        reply = await unless_disconnected(request, gateway.complete(body, name, n_bytes))
        return _json(reply, callers.headers(name, reply.routing.scale))

    @app.post("/v1/route", response_model=RouteReply)
    async def route(request: Request, name: call) -> Response:
        """Return the decision for a chat request without answering it."""
        body, n_bytes = await _body_of(request, ChatRequest, gateway, name)
        reply = await unless_disconnected(request, gateway.route(body, name, n_bytes))
        return _json(reply, callers.headers(name, reply.routing.scale))

    @app.post("/v1/feedback", response_model=FeedbackReply)
    async def feedback(request: Request, name: call) -> Response:
        """Record what is known about an earlier answer."""
        body, _ = await _body_of(request, FeedbackRequest, gateway, name)
        gateway.feedback(body)
        return _json(FeedbackReply(), callers.headers(name))


def add_models(app: FastAPI, gateway: Gateway, callers: Callers) -> None:
    """Put in the paths that list the model ids."""
    call = Annotated[str, Depends(callers.admit)]

    @app.get("/v1/models", response_model=ModelList)
    async def models(name: call) -> Response:
        """List the model ids: the routed one, and one for each scale."""
        return _json(ModelList(data=_models(gateway)), callers.headers(name))

    @app.get("/v1/models/{model}", response_model=ModelEntry)
    async def model(model: str, name: call) -> Response:
        """Return one model id."""
        for entry in _models(gateway):
            if entry.id == model:
                return _json(entry, callers.headers(name))
        known = ", ".join(model_ids(gateway.card.scales))
        raise UnknownModel(
            f"The model '{model}' does not exist here. Choose one of {known}.", "model"
        )


async def _body_of(
    request: Request, kind: type[Body], gateway: Gateway, name: str
) -> tuple[Body, int]:
    """Return a request's body and its length; the gateway is told of one that it never sees."""
    settings = gateway.settings
    try:
        check_headers(request.headers)
        # Reserved before a byte is read: half a body held back costs its sender's share, no more.
        with gateway.reading(announced_bytes(request.headers, settings.max_body_bytes)):
            raw = await read_body(request, settings.max_body_bytes, settings.body_timeout_s)
            return await parse_body(raw, kind), len(raw)
    except ServiceError as error:
        gateway.refused(name, error)
        raise
    except ClientDisconnect:  # no fault of anybody's here: nothing for the log of errors
        gone = NotReady("The caller went away.", code="cancelled")
        gateway.refused(name, gone)
        raise gone from None


async def _first(chunks: AsyncGenerator[ChatChunk]) -> ChatChunk:
    return await anext(chunks)


def _json(reply: BaseModel, headers: dict[str, str]) -> Response:
    return Response(reply.model_dump_json(), media_type="application/json", headers=headers)


def _models(gateway: Gateway) -> list[ModelEntry]:
    ids = model_ids(gateway.card.scales)
    return [ModelEntry(id=i, created=gateway.started_at, scale=scale) for i, scale in ids.items()]
