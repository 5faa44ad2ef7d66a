"""The service's metrics: one table of names, kept in this process or handed to Ray Serve.

Knows names, labels and buckets; knows nothing of requests. Ray exports every name with the prefix
``ray_`` and further labels at each node's export port; `relayed_text` gathers those of all nodes
under the names used in one process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

Kind = Literal["counter", "gauge", "histogram"]
_RAY = "ray_"
_OWN_LINES = ("ray_m3_", "# HELP ray_m3_", "# TYPE ray_m3_")
# What Ray adds besides application, deployment and replica is of no use to a reader of one service.
_RAY_LABELS = ("Component", "NodeAddress", "SessionName", "Version", "WorkerId", "otel_scope_")
_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 30_000, 60_000, 120_000)


ARMS = ("live", "canary")


class Spec(NamedTuple):
    """One metric; ``values`` are all that its one label can have, where that is known."""

    kind: Kind
    description: str
    labels: tuple[str, ...] = ()
    values: tuple[str, ...] = ()


METRICS: dict[str, Spec] = {
    "m3_requests": Spec("counter", "Requests by endpoint and outcome.", ("endpoint", "status")),
    "m3_decisions": Spec(
        "counter",
        "Pictures by scale (0: none; of a focus the coarse level) and reason.",
        ("scale", "reason"),
    ),
    "m3_focus_decisions": Spec(
        "counter", "Pictures read finely in some cells only, by the name of the focus.", ("focus",)
    ),
    "m3_visual_tokens": Spec("counter", "Visual tokens sent to the language model."),
    "m3_visual_tokens_finest": Spec("counter", "Visual tokens the finest scale would have taken."),
    "m3_completion_tokens": Spec("counter", "Answer tokens generated."),
    "m3_routing_failures": Spec("counter", "Decisions that fell back to the finest scale."),
    "m3_generator_retries": Spec("counter", "Further tries after a generator failed."),
    "m3_encoder_retries": Spec("counter", "Further tries after an encoder failed."),
    "m3_replica_deaths": Spec("counter", "Requests under which a replica died."),
    "m3_second_looks": Spec(
        "counter",
        "Answers weighed for a second look.",
        ("outcome",),
        ("kept", "escalated", "failed"),
    ),
    "m3_second_look_encodes": Spec("counter", "Second looks at a picture no longer in the cache."),
    "m3_picture_cache": Spec(
        "counter", "Looks into the picture cache.", ("outcome",), ("hit", "shared", "miss")
    ),
    "m3_router_swaps": Spec(
        "counter", "Attempts to load another router.", ("outcome",), ("ok", "failed")
    ),
    "m3_router_stale": Spec(
        "gauge", "1 while the router that should be loaded cannot be, or two are named."
    ),
    "m3_trial_stale": Spec("gauge", "1 while a router that should be tried cannot be loaded."),
    "m3_canary_stopped": Spec(
        "gauge", "1 while an encoder gives a canary no requests because its decisions fail."
    ),
    "m3_arm_requests": Spec(
        "counter", "Answers by which of two routers was to decide.", ("arm",), ARMS
    ),
    "m3_arm_visual_tokens": Spec("counter", "Visual tokens read for those.", ("arm",), ARMS),
    "m3_arm_failures": Spec(
        "counter", "Those that fell back to the finest scale, or failed.", ("arm",), ARMS
    ),
    "m3_arm_latency_ms": Spec("counter", "Milliseconds that those took, together.", ("arm",), ARMS),
    "m3_shadow_decisions": Spec(
        "counter",
        "Requests that a shadow decided too, and what came of it.",
        ("outcome",),
        ("same", "differs", "failed"),
    ),
    "m3_drift_psi_max": Spec(
        "gauge",
        "Population stability index of the feature that moved farthest from what the router was "
        "fitted on, less what chance gives; of an encoder's last 1,000 pictures.",
    ),
    "m3_drift_psi_mean": Spec("gauge", "The same, the mean over all features."),
    "m3_drift_features": Spec("gauge", "Features that have moved, beyond chance."),
    "m3_action_share": Spec(
        "gauge", "Largest share of an encoder's last free decisions that took one action."
    ),
    "m3_router_collapsed": Spec(
        "gauge", "1 while nearly all is read by one action, as it was not when fitted."
    ),
    "m3_router_restricted": Spec(
        "gauge", "1 while the registry holds the router to a safer price or the finest scale."
    ),
    "m3_tenant_requests": Spec(
        "counter", "Requests by the name of their key and outcome.", ("tenant", "status")
    ),
    "m3_tenant_visual_tokens": Spec(
        "counter", "Visual tokens charged to the name of a key.", ("tenant",)
    ),
    "m3_tenant_completion_tokens": Spec(
        "counter", "Answer tokens generated for the name of a key.", ("tenant",)
    ),
    "m3_api_keys_stale": Spec("gauge", "1 while the file of keys cannot be used."),
    "m3_log_dropped": Spec("counter", "Records that the decision log dropped."),
    "m3_log_errors": Spec(
        "counter", "Failed writes of the decision log; its records wait, and are dropped at last."
    ),
    "m3_ready": Spec("gauge", "1 if a request would be answered, at the last probe or scrape."),
    "m3_pictures_not_logged": Spec(
        "counter", "Pictures of audited requests that are not kept, because too many wait."
    ),
    "m3_labelled_pictures": Spec("counter", "Pictures labelled while the service was idle."),
    "m3_unlabelled_pictures": Spec("gauge", "Pictures of audited requests that wait for that."),
    "m3_labelling_down": Spec(
        "gauge", "1 while the process that labels (label_idle) should run and does not."
    ),
    "m3_inflight_requests": Spec("gauge", "Requests a gateway works on."),
    "m3_overload_pressure": Spec(
        "gauge", "How far a gateway lets the price rise: 0 not at all, 1 to the dearest certified."
    ),
    "m3_price_floor": Spec("gauge", "Price of the last degraded decision; 0 without pressure."),
    "m3_engine_running": Spec("gauge", "Requests that an engine answers together."),
    "m3_engine_waiting": Spec("gauge", "Requests that wait for an engine's memory or batch."),
    "m3_engine_kv_share": Spec("gauge", "Share of an engine's key-value cache in use."),
    "m3_route_latency_ms": Spec("histogram", "Features and decision, where a router decided."),
    "m3_encode_latency_ms": Spec(
        "histogram",
        "From the encoder's first sight of a request with pictures to its visual tokens: decoding, "
        "vision tower or cache, decision, pooling.",
    ),
    "m3_queue_latency_ms": Spec(
        "histogram", "From the prompt's arrival at an engine to the first pass that reads it."
    ),
    "m3_first_token_latency_ms": Spec(
        "histogram", "From the end of a body to the first part of a streamed answer."
    ),
    "m3_token_latency_ms": Spec(
        "histogram",
        "Mean time between the tokens of an answer, one value an answer: (last - first) / (n - 1).",
    ),
    "m3_request_latency_ms": Spec(
        "histogram", "From the end of a body to that of the reply; refusals are not in it."
    ),
}


def buckets_ms(limit_s: float) -> list[float]:
    """Return the bounds of every histogram; one at least lies above the limit of a request."""
    bounds = [float(bound) for bound in _MS]
    while bounds[-1] <= limit_s * 1000.0:
        bounds.append(bounds[-1] * 2)
    return bounds


class Metrics(Protocol):
    """Where measurements go."""

    def count(self, name: str, by: float = 1.0, **labels: str) -> None:
        """Add to a counter."""

    def gauge(self, name: str, value: float) -> None:
        """Set a gauge."""

    def observe(self, name: str, value: float) -> None:
        """Add a value to a histogram."""

    async def text(self) -> str:
        """Return everything in Prometheus' text format."""


class LocalMetrics:
    """Metrics of one process.

    Args:
        limit_s: of a request; nothing takes longer.
    """

    def __init__(self, limit_s: float = 120.0) -> None:
        self._registry = CollectorRegistry()
        kinds: dict[Kind, Any] = {"counter": Counter, "gauge": Gauge, "histogram": Histogram}
        self._metrics: dict[str, Any] = {}
        for name, spec in METRICS.items():
            more = {"buckets": buckets_ms(limit_s)} if spec.kind == "histogram" else {}
            self._metrics[name] = kinds[spec.kind](
                name, spec.description, spec.labels, registry=self._registry, **more
            )
            for value in spec.values:  # there from the start, so that the first one is an increase
                self._metrics[name].labels(value)

    def count(self, name: str, by: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        metric = self._metrics[name]
        (metric.labels(**labels) if labels else metric).inc(by)

    def gauge(self, name: str, value: float) -> None:
        """Set a gauge."""
        self._metrics[name].set(value)

    def observe(self, name: str, value: float) -> None:
        """Add a value to a histogram."""
        self._metrics[name].observe(value)

    async def text(self) -> str:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry).decode()


class RayMetrics:
    """Metrics of one replica; Ray adds application, deployment and replica as labels.

    Args:
        limit_s: of a request; nothing takes longer.
    """

    def __init__(self, limit_s: float) -> None:
        from ray.serve import metrics as ray_metrics

        self._metrics: dict[str, Any] = {}
        for name, spec in METRICS.items():
            if spec.kind == "counter":
                made: Any = ray_metrics.Counter(name, spec.description, spec.labels)
            elif spec.kind == "gauge":
                made = ray_metrics.Gauge(name, spec.description, spec.labels)
            else:
                made = ray_metrics.Histogram(
                    name, spec.description, boundaries=buckets_ms(limit_s), tag_keys=spec.labels
                )
            self._metrics[name] = made

    def count(self, name: str, by: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        if by > 0:  # Ray refuses to add nothing
            self._metrics[name].inc(by, tags=labels or None)

    def gauge(self, name: str, value: float) -> None:
        """Set a gauge."""
        self._metrics[name].set(value)

    def observe(self, name: str, value: float) -> None:
        """Add a value to a histogram."""
        self._metrics[name].observe(value)

    async def text(self) -> str:
        """Return this service's lines of all nodes' exports."""
        import ray

        nodes = await asyncio.to_thread(ray.nodes)
        urls = [
            f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            for node in nodes
            if node["Alive"] and node["MetricsExportPort"]
        ]
        return await relayed_text(urls)


async def relayed_text(urls: Sequence[str]) -> str:
    """Return this service's metrics in the exports as one text, without Ray's prefix.

    An export that cannot be read is left out with a comment: metrics never fail a scrape.
    """
    import httpx2

    gathered = _Families()
    unread: list[str] = []
    async with httpx2.AsyncClient(timeout=2.0, trust_env=False) as http:
        for url in urls:
            try:
                gathered.add((await http.get(url)).raise_for_status().text)
            except (httpx2.HTTPError, ValueError) as error:
                unread.append(f"# {url} cannot be read: {type(error).__name__}\n")
    return generate_latest(gathered).decode() + "".join(unread)


class _Families(Collector):
    """This service's metrics, gathered from the exports of several nodes."""

    def __init__(self) -> None:
        self._families: dict[str, Metric] = {}

    def add(self, export: str) -> None:
        """Take in what an export says of this service.

        Raises:
            ValueError: it is not in Prometheus' text format; nothing of it is taken in.
        """
        # A node says some 300 kB about a hundred other metrics: parsing them helps nobody.
        own = "\n".join(line for line in export.splitlines() if line.startswith(_OWN_LINES))
        for family in list(text_string_to_metric_families(own)):
            name = family.name.removeprefix(_RAY)
            told = Metric(name, family.documentation, family.type)
            samples = self._families.setdefault(name, told).samples
            for sample in family.samples:
                labels = {
                    label: value
                    for label, value in sample.labels.items()
                    if not label.startswith(_RAY_LABELS)
                }
                samples.append(sample._replace(name=sample.name.removeprefix(_RAY), labels=labels))

    def collect(self) -> Iterable[Metric]:
        """Return the metrics."""
        return self._families.values()
