"""The whole service in one process, without Ray: for laptops, tests and embedding.

The same classes as in the Ray deployments, composed by hand. Knows uvicorn; decides nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI

from serve.gateway.gateway import LAST_WORDS_S, Gateway
from serve.gateway.request_log import RequestLog
from serve.idle.labelling import labelling_while_idle
from serve.metrics import LocalMetrics
from serve.settings import ServeSettings
from serve.stages.checkpoint import (
    ModelCard,
    load_checkpoint,
    spare_what_is_loaded,
    start_engine,
)
from serve.stages.encoder import Encoder
from serve.stages.generator import Generator
from serve.telemetry import spans
from serve.web.api import create_api
from serve.web.listening import url_of

if TYPE_CHECKING:
    import uvicorn


@dataclass(frozen=True)
class Service:
    """A composed service; ``api`` is its ASGI application."""

    api: FastAPI
    gateway: Gateway
    encoder: Encoder
    generator: Generator

    async def stop(self) -> None:
        """Let requests in flight end, then stop every thread and write the log out."""
        await self.gateway.drain()
        self.api.state.keys.stop()
        self.encoder.close()
        await asyncio.to_thread(self.generator.close)
        await asyncio.to_thread(self.gateway.log.close)


def compose(settings: ServeSettings) -> Service:
    """Return the service, its model loaded once for both halves.

    Raises:
        ServeSetupError: the settings name something that is not there.
    """
    from serve.log.decisions import DecisionLog

    spans.start()
    folder = settings.model_path()
    card = ModelCard.read(folder)
    settings.check_details(card.scales)
    log = None
    if settings.log_dir is not None:
        log = DecisionLog(
            settings.log_dir, log_images=settings.log_images,
            log_prompts=settings.log_prompts, flush_s=settings.log_flush_s,
            keep_days=settings.log_retention_days, audit_rate=settings.audit_rate,
            audit_seed=settings.audit_seed,
        )  # fmt: skip
    metrics = LocalMetrics(settings.request_timeout_s)
    checkpoint = load_checkpoint(
        folder, half="both" if settings.engine == "own" else "encoder", device=settings.device,
        threads=settings.torch_threads, text_encoder=settings.text_encoder,
    )  # fmt: skip
    encoder = Encoder(checkpoint, settings, metrics)
    engine, processor = start_engine(settings, checkpoint)
    generator = Generator(engine, processor, settings, metrics)
    request_log = RequestLog(log, settings, card.scales)
    gateway = Gateway(encoder, generator, card, settings, metrics, request_log)
    return Service(create_api(gateway), gateway, encoder, generator)


def server_config(api: FastAPI, settings: ServeSettings) -> uvicorn.Config:
    """Return how uvicorn serves the application."""
    import uvicorn

    from serve.web.heads import PROTOCOL

    return uvicorn.Config(
        api, http=PROTOCOL, log_level="warning", log_config=None, access_log=False,
        server_header=False,
        # The gateway itself ends what is left after drain_s; cutting connections comes after that.
        timeout_graceful_shutdown=math.ceil(settings.drain_s + LAST_WORDS_S) + 1,
        timeout_keep_alive=settings.keep_alive_s,
    )  # fmt: skip


def run(settings: ServeSettings, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain and return.

    Args:
        settings: of the service.
        listening: from `bind`; closed at the end.
        ready: called once requests are answered.

    Raises:
        ServeSetupError: the settings name something that is not there.
    """
    import uvicorn
    from prometheus_client import disable_created_metrics

    disable_created_metrics()  # of the whole process, which is ours: Ray has no such series either
    _on_signals(_leave)
    service = compose(settings)
    spare_what_is_loaded()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await service.stop()

    service.api.router.lifespan_context = lifespan
    server = uvicorn.Server(server_config(service.api, settings))
    # uvicorn raises the signal again once it has shut down; by then it has done its work.
    _on_signals(_ignore)

    url = url_of(listening.getsockname()[0], listening)

    async def serve() -> None:
        running = asyncio.create_task(server.serve(sockets=[listening]))
        while not server.started and not running.done():
            await asyncio.sleep(0.02)
        if server.started:
            ready()
        with labelling_while_idle(settings, url, lambda: service.gateway.metrics):
            while not server.should_exit and not running.done():
                await asyncio.sleep(0.02)
        # uvicorn waits for answers under way; the gateway ends them in time.
        draining = asyncio.create_task(service.gateway.drain())
        await running
        draining.cancel()

    # uvicorn's loop: uvloop where it is installed, as in Ray's replicas.
    with listening, asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(serve())


def _on_signals(handler: Callable[[int, Any], None]) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handler)


def _leave(number: int, frame: Any) -> None:
    """End at once: nothing was promised to anybody yet."""
    raise SystemExit(0)


def _ignore(number: int, frame: Any) -> None:
    """Take a signal that was acted on already."""
