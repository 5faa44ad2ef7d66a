"""The HTTP surface: paths, headers, body limits, errors in OpenAI's envelope, event streams.

Knows FastAPI and the gateway's methods; knows nothing of models, routers or Ray. The same
application runs under uvicorn and inside a Ray Serve replica.
"""

import hmac
import logging
import os
import re
import uuid
from collections.abc import AsyncGenerator, Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from serve.errors import (
    BadRequest,
    NotFound,
    NotReady,
    ServiceError,
    Unauthorized,
    UnknownModel,
    WrongMethod,
)
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
from serve.settings import API_KEYS_VARIABLE
from serve.web.body import Body, describe_bodies, parse_body, read_body
from serve.web.stream import EventStream, envelope, unless_disconnected

LOG = logging.getLogger(__name__)
CONSOLE = Path(__file__).parents[1] / "console"
PICTURES = Path(__file__).parents[1] / "pictures"
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}")
Reply = TypeVar("Reply")


def own_request_id(request: Request) -> str:
    """Return the caller's x-request-id if it is harmless, else a new one."""
    given = request.headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


def create_api(
    gateway: Gateway,
    request_id: Callable[[Request], str] = own_request_id,
    *,
    sets_request_id: bool = True,
) -> FastAPI:
    """Return the application.

    Args:
        gateway: answers.
        request_id: names a request.
        sets_request_id: False where whatever stands in front sets the x-request-id header.
    """
    app = FastAPI(
        title="m3-router", version=metadata.version("m3-router"),
        docs_url=None, redoc_url=None, openapi_url="/openapi.json",
        description="Answers questions about pictures with as many visual tokens as they need.",
    )  # fmt: skip
    app.state.gateway = gateway
    keys = [key.strip().encode() for key in os.environ.get(API_KEYS_VARIABLE, "").split(",")]
    keys = [key for key in keys if key]

    def call_of(request: Request) -> str:
        request.state.request_id = request_id(request)
        check_key(request.headers.get("authorization", ""), keys)
        return str(request.state.request_id)

    call = Annotated[str, Depends(call_of)]

    def headers(name: str, scale: int | None = None) -> dict[str, str]:
        said = {"x-request-id": name} if sets_request_id else {}
        return said if scale is None else said | {"x-m3-scale": str(scale)}

    async def body_of(request: Request, kind: type[Body], name: str) -> tuple[Body, int]:
        try:
            raw = await read_body(request, gateway.settings.max_body_bytes)
            return await parse_body(raw, kind), len(raw)
        except ServiceError as error:
            gateway.refused(name, error)
            raise

    @app.post("/v1/chat/completions", response_model=ChatCompletion)
    async def chat_completions(request: Request, name: call) -> Response:
        """Answer a question about pictures; server-sent events with ``stream``."""
        body, n_bytes = await body_of(request, ChatRequest, name)
        if body.stream:
            # Until the first chunk is there, an error has a status of its own.
            chunks = gateway.stream(body, name, n_bytes)
            first = await unless_disconnected(request, _first(chunks))
            scale = None if first.routing is None else first.routing.scale
            return EventStream(first, chunks, headers(name, scale))
        reply = await unless_disconnected(request, gateway.complete(body, name, n_bytes))
        return _json(reply, headers(name, reply.routing.scale))

    @app.post("/v1/route", response_model=RouteReply)
    async def route(request: Request, name: call) -> Response:
        """Return the decision for a chat request without answering it."""
        body, n_bytes = await body_of(request, ChatRequest, name)
        reply = await unless_disconnected(request, gateway.route(body, name, n_bytes))
        return _json(reply, headers(name, reply.routing.scale))

    @app.post("/v1/feedback", response_model=FeedbackReply)
    async def feedback(request: Request, name: call) -> Response:
        """Record what is known about an earlier answer."""
        body, _ = await body_of(request, FeedbackRequest, name)
        gateway.log.feedback(body)
        return _json(FeedbackReply(), headers(name))

    @app.get("/v1/models", response_model=ModelList)
    async def models(name: call) -> Response:
        """List the model ids: the routed one, and one for each scale."""
        return _json(ModelList(data=_models(gateway)), headers(name))

    @app.get("/v1/models/{model}", response_model=ModelEntry)
    async def model(model: str, name: call) -> Response:
        """Return one model id."""
        for entry in _models(gateway):
            if entry.id == model:
                return _json(entry, headers(name))
        known = ", ".join(model_ids(gateway.card.scales))
        raise UnknownModel(
            f"The model '{model}' does not exist here. Choose one of {known}.", "model"
        )

    @app.get("/health")
    async def health() -> JSONResponse:
        """Say whether every part of the service answers."""
        state = await gateway.health()
        if state["status"] == "ok":
            return JSONResponse(state)
        error = NotReady(f"The service is {state['status']}. Try again, or look at its log.")
        return JSONResponse(state | envelope(error).model_dump(), error.status)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Return the metrics in Prometheus' text format."""
        return PlainTextResponse(await gateway.metrics.text())

    @app.get("/", include_in_schema=False)
    async def console() -> FileResponse:
        page = CONSOLE / "index.html"
        if not page.is_file():
            raise NotFound(
                "The console is not part of this installation. Use /v1/chat/completions."
            )
        return FileResponse(page, headers={"cache-control": "no-cache"})

    app.mount("/pictures", StaticFiles(directory=PICTURES, check_dir=False))  # for the console

    async def failed(request: Request, error: Exception) -> JSONResponse:
        told = _told(request, error)
        name = getattr(request.state, "request_id", None)
        sent = headers(name) if name is not None else {}
        if told.retry_after_s is not None:
            sent |= {"retry-after": str(told.retry_after_s)}
        if told.status == 401:
            sent |= {"www-authenticate": "Bearer"}
        return JSONResponse(envelope(told).model_dump(), told.status, sent)

    for kind in (ServiceError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, failed)
    describe_bodies(
        app, {"/v1/chat/completions": ChatRequest, "/v1/route": ChatRequest,
              "/v1/feedback": FeedbackRequest},
    )  # fmt: skip
    return app


def check_key(authorization: str, keys: list[bytes]) -> None:
    """Return if the header carries one of the keys, or no keys are set.

    Raises:
        Unauthorized: it does not.
    """
    if not keys:
        return
    scheme, _, given = authorization.partition(" ")
    # Every key is compared in constant time, and all of them whatever came before.
    matches = [hmac.compare_digest(given.strip().encode(), key) for key in keys]
    if scheme.lower() != "bearer" or not any(matches):
        raise Unauthorized(
            "The API key is missing or wrong. Send the header 'Authorization: Bearer <key>'."
        )


async def _first(chunks: AsyncGenerator[ChatChunk]) -> ChatChunk:
    return await anext(chunks)


def _json(reply: BaseModel, headers: dict[str, str]) -> Response:
    return Response(reply.model_dump_json(), media_type="application/json", headers=headers)


def _models(gateway: Gateway) -> list[ModelEntry]:
    ids = model_ids(gateway.card.scales)
    return [ModelEntry(id=i, created=gateway.started_at, scale=scale) for i, scale in ids.items()]


def _told(request: Request, error: Exception) -> ServiceError:
    if isinstance(error, ServiceError):
        return error
    path = request.url.path
    if isinstance(error, RequestValidationError):
        return BadRequest(f"The request is wrong: {error.errors()[0]['msg']}. Correct it.")
    if isinstance(error, HTTPException) and error.status_code == 404:
        return NotFound(f"There is nothing at {path}. See /openapi.json for the paths.")
    if isinstance(error, HTTPException) and error.status_code == 405:
        return WrongMethod(f"{request.method} is not possible at {path}. See /openapi.json.")
    LOG.error("request to %s failed", path, exc_info=error)
    return ServiceError("The service failed on this request. Try again.")
