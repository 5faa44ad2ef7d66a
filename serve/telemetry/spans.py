"""Spans of one request's work, exported where OpenTelemetry's environment variables say so.

A span's parent travels as the text of W3C's traceparent, so a stage in this process and one on
another machine are told alike. Without an exporter nothing of OpenTelemetry is imported and every
span is the same empty one. Knows names, times and plain values; what they are is said where the
work happens, and never a prompt, a picture or a key.
"""

from __future__ import annotations

import importlib
import os
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from serve.errors import ServeSetupError, ServiceError

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

EXPORTER = "OTEL_TRACES_EXPORTER"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
NAME = "m3-router"
FLUSH_MS = 2_000

_provider: TracerProvider | None = None
_tracer: Tracer | None = None  # of this process


class Span:
    """A span that nobody records; the recorded ones do the same to some effect."""

    traceparent: str | None = None  # what makes another span a child of this one

    def set(self, **attributes: Any) -> None:
        """Attach values; None is left out."""

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        pass


OFF = Span()


class _Recorded(Span):
    """A span of OpenTelemetry's; it ends with the context, its status that of the work."""

    def __init__(self, span: Any) -> None:
        self._span = span
        held = span.get_span_context()
        self.traceparent = f"00-{held.trace_id:032x}-{held.span_id:016x}-{held.trace_flags:02x}"

    def set(self, **attributes: Any) -> None:
        """Attach values; None is left out."""
        self._span.set_attributes(_known(attributes))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if isinstance(error, Exception):  # its sentence may quote the request: a word will do
            from opentelemetry.trace import StatusCode

            word = error.code if isinstance(error, ServiceError) else None
            self._span.set_status(StatusCode.ERROR, word or type(error).__name__)
        elif error is not None:
            self.set(cancelled=True)
        self._span.end()


def span(name: str, parent: str | None = None, *, serves: bool = False, **attributes: Any) -> Span:
    """Return the span of work that begins now and ends with the ``with`` it is used in.

    Args:
        name: what is done, the same for every request.
        parent: traceparent of the work it is part of; None, or an invalid one: a trace of its own.
        serves: whether it answers somebody outside.
        attributes: known beforehand.
    """
    if _tracer is None:
        return OFF
    from opentelemetry.trace import SpanKind

    kind = SpanKind.SERVER if serves else SpanKind.INTERNAL
    return _Recorded(_tracer.start_span(name, _context(parent), kind, _known(attributes)))


def past(name: str, parent: str | None, began: float, ended: float, **attributes: Any) -> None:
    """Record work that is done already; times are those of `time.perf_counter`."""
    if _tracer is None or parent is None:
        return
    now_ns, now = time.time_ns(), time.perf_counter()
    done = _tracer.start_span(
        name, context=_context(parent), attributes=_known(attributes),
        start_time=now_ns - int((now - began) * 1e9),
    )  # fmt: skip
    done.end(now_ns - int((now - ended) * 1e9))


def start() -> None:
    """Begin to export, where the environment names an exporter; once a process.

    Raises:
        ServeSetupError: it names one that is not here.
    """
    if _tracer is None and (exporter := _exporter()) is not None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create()
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": NAME}))  # the environment says none
        provider = TracerProvider(resource=resource)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        use(provider)


def use(provider: TracerProvider | None) -> None:
    """Record spans with this provider from now on; None: record none."""
    global _provider, _tracer
    _provider = provider
    _tracer = None if provider is None else provider.get_tracer(NAME)


def flush() -> None:
    """Send what waits, for at most some seconds: whoever ends a process may not wait for exits."""
    if _provider is not None:
        _provider.force_flush(FLUSH_MS)


def _exporter() -> Any:
    """Return what the environment asks for, None: nothing."""
    said = os.environ.get(EXPORTER, "").strip().lower()
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or said == "none":
        return None
    if not said and not any(os.environ.get(name) for name in ENDPOINTS):
        return None
    if said == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    if said not in ("", "otlp"):
        raise ServeSetupError(f"{EXPORTER} is {said!r}, but only otlp, console and none are known")
    protocol = next(filter(None, map(os.environ.get, PROTOCOLS)), "http/protobuf")
    if protocol != "http/protobuf":
        raise ServeSetupError(
            f"traces are sent as http/protobuf, not as {protocol}: set {PROTOCOLS[1]} to that"
        )
    try:
        otlp = importlib.import_module("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ImportError as error:
        raise ServeSetupError(
            "traces are asked for in the environment, but no exporter is installed: "
            f"pip install 'm3-router[otel]', or set {EXPORTER}=none"
        ) from error
    return otlp.OTLPSpanExporter()


def _context(parent: str | None) -> Context:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carried = {} if parent is None else {"traceparent": parent}
    return TraceContextTextMapPropagator().extract(carried, Context())


def _known(attributes: dict[str, Any]) -> dict[str, Any]:
    return {f"m3.{name}": value for name, value in attributes.items() if value is not None}
