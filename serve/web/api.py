"""The HTTP surface: every path of the service, and errors in OpenAI's envelope.

Knows FastAPI and the gateway's methods; knows nothing of models, routers or Ray. The same
application runs under uvicorn and inside a Ray Serve replica.
"""

import logging
import random
from collections.abc import Awaitable, Callable
from importlib import metadata
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse
from fastapi.telemetry import TelemetryConfig
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.staticfiles import StaticFiles

from serve.errors import BadRequest, NotFound, NotReady, ServiceError, WrongMethod
from serve.gateway.gateway import Gateway
from serve.telemetry import logs
from serve.tenants.budgets import Budgets
from serve.tenants.keys import given_keys
from serve.tenants.live_keys import LiveKeys
from serve.web.answers import BODIES, EXAMPLES, STREAMED, add_answers, add_models
from serve.web.body import describe_bodies
from serve.web.callers import Callers, own_request_id
from serve.web.front import EXPOSED_HEADERS, Failed, Front, hosts_of
from serve.web.stream import envelope

LOG = logging.getLogger(__name__)
SPREAD_S = 3
CHANCE = random.Random()  # its own: a seed set for something else must not make it the same
# FastAPI's own telemetry would send errors with all their words to whoever set up a provider;
# `serve.telemetry` has the spans.
SILENT = TelemetryConfig(tracing=False, metrics=False, logs=False, auto_configure=False)
CONSOLE = Path(__file__).parents[1] / "console"
PICTURES = Path(__file__).parents[1] / "pictures"
CONSOLE_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "frame-ancestors 'none'",  # nobody's page may put it in a frame
    "x-content-type-options": "nosniff",
}


def create_api(
    gateway: Gateway,
    request_id: Callable[[Request], str] = own_request_id,
    *,
    sets_request_id: bool = True,
    keys: LiveKeys | None = None,
    budgets: Budgets | None = None,
    inflight: Callable[[], Awaitable[int]] | None = None,
) -> FastAPI:
    """Return the application.

    Args:
        gateway: answers.
        request_id: names a request.
        sets_request_id: False where whatever stands in front sets the x-request-id header.
        keys: let callers in; None: those of the settings, else of this process's environment.
        budgets: of callers; None: this is the only gateway.
        inflight: returns how many requests all gateways work on; None: as ``budgets``.

    Raises:
        ServeSetupError: the keys that count cannot be told.
    """
    if keys is None:
        file = gateway.settings.api_keys_file
        keys = LiveKeys(given_keys(file), gateway.metrics, file)
    callers = Callers(request_id, sets_request_id, keys, budgets or Budgets())
    app = FastAPI(
        title="m3-router", version=metadata.version("m3-router"),
        redirect_slashes=False, docs_url=None, redoc_url=None, openapi_url="/openapi.json",
        telemetry=SILENT,
        description="Answers questions about pictures with as many visual tokens as they need.",
    )  # fmt: skip
    app.state.gateway, app.state.keys = gateway, keys
    add_answers(app, gateway, callers)
    add_models(app, gateway, callers)
    add_state(app, gateway, inflight)
    add_console(app)
    failed = add_errors(app, gateway, callers)
    add_front(app, gateway, failed, has_keys=keys.are_asked_for)
    describe_bodies(app, BODIES, EXAMPLES, STREAMED)
    return app


def add_state(
    app: FastAPI, gateway: Gateway, inflight: Callable[[], Awaitable[int]] | None
) -> None:
    """Put in the paths that probes and Prometheus look at; they need no key."""

    @app.get("/health")
    async def health() -> JSONResponse:
        """Say whether every part of the service answers."""
        state = await gateway.health()
        if state["status"] == "ok":
            return JSONResponse(state)
        error = NotReady(f"The service is {state['status']}. Try again, or look at its log.")
        return JSONResponse(state | envelope(error).model_dump(), error.status)

    @app.get("/health/live")
    async def live() -> JSONResponse:
        """Say that this process answers, whatever the other parts do."""
        return JSONResponse({"status": "live"})

    @app.get("/health/inflight")
    async def all_inflight() -> JSONResponse:
        """Say how many requests are worked on; cheap, for what waits for spare capacity."""
        here = gateway.admission.inflight
        return JSONResponse({"inflight": here if inflight is None else await inflight()})

    @app.get("/health/ready")
    async def ready() -> JSONResponse:
        """Say whether a request would be answered now: 503 while no replica could, or stopping."""
        if not await gateway.ready():
            raise NotReady("Requests would not be answered now. See /health.")
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """Return the metrics in Prometheus' text format."""
        await gateway.ready()  # also asks the engine for its load, which gauges would else miss
        return PlainTextResponse(await gateway.metrics.text())


def add_console(app: FastAPI) -> None:
    """Put in the page to try the service by hand, with its pictures."""

    @app.get("/", include_in_schema=False)
    async def console() -> FileResponse:
        page = CONSOLE / "index.html"
        if not page.is_file():
            raise NotFound(
                "The console is not part of this installation. Use /v1/chat/completions."
            )
        return FileResponse(page, headers=CONSOLE_HEADERS)

    app.mount("/pictures", StaticFiles(directory=PICTURES, check_dir=False))


def add_front(app: FastAPI, gateway: Gateway, failed: Failed, *, has_keys: bool) -> None:
    """Put the checks of host, origin and path before everything else, surprises behind them."""
    settings = gateway.settings
    hosts = hosts_of(settings.allowed_hosts, has_keys=has_keys)
    app.add_middleware(
        Front, hosts=hosts, origins=settings.cors_origins, refused=gateway.turned_away,
        failed=failed,
    )  # fmt: skip
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["GET", "POST"],
            allow_headers=["*"], expose_headers=EXPOSED_HEADERS, max_age=600,
        )  # fmt: skip


def add_errors(app: FastAPI, gateway: Gateway, callers: Callers) -> Failed:
    """Make every error a sentence in OpenAI's envelope; return what does it, for surprises."""

    async def failed(request: Request, error: Exception) -> JSONResponse:
        told = _told(request, error, words=gateway.settings.log_prompts)
        call = getattr(request.state, "call", None)
        sent = callers.headers(call) if call is not None else {}
        if told.retry_after_s is not None:
            # Those who were refused together must not all come back together.
            sent |= {"retry-after": str(told.retry_after_s + CHANCE.randrange(SPREAD_S))}
        if gateway.admission.draining:
            sent |= {"connection": "close"}  # the next request must not meet a closing door
        if not told.should_retry:
            sent |= {"x-should-retry": "false"}
        if told.status == 401:
            gateway.turned_away(told)
            sent |= {"www-authenticate": "Bearer"}
        if told.status == 405 and isinstance(error, HTTPException) and error.headers:
            allowed = Headers(error.headers)["allow"].split(", ")
            # The front answers HEAD wherever GET is.
            allowed += ["HEAD"] if "GET" in allowed and "HEAD" not in allowed else []
            sent |= {"allow": ", ".join(sorted(allowed))}
        if told.status == 415:
            sent |= {"accept-encoding": "identity"}
        return JSONResponse(envelope(told).model_dump(), told.status, sent)

    for kind in (ServiceError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, failed)
    return failed


def _told(request: Request, error: Exception, *, words: bool) -> ServiceError:
    if isinstance(error, ServiceError):
        return error
    path = request.url.path
    if isinstance(error, RequestValidationError):
        return BadRequest(f"The request is wrong: {error.errors()[0]['msg']}. Correct it.")
    if isinstance(error, HTTPException) and error.status_code == 404:
        return NotFound(f"There is nothing at {path}. See /openapi.json for the paths.")
    if isinstance(error, HTTPException) and error.status_code == 405:
        advice = "See /openapi.json."
        if request.method == "OPTIONS":
            advice = "Name the pages that may use the service in the setting cors_origins."
        return WrongMethod(f"{request.method} is not possible at {path}. {advice}")
    LOG.error("request to %s failed\n%s", path, logs.failure(error, words=words))
    return ServiceError("The service failed on this request. Try again.")
