"""Binds gateway, encoder and generator to Ray Serve. Wiring only.

In a Ray Serve YAML: ``import_path: serve.on_ray.app:build_app`` with the settings under ``args:``.
The encoder's ``user_config: {"router": "<folder>"}`` exchanges the router without a restart.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

from fastapi import FastAPI, Request
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import BackpressureConfig
from ray.serve.context import _get_serve_request_context
from ray.serve.handle import DeploymentHandle

from serve.errors import NotReady
from serve.gateway.gateway import Gateway
from serve.gateway.request_log import RequestLog
from serve.metrics import RayMetrics
from serve.on_ray.stages import RayEncoder, RayGenerator
from serve.settings import DeploymentSettings, ServeSettings
from serve.stages.checkpoint import ModelCard, load_checkpoint
from serve.stages.encoder import Encoder
from serve.stages.generator import Generator
from serve.stages.messages import AnswerPart, GenerateRequest
from serve.web.api import create_api
from serve.web.callers import harmless_id, key_digests, own_request_id

APP_NAME = "m3"
# Ray ends a replica after three failed checks in a row: 7 s after its loop stops, and about 3 s
# after its worker has been silent for `heartbeat_limit_s`.
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 1.0, 2.0
ERROR_SENT_S = 0.1  # time for an error to leave a replica that ends
LOG = logging.getLogger("ray.serve")


class EncoderReplica(Encoder):
    """An encoder with its half of the checkpoint."""

    def __init__(self, settings: ServeSettings) -> None:
        checkpoint = load_checkpoint(
            settings.model_path(), half="encoder", device=settings.device,
            threads=settings.torch_threads, text_encoder=settings.text_encoder,
        )  # fmt: skip
        super().__init__(checkpoint, settings, RayMetrics(settings.request_timeout_s))

    async def reconfigure(self, user_config: Any) -> None:
        """Exchange the router; a bad one is reported and the old one stays.

        It never raises: Ray takes a replica out of service for that.
        """
        folder = user_config.get("router") if isinstance(user_config, dict) else None
        if isinstance(folder, str):
            await self.swap_router(Path(folder))
        elif user_config:
            LOG.error('user_config must be {"router": "<folder>"}, not %r; ignored', user_config)


class GeneratorReplica(Generator):
    """A generator with its half of the checkpoint and an engine of its own."""

    def __init__(self, settings: ServeSettings) -> None:
        from m3model import LocalEngine

        checkpoint = load_checkpoint(
            settings.model_path(), half="generator", device=settings.device,
            threads=settings.torch_threads,
        )  # fmt: skip
        engine = LocalEngine(checkpoint.model, checkpoint.processor, kv_tokens=settings.kv_tokens)
        super().__init__(
            engine, checkpoint.processor, settings, RayMetrics(settings.request_timeout_s)
        )

    async def generate(self, request: GenerateRequest) -> AsyncIterator[AnswerPart]:
        """Yield the parts of the answer; end this replica when its engine is dead.

        A dead engine answers at once, so its replica always has the shortest queue: requests and
        their further tries would all come here until Ray's health checks have failed three times.

        Raises:
            ServiceError: what went wrong.
        """
        try:
            async with aclosing(cast(Any, super().generate(request))) as parts:
                async for part in parts:
                    yield part
        except NotReady:
            if not (await self.status()).alive:
                LOG.error("the engine is dead: this replica ends, Ray starts another")
                asyncio.get_running_loop().call_later(ERROR_SENT_S, os._exit, 1)
            raise


class GatewayReplica:
    """The ingress: the HTTP application of one gateway."""

    def __init__(
        self,
        settings: ServeSettings,
        keys: tuple[str, ...],
        encoder: DeploymentHandle,
        generator: DeploymentHandle,
    ) -> None:
        from serve.log.decisions import DecisionLog

        log = None
        if settings.log_dir is not None:
            log = DecisionLog(
                settings.log_dir, log_images=settings.log_images, log_prompts=settings.log_prompts
            )
        card = ModelCard.read(settings.model_path())
        # Those of whoever deploys count; a replica of a YAML deployment may have its own.
        self._keys = keys or key_digests()
        stages = RayEncoder(encoder), RayGenerator(generator)
        request_log = RequestLog(log, settings, card.scales)
        self._gateway = Gateway(
            *stages, card, settings, RayMetrics(settings.request_timeout_s), request_log
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(self._gateway, ray_request_id, sets_request_id=False, keys=self._keys)

    async def drain(self) -> bool:
        """Take no further requests; return whether all in flight ended in time."""
        return await self._gateway.drain()

    async def check_health(self) -> None:
        """Return: that the loop runs is all there is to test."""

    def __del__(self) -> None:
        self._gateway.log.close()


def ray_request_id(request: Request) -> str:
    """Return the id that Ray's proxy gave the request, or took from its x-request-id header.

    A harmful one, where the proxy takes everything (`serve.on_ray.headers`), gets no further.
    """
    given = _get_serve_request_context().request_id
    return given if harmless_id(given) else own_request_id(request)


def build_app(settings: ServeSettings) -> Application:
    """Return the application for `serve.run` or a Ray Serve YAML."""
    encoder = _deployment(EncoderReplica, "encoder", settings.encoder, settings).bind(settings)
    generator = _deployment(GeneratorReplica, "generator", settings.generator, settings).bind(
        settings
    )
    ingress = serve.ingress()(GatewayReplica)
    return _deployment(ingress, "gateway", settings.gateway, settings).bind(
        settings, key_digests(), encoder, generator
    )


def _deployment(
    replica: type, name: str, wanted: DeploymentSettings, settings: ServeSettings
) -> Deployment:
    resources = {"num_cpus": wanted.num_cpus, "num_gpus": wanted.num_gpus}
    return serve.deployment(
        replica,
        name=name,
        num_replicas=wanted.replicas,
        ray_actor_options=resources,
        max_ongoing_requests=wanted.max_ongoing_requests,
        max_queued_requests=wanted.max_queued_requests,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        # What a replica that is replaced has begun, it ends; it leaves as soon as that is done.
        graceful_shutdown_timeout_s=max(settings.drain_s, settings.request_timeout_s) + 5.0,
        graceful_shutdown_wait_loop_s=0.2,
        max_constructor_retry_count=2,
        logging_config={"enable_access_log": False},
    )
