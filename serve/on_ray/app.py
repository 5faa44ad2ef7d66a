"""Binds gateway, encoder and generator to Ray Serve. Wiring only.

In a Ray Serve YAML: ``import_path: serve.on_ray.app:build_app`` with the settings under ``args:``.
The encoder's ``user_config: {"router": "<folder>"}`` exchanges the router without a restart, where
no registry is followed.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, cast

import numpy as np
import ray
from fastapi import FastAPI, Request
from numpy.typing import NDArray
from pydantic import ValidationError
from ray import serve
from ray.serve import Application, Deployment
from ray.serve.config import BackpressureConfig, RequestRouterConfig
from ray.serve.context import _get_global_client, _get_serve_request_context
from ray.serve.handle import DeploymentHandle

from serve.errors import NotReady, ServeSetupError, ServiceError
from serve.gateway.gateway import Gateway
from serve.gateway.request_log import RequestLog
from serve.metrics import RayMetrics
from serve.on_ray.autoscaling import autoscaling_config
from serve.on_ray.outstanding import Workload, answer_work
from serve.on_ray.replica_routing import STATS_PERIOD_S, WELL, PictureRouter, TokenRouter
from serve.on_ray.stages import RayEncoder, RayGenerator
from serve.settings import LABEL_BESIDE, DeploymentSettings, RouterChoice, ServeSettings
from serve.stages.checkpoint import (
    ModelCard,
    load_checkpoint,
    spare_what_is_loaded,
    start_engine,
)
from serve.stages.encoder import Encoder
from serve.stages.generator import Generator
from serve.stages.messages import (
    AnswerPart,
    Encoded,
    EncodeRequest,
    GenerateRequest,
    PoolRequest,
)
from serve.telemetry import logs, spans
from serve.tenants.budgets import Budgets
from serve.tenants.keys import Key, given_keys
from serve.tenants.live_keys import LiveKeys
from serve.web.api import create_api
from serve.web.callers import harmless_id, own_request_id
from serve.web.listening import check_exposure

APP_NAME = "m3"
# Ray ends a replica after three failed checks in a row: 7 s after its loop stops, and about 3 s
# after its worker has been silent for `heartbeat_limit_s`.
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 1.0, 2.0
PEERS_S = 2.0  # for other gateways to say what they work on
ERROR_SENT_S = 0.1  # time for an error to leave a replica that ends
LOG = logging.getLogger("ray.serve")


class EncoderReplica(Encoder):
    """An encoder with its half of the checkpoint."""

    def __init__(self, settings: ServeSettings) -> None:
        set_up_telemetry(settings)
        checkpoint = load_checkpoint(
            settings.model_path(), half="encoder", device=settings.device,
            threads=settings.torch_threads, text_encoder=settings.text_encoder,
        )  # fmt: skip
        super().__init__(checkpoint, settings, RayMetrics(settings.request_timeout_s))
        self._user_config: Any = None
        self._workload, self._finest = Workload(), checkpoint.model.config.scales[-1]
        spare_what_is_loaded()

    async def encode_and_route(self, request: EncodeRequest) -> Encoded:
        """Return the decision and the visual tokens, counted as work meanwhile."""
        work = self._workload.taken(len(request.pictures) * self._finest)
        with surprises_told(self._settings), work:
            return await super().encode_and_route(request)

    async def pool(self, request: PoolRequest) -> NDArray[np.float16]:
        """Return a picture's tokens, counted as work meanwhile."""
        with surprises_told(self._settings), self._workload.taken(request.reading.visual_tokens):
            return await super().pool(request)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what Ray scales by."""
        return self._workload.stats()

    async def record_routing_stats(self) -> dict[str, bool]:
        """Return what gateways choose by."""
        return {WELL: await is_well(self.check_health)}

    async def reconfigure(self, user_config: Any, rank: Any = None) -> None:
        """Exchange the router; a bad one, or one beside a registry's, is told and changes nothing.

        It never raises: Ray takes a replica out of service for that. Because it takes `rank`, Ray
        calls it also when user_config is taken away.
        """
        if user_config == self._user_config:  # another rank
            return
        self._user_config = user_config
        if not user_config:
            await self.choose_router(None)
            return
        try:
            router = RouterChoice.model_validate(user_config).router
        except ValidationError:
            LOG.error('user_config must be {"router": "<folder>"}, not %r; ignored', user_config)
        else:
            await self.choose_router(router)

    def __del__(self) -> None:
        spans.flush()


class GeneratorReplica(Generator):
    """A generator with its half of the checkpoint and an engine of its own."""

    def __init__(self, settings: ServeSettings) -> None:
        set_up_telemetry(settings)
        engine, processor = start_engine(settings)
        super().__init__(engine, processor, settings, RayMetrics(settings.request_timeout_s))
        self._workload, self._expected = Workload(), settings.default_max_tokens
        spare_what_is_loaded()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what Ray scales by."""
        return self._workload.stats()

    async def record_routing_stats(self) -> dict[str, bool]:
        """Return what gateways choose by; nothing that varies, or Ray would spread it all the
        time.
        """
        return {WELL: await is_well(self.check_health)}

    async def generate(self, request: GenerateRequest) -> AsyncIterator[AnswerPart]:
        """Yield the parts of the answer; end this replica when its engine is dead.

        A dead engine answers at once, so its replica always has the shortest queue: requests and
        their further tries would all come here until Ray's health checks have failed three times.

        Raises:
            ServiceError: what went wrong.
        """
        try:
            work = self._workload.taken(answer_work(request, self._expected))
            with surprises_told(self._settings), work:
                async with aclosing(cast(Any, super().generate(request))) as parts:
                    async for part in parts:
                        yield part
        except NotReady:
            if not (await self.status()).alive:
                LOG.error("the engine is dead: this replica ends, Ray starts another")
                asyncio.get_running_loop().call_later(ERROR_SENT_S, os._exit, 1)
            raise

    async def generate_whole(self, request: GenerateRequest) -> list[AnswerPart]:
        """Return all parts of the answer; see `generate`."""
        return [part async for part in self.generate(request)]

    def __del__(self) -> None:
        spans.flush()


class GatewayReplica:
    """The ingress: the HTTP application of one gateway."""

    def __init__(
        self,
        settings: ServeSettings,
        keys: tuple[Key, ...] | None,
        encoder: DeploymentHandle,
        generator: DeploymentHandle,
    ) -> None:
        from serve.log.decisions import DecisionLog

        set_up_telemetry(settings)
        # Those of whoever deploys count; a replica of a YAML deployment may have its own.
        file = settings.api_keys_file
        first_keys = given_keys(file, keys)
        log = None
        if settings.log_dir is not None:
            log = DecisionLog(
                settings.log_dir, log_images=settings.log_images,
                log_prompts=settings.log_prompts, flush_s=settings.log_flush_s,
                keep_days=settings.log_retention_days, audit_rate=settings.audit_rate,
            audit_seed=settings.audit_seed,
            )  # fmt: skip
        card = ModelCard.read(settings.model_path())
        stages = RayEncoder(encoder), RayGenerator(generator)
        request_log = RequestLog(log, settings, card.scales)
        metrics = RayMetrics(settings.request_timeout_s)
        self._gateway = Gateway(*stages, card, settings, metrics, request_log)
        self._keys = LiveKeys(first_keys, metrics, file)
        self._all: DeploymentHandle | None = None
        spare_what_is_loaded()

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_api(
            self._gateway, ray_request_id, sets_request_id=False, keys=self._keys,
            budgets=Budgets(_gateways), inflight=self._inflight_everywhere,
        )  # fmt: skip

    async def drain(self) -> bool:
        """Take no further requests; return whether all in flight ended in time."""
        return await self._gateway.drain()

    async def inflight(self) -> int:
        """Return how many requests this gateway works on."""
        return self._gateway.admission.inflight

    async def _inflight_everywhere(self) -> int:
        if (expected := _gateways()) == 1:
            return await self.inflight()
        told: list[int] = []
        try:
            if self._all is None:
                self._all = serve.get_deployment_handle("gateway", APP_NAME)
            told = await asyncio.wait_for(self._all.broadcast("inflight").results_async(), PEERS_S)
        except Exception as error:  # whatever it is, a gateway does not say
            LOG.warning("a gateway does not say what it works on: %s", type(error).__name__)
        if len(told) < expected:
            raise NotReady("A gateway does not say what it works on. Try again.")
        return sum(told)

    async def check_health(self) -> None:
        """Return: that the loop runs is all there is to test."""

    def __del__(self) -> None:
        self._keys.stop()
        self._gateway.log.close()
        spans.flush()


def set_up_telemetry(settings: ServeSettings) -> None:
    """Export spans, and write lines of the log, of this replica as the service is told to.

    Text is left to Ray, which has a file for each replica.

    Raises:
        ServeSetupError: traces are wanted, and cannot be sent.
    """
    spans.start()
    if settings.log_format == "json":
        logs.set_up("json", lambda: _get_serve_request_context().request_id)


@contextmanager
def surprises_told(settings: ServeSettings) -> Iterator[None]:
    """Raise what nobody meant as an error without its words, which may quote the request.

    Ray writes whatever a replica raises into its own logs.

    Raises:
        ServiceError: as it was raised, or one for anything else.
    """
    try:
        yield
    except ServiceError:
        raise
    except Exception as error:
        name = _get_serve_request_context().request_id
        LOG.error("request %s failed\n%s", name, logs.failure(error, words=settings.log_prompts))
        raise ServiceError(
            "The service failed on this request. Try again; if it happens again, report the "
            f"request id {name}."
        ) from None


def _gateways() -> int:
    """Return how many gateways there are to be now; Ray tells a replica when that changes."""
    return serve.get_replica_context().world_size or 1


async def is_well(check_health: Callable[[], Awaitable[None]]) -> bool:
    """Return whether a replica can work; Ray takes one out only after it failed several times."""
    try:
        await check_health()
    except NotReady:
        return False
    return True


def ray_request_id(request: Request) -> str:
    """Return the id that Ray's proxy gave the request, or took from its x-request-id header.

    A harmful one, where the proxy takes everything (`serve.on_ray.headers`), gets no further.
    """
    given = _get_serve_request_context().request_id
    return given if harmless_id(given) else own_request_id(request)


def logging_config(settings: ServeSettings) -> dict[str, Any]:
    """Return how Ray Serve writes a replica's lines."""
    encoding = {"encoding": "JSON"} if settings.log_format == "json" else {}
    # Ray makes a record of every call at a lower level, only to throw it away.
    return {"enable_access_log": False, "log_level": "WARNING"} | encoding


def build_app(settings: ServeSettings) -> Application:
    """Return the application for `serve.run` or a Ray Serve YAML.

    Raises:
        ServeSetupError: of what the settings name something is missing or does not fit, or Ray's
            proxies listen where others reach them, and no keys are asked for.
    """
    if settings.label_idle is not None:
        raise ServeSetupError(f"label_idle: {LABEL_BESIDE}")
    keys = given_keys(settings.api_keys_file)
    if (host := proxy_host()) is not None:
        check_exposure(host, has_keys=keys is not None)
    scales = ModelCard.read(settings.model_path()).scales
    settings.check_details(scales)
    finest = scales[-1]
    expected = settings.default_max_tokens
    encoder = _deployment(
        EncoderReplica, "encoder", settings.encoder, settings, finest,
        _routed_by(PictureRouter, slack=settings.encoder_batch),
    ).bind(settings)  # fmt: skip
    generator = _deployment(
        GeneratorReplica, "generator", settings.generator, settings, finest + expected,
        _routed_by(TokenRouter, expected_answer_tokens=expected),
    ).bind(settings)  # fmt: skip
    ingress = serve.ingress()(GatewayReplica)
    return _deployment(ingress, "gateway", settings.gateway, settings).bind(
        settings, keys, encoder, generator
    )


def proxy_host() -> str | None:
    """Return where Ray's proxies listen, None where there are none; whoever came first said it."""
    if not ray.is_initialized():
        return None
    client = _get_global_client(raise_if_no_controller_running=False)
    return None if client is None else client.http_config.host


def _routed_by(router: type, **kwargs: int) -> RequestRouterConfig:
    return RequestRouterConfig(
        request_router_class=f"{router.__module__}:{router.__name__}",
        request_router_kwargs=kwargs,
        request_routing_stats_period_s=STATS_PERIOD_S,
    )


def _deployment(
    replica: type,
    name: str,
    wanted: DeploymentSettings,
    settings: ServeSettings,
    tokens_per_request: int = 0,
    request_router: RequestRouterConfig | None = None,
) -> Deployment:
    resources = {"num_cpus": wanted.num_cpus, "num_gpus": wanted.num_gpus}
    replicas: dict[str, Any] = {"num_replicas": wanted.replicas}
    if wanted.autoscaling is not None:
        scaling = autoscaling_config(wanted.autoscaling, tokens_per_request)
        replicas = {"autoscaling_config": scaling}
    return serve.deployment(
        replica,
        name=name,
        **replicas,
        request_router_config=request_router or RequestRouterConfig(),
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
        logging_config=logging_config(settings),
    )
