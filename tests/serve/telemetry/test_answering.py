"""Times of an answer's tokens: into which histogram, and how many values."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve.metrics import LocalMetrics
from serve.telemetry.answering import AnswerTimes


def samples(text: str) -> dict[str, float]:
    families = text_string_to_metric_families(text)
    return {s.name: s.value for family in families for s in family.samples if not s.labels}


def test_the_mean_is_between_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 100.5, 100.6, 100.9])  # submitted, and three tokens
    monkeypatch.setattr("serve.telemetry.answering.time.perf_counter", lambda: next(clock))
    times, metrics = AnswerTimes(), LocalMetrics()
    for queued_s in (0.25, None, None):
        times.token(queued_s)
    times.tell(metrics, None)
    found = samples(asyncio.run(metrics.text()))
    assert found["m3_queue_latency_ms_sum"] == 250.0
    assert found["m3_token_latency_ms_sum"] == pytest.approx((100.9 - 100.5) / 2 * 1000)
    assert (found["m3_queue_latency_ms_count"], found["m3_token_latency_ms_count"]) == (1, 1)


def test_one_token_has_no_time_between() -> None:
    times, metrics = AnswerTimes(), LocalMetrics()
    times.tell(metrics, None)
    times.token(0.0)
    times.tell(metrics, None)
    found = samples(asyncio.run(metrics.text()))
    assert (found["m3_queue_latency_ms_count"], found["m3_token_latency_ms_count"]) == (1, 0)


def test_each_answer_is_one_value(running: Any, ask_body: Callable[..., dict[str, Any]]) -> None:
    def now() -> dict[str, float]:
        return samples(httpx2.get(f"{running.url}/metrics", timeout=30).text)

    before = now()
    with httpx2.Client(base_url=running.url, timeout=60) as http:
        for body in (
            ask_body(),
            ask_body(stream=True),
            ask_body(max_tokens=1),
            ask_body(seeds=()),
            ask_body("what " * 3000),  # refused by the engine
        ):
            http.post("/v1/chat/completions", json=body)
        http.post("/v1/route", json=ask_body(model="m3-9"))
    after = now()
    grown = {
        name: after[f"m3_{name}_latency_ms_count"] - before[f"m3_{name}_latency_ms_count"]
        for name in ("encode", "route", "queue", "token", "first_token", "request")
    }
    assert grown == {
        "encode": 5,  # not the question without a picture
        "route": 4,  # nor the pinned one
        "queue": 4, "token": 3, "first_token": 1,
        "request": 6,
    }  # fmt: skip
    assert after["m3_queue_latency_ms_sum"] < after["m3_request_latency_ms_sum"]
    # What is idle says so, though its last request was seen at work.
    assert (after["m3_engine_running"], after["m3_engine_kv_share"]) == (0, 0)
    assert (after["m3_ready"], after["m3_router_stale"], after["m3_log_dropped_total"]) == (1, 0, 0)
