"""Spans of whole requests, as OpenTelemetry's own SDK receives them from the real service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from router import Router, SecondLook
from router.second_look import Gate
from serve.errors import ServeSetupError
from serve.in_process import compose
from serve.settings import ServeSettings
from serve.telemetry import spans

CHAT = "/v1/chat/completions"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
Body = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def service(tiny_model: Path, make_router: Any, tmp_path_factory: Any) -> Iterator[Any]:
    """Reads at 1 token first, and then always at 144."""
    folder = tmp_path_factory.mktemp("traced")
    make_router(folder / "plain", 36)
    plain = Router.from_pretrained(folder / "plain")
    finer = {scale: Gate(0.0, 0.0, 0.0, 2.0 if scale == 144 else -9.0) for scale in plain.scales}
    rows = tuple(tuple(finer[s] for s in plain.scales[k:]) for k in range(4))
    look = SecondLook(plain.space.names, rows, start_price=1e6, price=0.01)
    router = Router(plain.predictor, plain.schema, plain.policy, second_look=look)
    router.save_pretrained(folder / "router")
    settings = ServeSettings(
        model=tiny_model, router=folder / "router", registry=None, log_dir=None,
        allowed_hosts=["*"],
    )  # fmt: skip
    composed = compose(settings)
    yield composed
    asyncio.run(composed.stop())


@pytest.fixture
def exporter() -> Iterator[InMemorySpanExporter]:
    kept, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    spans.use(provider)
    yield kept
    spans.use(None)


def ask(service: Any, body: dict[str, Any], *headers: tuple[str, str]) -> httpx2.Response:
    async def post() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=service.api)
        async with httpx2.AsyncClient(transport=transport, base_url="http://here") as http:
            return await http.post(CHAT, json=body, headers=list(headers))

    return asyncio.run(post())


def tree(found: tuple[ReadableSpan, ...]) -> dict[str, list[str]]:
    """Returns the name of each span with those of its children, in the order they began."""
    names = {span.context.span_id: span.name for span in found}
    children: dict[str, list[str]] = {}
    for span in sorted(found, key=lambda each: each.start_time or 0):
        above = "" if span.parent is None else names.get(span.parent.span_id, "the caller")
        children.setdefault(above, []).append(span.name)
    return children


def named(found: tuple[ReadableSpan, ...], name: str) -> ReadableSpan:
    (span,) = [each for each in found if each.name == name]
    return span


def test_one_request_is_one_trace_of_the_caller(
    service: Any, exporter: InMemorySpanExporter, ask_body: Body
) -> None:
    said = "What colour is the zebra's hat?"
    body = ask_body(said, seeds=(41,), stream=True)
    reply = ask(service, body, ("traceparent", f"00-{TRACE}-{PARENT}-01"))
    assert reply.status_code == 200, reply.text
    found = exporter.get_finished_spans()
    assert {f"{span.context.trace_id:032x}" for span in found} == {TRACE}
    answer = ["m3.queue", "m3.prefill", "m3.decode"]
    looks = tree(found)
    assert looks.pop("m3.generate") == answer * 2
    assert looks == {
        "the caller": ["m3.request"],
        "m3.request": ["m3.parse", "m3.encode", "m3.generate", "m3.second_look"],
        "m3.encode": ["m3.decode_picture", "m3.vision", "m3.route", "m3.pool"],
        "m3.second_look": ["m3.pool", "m3.generate"],
    }
    request = named(found, "m3.request")
    assert request.kind is SpanKind.SERVER
    assert request.parent is not None
    assert f"{request.parent.span_id:016x}" == PARENT
    told = dict(request.attributes or {})
    assert told.pop("m3.router_version")
    assert told.pop("m3.request_id") == reply.headers["x-request-id"]
    prompt, completion = told.pop("m3.prompt_tokens"), told.pop("m3.completion_tokens")
    assert isinstance(prompt, int)
    assert prompt > 145
    assert completion == 12  # six each look
    assert told == {
        "m3.endpoint": "chat", "m3.status": "ok", "m3.scale": 144, "m3.first_scale": 1,
        "m3.visual_tokens": 145, "m3.reason": "predicted",
    }  # fmt: skip
    for span in found:
        assert span.start_time is not None
        assert span.end_time is not None
        assert request.start_time <= span.start_time <= span.end_time <= request.end_time
        assert "zebra" not in span.to_json()


def test_a_focus_is_named(
    service: Any, exporter: InMemorySpanExporter, ask_body: Body, make_focus_router: Any,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    focus = "9+144@500x12"
    router = make_focus_router(tmp_path, focus)
    monkeypatch.setattr(service.encoder._router, "current", router)
    told = ask(service, ask_body(seeds=(43,))).json()["routing"]["focus"]
    found = exporter.get_finished_spans()
    request, pool = (dict(named(found, n).attributes or {}) for n in ("m3.request", "m3.pool"))
    assert (pool["m3.scale"], pool["m3.focus"]) == (9, focus)
    assert (request["m3.scale"], request["m3.focus"]) == (9, focus)
    assert request["m3.visual_tokens"] == told["visual_tokens"]


@pytest.mark.parametrize(
    "said",
    [
        "", "nonsense", f"00-{TRACE.upper()}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE}-{PARENT}-01-more",
    ],
)  # fmt: skip
def test_an_invalid_traceparent_is_ignored(
    service: Any, exporter: InMemorySpanExporter, ask_body: Body, said: str
) -> None:
    assert ask(service, ask_body(), ("traceparent", said)).status_code == 200
    found = exporter.get_finished_spans()
    (trace,) = {span.context.trace_id for span in found}
    assert f"{trace:032x}" != TRACE
    assert named(found, "m3.request").parent is None


def test_several_traceparents_are_none(
    service: Any, exporter: InMemorySpanExporter, ask_body: Body
) -> None:
    twice = [("traceparent", f"00-{TRACE}-{PARENT}-01")] * 2
    assert ask(service, ask_body(), *twice).status_code == 200
    assert named(exporter.get_finished_spans(), "m3.request").parent is None


def test_a_caller_who_records_nothing_has_nothing_recorded(
    service: Any, exporter: InMemorySpanExporter, ask_body: Body
) -> None:
    for flags, recorded in (("00", False), ("01", True)):
        exporter.clear()
        reply = ask(service, ask_body(), ("traceparent", f"00-{TRACE}-{PARENT}-{flags}"))
        assert reply.status_code == 200
        assert bool(exporter.get_finished_spans()) is recorded


def test_failures_are_told_in_a_word(
    service: Any, exporter: InMemorySpanExporter, ask_body: Body, picture_url: Callable[..., str]
) -> None:
    cut = ask_body("the zebra")
    cut["messages"][0]["content"][0]["image_url"]["url"] = picture_url(0)[: 22 + 4000]
    assert ask(service, cut).status_code == 400
    found = exporter.get_finished_spans()
    for name in ("m3.request", "m3.encode", "m3.decode_picture"):
        status = named(found, name).status
        assert (status.status_code, status.description) == (StatusCode.ERROR, "invalid_image")
        assert named(found, name).events == ()
    assert "zebra" not in "".join(span.to_json() for span in found)


def test_off_is_the_same_empty_span_everywhere() -> None:
    assert spans.span("a", f"00-{TRACE}-{PARENT}-01", size=1) is spans.OFF
    with spans.span("b") as none:
        none.set(size=2)
        assert none.traceparent is None


def test_what_cannot_be_exported_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (spans.EXPORTER, *spans.ENDPOINTS, *spans.PROTOCOLS, "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    spans.start()
    assert spans.span("a") is spans.OFF
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp", None)
    with pytest.raises(ServeSetupError, match=r"pip install 'm3-router\[otel\]'"):
        spans.start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ServeSetupError, match="not as grpc"):
        spans.start()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with pytest.raises(ServeSetupError, match="'zipkin'"):
        spans.start()
    for name, value in (("OTEL_TRACES_EXPORTER", "none"), ("OTEL_SDK_DISABLED", "true")):
        monkeypatch.setenv(name, value)
        spans.start()
        assert spans.span("a") is spans.OFF


@pytest.mark.parametrize(
    ("variable", "value", "name"),
    [
        ("OTEL_SERVICE_NAME", "", "m3-router"),
        ("OTEL_SERVICE_NAME", "mine", "mine"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name=ours,deployment.environment=test", "ours"),
    ],
)
def test_the_environment_names_the_service(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, name: str
) -> None:
    for each in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_SDK_DISABLED"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv(spans.EXPORTER, "console")
    spans.start()
    try:
        assert spans._provider is not None
        assert spans._provider.resource.attributes["service.name"] == name
    finally:
        assert spans._provider is not None
        spans._provider.shutdown()
        spans.use(None)
