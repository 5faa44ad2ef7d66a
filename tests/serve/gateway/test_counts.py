"""What the metrics say after requests of every kind, to the last one, in the real service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from router.log import read_log
from serve.in_process import compose
from serve.metrics import LocalMetrics
from serve.settings import API_KEYS_VARIABLE, ServeSettings

Body = Callable[..., dict[str, Any]]
CHAT = "/v1/chat/completions"
HISTOGRAMS = ("m3_request_latency_ms", "m3_first_token_latency_ms")


@pytest.fixture
def service(
    tiny_model: Path, make_router: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    monkeypatch.setenv(API_KEYS_VARIABLE, "good")
    make_router(tmp_path / "router", 36)
    composed = compose(
        ServeSettings(
            model=tiny_model, router=tmp_path / "router", registry=None, log_dir=tmp_path / "log",
            allowed_hosts=["localhost"], max_body_bytes=1_000_000,
        )
    )  # fmt: skip
    yield composed
    asyncio.run(composed.stop())


def counted(text: str) -> tuple[dict[tuple[str, str], float], dict[str, float]]:
    """Returns the requests by endpoint and status, and how many values each histogram holds."""
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    requests = {
        (s.labels["endpoint"], s.labels["status"]): s.value
        for s in samples
        if s.name == "m3_requests_total"
    }
    counts = {s.name.removesuffix("_count"): s.value for s in samples}
    return requests, {name: counts[name] for name in HISTOGRAMS}


def test_every_request_is_counted_once_and_only_work_has_a_latency(
    service: Any, ask_body: Body
) -> None:
    key = {"authorization": "Bearer good"}
    cut = ask_body()
    cut["messages"][0]["content"][0]["image_url"]["url"] = "data:image/png;base64,aGVsbG8="

    async def ask() -> str:
        transport = httpx2.ASGITransport(app=service.api)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:

            async def post(status: int, path: str = CHAT, **more: Any) -> None:
                reply = await http.post(path, **({"headers": key} | more))
                assert reply.status_code == status, reply.text
                await reply.aread()

            await post(200, json=ask_body(), headers=key | {"x-request-id": "r"})
            await post(200, json=ask_body(stream=True))
            await post(200, json=ask_body(stream=True))
            await post(200, "/v1/route", json=ask_body())
            await post(404, json=ask_body(model="gpt-4o"))
            await post(400, json=cut)
            await post(400, "/v1/route", json=ask_body(routing={"scale": 7}))
            await post(400, json=ask_body("what " * 3000))  # found out after the picture was read
            await post(401, json=ask_body(), headers={})
            await post(403, json=ask_body(), headers=key | {"origin": "http://evil.example"})
            await post(421, json=ask_body(), headers=key | {"host": "evil.example"})
            big = key | {"content-type": "application/json"}
            await post(413, content=b" " * 1_000_001, headers=big)
            await post(415, content=b"{}", headers=key | {"content-type": "text/plain"})
            await post(200, "/v1/feedback", json={"request_id": "r", "score": 1})
            await post(400, "/v1/feedback", json={"request_id": "r"})
            await post(404, "/v1/feedback", json={"request_id": "another", "score": 1})
            service.gateway.admission.draining = True
            await post(503, json=ask_body())
            service.gateway.admission.draining = False
            for path in ("/health", "/health/live", "/health/ready", "/v1/models", "/metrics"):
                assert (await http.get(path, headers=key)).status_code == 200
            return (await http.get("/metrics")).text

    requests, histograms = counted(asyncio.run(ask()))
    assert requests == {
        ("chat", "ok"): 3, ("route", "ok"): 1, ("chat", "model_not_found"): 1,
        ("chat", "invalid_image"): 1, ("route", "unknown_scale"): 1,
        ("chat", "context_length_exceeded"): 1, ("any", "invalid_api_key"): 1,
        ("any", "foreign_origin"): 1, ("any", "unknown_host"): 1, ("any", "request_too_large"): 1,
        ("any", "unsupported_media_type"): 1, ("feedback", "ok"): 1,
        ("feedback", "empty_feedback"): 1, ("feedback", "unknown_answer"): 1,
        ("chat", "not_ready"): 1,
    }  # fmt: skip
    # Three answers, a decision, and the prompt that was too long for the engine.
    assert histograms == {"m3_request_latency_ms": 5, "m3_first_token_latency_ms": 2}


@pytest.mark.parametrize("limit_s", [0.5, ServeSettings().request_timeout_s, 1000.0])
def test_the_longest_request_has_a_bucket(limit_s: float) -> None:
    metrics = LocalMetrics(limit_s)
    metrics.observe("m3_request_latency_ms", limit_s * 1000.0 + 1.0)
    text = asyncio.run(metrics.text())
    held = [
        line
        for line in text.splitlines()
        if line.startswith("m3_request_latency_ms_bucket") and line.endswith(" 1.0")
    ]
    assert len(held) >= 2, held  # one at least below +Inf


def test_a_log_that_cannot_be_written_is_an_alarm_and_no_reason_to_fail(
    service: Any, ask_body: Body, tmp_path: Path
) -> None:
    (tmp_path / "log" / "live").rmdir()
    (tmp_path / "log" / "live").write_text("in the way")
    key = {"authorization": "Bearer good"}

    async def ask() -> float:
        transport = httpx2.ASGITransport(app=service.api)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            for _ in range(2):
                assert (await http.post(CHAT, json=ask_body(), headers=key)).status_code == 200
                await service.gateway.log.settle()
            text = (await http.get("/metrics", headers=key)).text
        (value,) = (
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "m3_log_errors_total"
        )
        return value

    assert asyncio.run(ask()) >= 1
    (tmp_path / "log" / "live").unlink()
    service.gateway.log.close()
    assert read_log(tmp_path / "log").decisions.num_rows == 2  # what waited is there
