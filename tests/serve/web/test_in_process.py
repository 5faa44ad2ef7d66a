"""The composed service behind a port, asked with the real openai SDK."""

from __future__ import annotations

import base64
import io
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from router.log import read_log

Body = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def sdk(running: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def ask(sdk: openai.OpenAI, body: dict[str, Any], **more: Any) -> Any:
    return sdk.chat.completions.create(**body, **more)


def test_the_sdk_gets_answer_usage_and_routing(
    sdk: openai.OpenAI, ask_body: Body, running: Any
) -> None:
    raw = sdk.chat.completions.with_raw_response.create(**ask_body())
    reply = raw.parse()
    assert reply.choices[0].message.content
    assert reply.choices[0].finish_reason in ("stop", "length")
    routing = reply.routing  # type: ignore[attr-defined]
    assert (routing["scale"], routing["visual_tokens"], routing["reason"]) == (36, 36, "predicted")
    assert routing["router_version"] == running.router_version
    assert list(routing["p_suffices"]) == ["1", "9", "36", "144", "576"]
    assert routing["latency_ms"] > 0
    usage = reply.usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    details = usage.prompt_tokens_details.model_dump()
    assert details["image_tokens"] == 36
    assert usage.prompt_tokens == 36 + details["text_tokens"]
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert raw.headers["x-m3-scale"] == "36"
    assert reply.id.startswith(f"chatcmpl-{raw.headers['x-request-id']}-")


@pytest.mark.parametrize("scale", [1, 9, 36, 144, 576])
def test_answers_are_the_models_own(
    sdk: openai.OpenAI, ask_body: Body, picture_bytes: Any, tiny_model: Path, scale: int
) -> None:
    import torch
    from PIL import Image

    from m3model import M3ForConditionalGeneration, M3Processor

    model = M3ForConditionalGeneration.from_pretrained(tiny_model).eval()
    processor = M3Processor.from_pretrained(tiny_model)
    content = [{"type": "image"}, {"type": "text", "text": "What word is it?"}]
    ids = torch.tensor([processor.prompt_ids([{"role": "user", "content": content}])])
    pixels = processor.pixel_values(Image.open(io.BytesIO(picture_bytes(7))))
    expected = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, scale=scale,
        max_new_tokens=6, do_sample=False,
    )  # fmt: skip
    reply = ask(sdk, ask_body("What word is it?", seeds=(7,), model=f"m3-{scale}"))
    assert reply.choices[0].message.content.strip() == processor.decode(expected[0])
    assert reply.usage.prompt_tokens == ids.shape[1] - 1 + scale


def counts(usage: Any) -> dict[str, Any]:
    """What a repeated request costs again; what is cached of it changes."""
    told = dict(usage.model_dump())
    told["prompt_tokens_details"].pop("cached_tokens")
    return told


def test_streams_carry_the_same_answer(sdk: openai.OpenAI, ask_body: Body) -> None:
    whole = ask(sdk, ask_body(max_tokens=20))
    chunks = list(
        ask(sdk, ask_body(max_tokens=20), stream=True, stream_options={"include_usage": True})
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    with_choice = [chunk for chunk in chunks if chunk.choices]
    assert with_choice[0].choices[0].delta.role == "assistant"
    for chunk in (with_choice[0], with_choice[-1]):
        assert chunk.routing["scale"] == 36
    assert with_choice[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert not chunks[-1].choices
    assert counts(chunks[-1].usage) == counts(whole.usage)
    assert 4 < len(with_choice) < 20  # tokens travel in parts
    silent = list(ask(sdk, ask_body(), stream=True))
    assert all(chunk.usage is None for chunk in silent)


def test_the_stream_ends_with_done(running: Any, ask_body: Body) -> None:
    url = f"{running.url}/v1/chat/completions"
    with httpx2.stream("POST", url, json=ask_body(stream=True)) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert reply.headers["x-m3-scale"] == "36"
        assert "".join(reply.iter_text()).endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("more", "scale", "reason"),
    [
        ({"model": "m3-9"}, 9, "pinned"),
        ({"model": "m3-9", "extra_body": {"routing": {"scale": 144}}}, 144, "pinned"),
        ({"detail": "low"}, 9, "detail"),
        ({"detail": "high"}, 144, "detail"),
        ({"detail": "original"}, 576, "detail"),
        ({"detail": "auto"}, 36, "predicted"),
        ({"extra_body": {"routing": {"max_visual_tokens": 20}}}, 1, "budget_cap"),
        ({"extra_body": {"routing": {"max_visual_tokens": 36}}}, 36, "predicted"),
    ],
)
def test_wishes_bind_the_scale(
    sdk: openai.OpenAI, ask_body: Body, more: dict[str, Any], scale: int, reason: str
) -> None:
    reply = ask(sdk, ask_body(**more))
    assert (reply.routing["scale"], reply.routing["reason"]) == (scale, reason)
    assert reply.usage.prompt_tokens_details.model_dump()["image_tokens"] == scale


def test_explanations_are_given_when_asked_for(sdk: openai.OpenAI, ask_body: Body) -> None:
    reply = ask(sdk, ask_body(), extra_body={"routing": {"explain": True}})
    explain = reply.routing["explain"]
    best = max(
        explain["values"],
        key=lambda s: explain["values"][s] - explain["price"] * explain["costs"][s],
    )
    assert int(best) == reply.routing["scale"] == explain["scale"] == 36
    assert set(explain["contributions"]) == set(explain["values"])
    groups = explain["contributions"]["36"]
    assert set(groups) == {
        *("picture detail", "image statistics", "question", "relevant-region detail"),
        *("relevant-region purity", "relevant-region size"),
    }
    assert (explain["coarser"]["scale"], explain["finer"]["scale"]) == (9, 144)
    assert explain["sentence"].startswith("The router chose 36 at the price 0.1; ")
    assert "explain" not in ask(sdk, ask_body()).routing


def test_a_pinned_request_may_ask_what_the_router_would_have_done(
    sdk: openai.OpenAI, ask_body: Body
) -> None:
    reply = ask(sdk, ask_body(), extra_body={"routing": {"explain": True, "scale": 9}})
    assert (reply.routing["scale"], reply.routing["reason"]) == (9, "pinned")
    assert reply.routing["explain"]["scale"] == 36
    assert reply.routing["explain"]["sentence"].startswith("9 was asked for; the router would")
    without = ask(sdk, ask_body(), extra_body={"routing": {"scale": 9}})
    assert without.routing["p_suffices"] is None
    text = [{"role": "user", "content": "hello"}]
    alone = ask(sdk, ask_body() | {"messages": text}, extra_body={"routing": {"explain": True}})
    assert "explain" not in alone.routing  # no picture: nothing was decided


def test_text_alone_and_several_pictures(sdk: openai.OpenAI, ask_body: Body) -> None:
    reply = ask(sdk, ask_body("hello", seeds=()))
    assert (reply.routing["scale"], reply.routing["reason"]) == (0, "no_image")
    assert reply.usage.prompt_tokens_details.model_dump()["image_tokens"] == 0
    reply = ask(sdk, ask_body(seeds=(1, 2, 3)))
    assert (reply.routing["scale"], reply.routing["visual_tokens"]) == (36, 108)


def test_sampling_is_honoured(sdk: openai.OpenAI, ask_body: Body) -> None:
    def draw(**more: Any) -> str:
        reply = ask(sdk, ask_body(model="m3-9", **{"max_tokens": 12, **more}))
        return str(reply.choices[0].message.content)

    assert draw() == draw(temperature=0.0)
    assert draw(temperature=1.5, seed=3) == draw(temperature=1.5, seed=3)
    assert len({draw(temperature=1.5, seed=seed) for seed in range(4)}) > 1
    assert draw(temperature=1.5, seed=3, top_p=1e-9) == draw()
    whole = draw()
    word = whole.split()[2]
    assert draw(stop=[word]) == whole[: whole.index(word)]
    short = ask(sdk, ask_body(model="m3-9", max_tokens=2))
    assert (short.usage.completion_tokens, short.choices[0].finish_reason) == (2, "length")


def test_models_and_route(sdk: openai.OpenAI, ask_body: Body, running: Any) -> None:
    assert [m.id for m in sdk.models.list()] == [
        "m3-auto", "m3-1", "m3-9", "m3-36", "m3-144", "m3-576",
    ]  # fmt: skip
    assert sdk.models.retrieve("m3-9").id == "m3-9"
    reply = httpx2.post(f"{running.url}/v1/route", json=ask_body())
    assert reply.json()["routing"]["scale"] == 36
    assert "choices" not in reply.json()
    assert reply.headers["x-m3-scale"] == "36"


def test_looks_from_outside(running: Any, ask_body: Body) -> None:
    with httpx2.Client(base_url=running.url) as http:
        health = http.get("/health").json()
        assert (health["status"], health["scales"]) == ("ok", [1, 9, 36, 144, 576])
        assert health["router_version"] == running.router_version
        http.post("/v1/chat/completions", json=ask_body())
        metrics = http.get("/metrics").text
        assert 'm3_decisions_total{reason="predicted",scale="36"}' in metrics
        assert "m3_request_latency_ms_bucket" in metrics
        engine = health["engine"]
        assert (engine["running"], engine["kv_pages_used"]) == (0, 0)
        assert engine["kv_pages"] > 2048 // 16
        assert "m3_engine_running 0.0" in metrics
        assert "m3_engine_kv_share 0.0" in metrics
        schema = http.get("/openapi.json").json()
        body = schema["paths"]["/v1/chat/completions"]["post"]["requestBody"]
        reference = body["content"]["application/json"]["schema"]["$ref"].split("/")[-1]
        assert "messages" in schema["components"]["schemas"][reference]["required"]
        assert http.get("/").headers["content-type"].startswith("text/html")


def test_decisions_are_on_disk_soon(running: Any, sdk: openai.OpenAI, ask_body: Body) -> None:
    from router.log import read_log

    reply = ask(sdk, ask_body("Which colour is it?"))
    assert running.service.gateway.log._log.flush()
    rows = read_log(running.log_dir).decisions.to_pylist()
    row = next(row for row in rows if reply.id.startswith(f"chatcmpl-{row['request_id']}-"))
    assert row["question"] == "Which colour is it?"
    assert row["answer"] == reply.choices[0].message.content
    assert row["router_version"] == running.router_version
    assert len(row["picture_ids"][0]) == 64
    assert row["prompt_tokens"] == reply.usage.prompt_tokens
    assert base64.b64encode(b"\x89PNG").decode()[:4] not in repr(row)
    assert not list((running.log_dir / "images").glob("*.png"))


def test_routers_are_exchanged_under_load_without_a_failed_request(
    running: Any, make_router: Callable[[Path, int], str], promote: Any, ask_body: Body
) -> None:
    versions = {
        make_router(running.registry / f"r{scale}", scale): scale for scale in (9, 144)
    } | {running.router_version: 36}  # fmt: skip
    replies: list[httpx2.Response] = []
    stop = threading.Event()

    def load(number: int) -> None:
        with httpx2.Client(base_url=running.url, timeout=30) as http:
            for seed in itertools.count():
                body = ask_body(seeds=(seed % 3,), max_tokens=2)
                replies.append(http.post("/v1/chat/completions", json=body))
                if stop.is_set():
                    return

    callers = [threading.Thread(target=load, args=(n,)) for n in range(3)]
    for caller in callers:
        caller.start()
    for name, scale in (("r9", 9), ("r144", 144), ("r9", 9), ("r144", 144)):
        promote(running.registry, running.registry / name)
        before, limit = len(replies), time.monotonic() + 30
        while time.monotonic() < limit and not any(
            reply.json()["routing"]["scale"] == scale for reply in replies[before:]
        ):
            time.sleep(0.02)
    stop.set()
    for caller in callers:
        caller.join()
    assert {reply.status_code for reply in replies} == {200}
    seen = [reply.json()["routing"] for reply in replies]
    # Never half a router: the version always goes with its scale.
    assert all(routing["scale"] == versions[routing["router_version"]] for routing in seen)
    assert {routing["scale"] for routing in seen} >= {9, 144}
    assert seen[-1]["scale"] == 144
    # Leave the service as the other tests expect it.
    make_router(running.registry / "r36", 36)
    promote(running.registry, running.registry / "r36")
    deadline = time.monotonic() + 5
    while httpx2.get(f"{running.url}/health").json()["router_version"] != running.router_version:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_feedback_is_recorded(running: Any, ask_body: Body) -> None:
    with httpx2.Client(base_url=running.url) as http:
        asked = http.post("/v1/chat/completions", json=ask_body())
        for name in (asked.json()["id"], asked.headers["x-request-id"]):
            reply = http.post("/v1/feedback", json={"request_id": name, "reference": "red"})
            assert reply.json() == {"status": "recorded"}
        unknown = http.post("/v1/feedback", json={"request_id": "abc", "reference": "red"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_answer")
        for bad in ({"request_id": "abc"}, {"score": 1}, {"request_id": "a", "score": 2}):
            assert http.post("/v1/feedback", json=bad).status_code == 400


def test_one_request_id_for_many_requests(running: Any, ask_body: Body) -> None:
    with httpx2.Client(base_url=running.url, headers={"x-request-id": "trace-1"}) as http:
        asked = [
            http.post("/v1/chat/completions", json=ask_body(f"what {word}?", stream=stream))
            for word, stream in (("color", False), ("shape", False), ("word", True))
        ]
        assert {reply.headers["x-request-id"] for reply in asked} == {"trace-1"}
        streamed = json.loads(asked[2].text.split("data: ")[1])
        ids = [reply.json()["id"] for reply in asked[:2]] + [streamed["id"]]
        assert len(set(ids)) == 3
        for name in ids:
            judged = {"request_id": name, "reference": f"of {ids.index(name)}"}
            assert http.post("/v1/feedback", json=judged).status_code == 200
        refused = http.post("/v1/feedback", json={"request_id": "trace-1", "score": 0.0})
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "ambiguous_answer")
    running.service.gateway.log._log.flush()

    def logged(kind: str) -> list[dict[str, Any]]:
        rows = getattr(read_log(running.log_dir), kind).to_pylist()
        return [row for row in rows if row["request_id"].startswith("trace-1")]

    names = {row["question"]: row["request_id"] for row in logged("decisions")}
    said = {row["request_id"]: row["reference"] for row in logged("feedback")}
    assert [said[names[f"what {word}?"]] for word in ("color", "shape", "word")] == [
        "of 0", "of 1", "of 2",
    ]  # fmt: skip


@pytest.mark.parametrize("stream", [True, False])
def test_a_caller_who_leaves_frees_the_engine(running: Any, ask_body: Body, stream: bool) -> None:
    body = ask_body(model="m3-576", max_tokens=1400, stream=stream)
    engine = running.service.generator._engine

    def leave() -> None:
        with httpx2.Client(base_url=running.url, timeout=httpx2.Timeout(30, read=0.1)) as http:
            if stream:
                with http.stream("POST", "/v1/chat/completions", json=body) as reply:
                    next(reply.iter_lines())
            else:
                with pytest.raises(httpx2.ReadTimeout):
                    http.post("/v1/chat/completions", json=body)

    leave()
    limit = time.monotonic() + 20
    while engine.stats().running or engine.stats().kv_pages_used:
        assert time.monotonic() < limit
        time.sleep(0.01)
