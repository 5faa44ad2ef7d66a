"""The service on Ray Serve: one local cluster for all of it."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import psutil
import pytest
import ray
from _faults.cluster import Cluster

from router import Router, SecondLook
from router.second_look import Gate
from serve.arms.assignment import is_drawn, session_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]
Body = Callable[..., dict[str, Any]]


@pytest.fixture
def http(ray_service: Any) -> Any:
    with httpx2.Client(base_url=ray_service.url, timeout=60) as client:
        yield client


def under_load(
    http: httpx2.Client, ask_body: Body, during: Callable[[], None], callers: int = 4
) -> list[httpx2.Response]:
    """Returns every reply that callers in a closed loop got while `during` ran."""
    replies: list[httpx2.Response] = []
    stop = threading.Event()

    def load(number: int) -> None:
        for turn in itertools.count():
            stream = (turn + number) % 4 == 0
            body = ask_body(seeds=(turn % 3,), max_tokens=8, stream=stream)
            replies.append(http.post("/v1/chat/completions", json=body))
            if stop.is_set():
                return

    threads = [threading.Thread(target=load, args=(n,)) for n in range(callers)]
    for thread in threads:
        thread.start()
    during()
    stop.set()
    for thread in threads:
        thread.join()
    return replies


def until(is_there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_there():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def generators() -> list[psutil.Process]:
    mine = psutil.Process().children(recursive=True)
    return [p for p in mine if "generator" in " ".join(p.cmdline())]


def further_tries() -> list[str]:
    """What gateways logged of requests that they tried again."""
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
    lines = (line for file in logs.glob("serve/*gateway*") for line in file.read_text().split("\n"))
    return [line for line in lines if "is tried again" in line]


def test_the_sdk_works_unchanged(ray_service: Any, ask_body: Body) -> None:
    with openai.OpenAI(base_url=f"{ray_service.url}/v1", api_key="any", max_retries=0) as sdk:
        raw = sdk.chat.completions.with_raw_response.create(**ask_body(max_tokens=20))
        reply = raw.parse()
        routing = reply.routing  # type: ignore[attr-defined]
        assert (routing["scale"], routing["reason"]) == (36, "predicted")
        assert routing["router_version"] == ray_service.router_version
        assert raw.headers["x-m3-scale"] == "36"
        assert raw.headers.get_list("x-request-id") == [
            reply.id.removeprefix("chatcmpl-").rpartition("-")[0]
        ]
        chunks = list(sdk.chat.completions.create(**ask_body(max_tokens=20), stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == reply.choices[0].message.content
        assert chunks[0].routing["scale"] == chunks[-1].routing["scale"] == 36  # type: ignore[attr-defined]


def test_answers_equal_those_of_one_process(http: Any, running: Any, ask_body: Body) -> None:
    for scale in (1, 9, 36, 144, 576):
        body = ask_body(model=f"m3-{scale}", seeds=(5,), max_tokens=12)
        here = httpx2.post(f"{running.url}/v1/chat/completions", json=body, timeout=60).json()
        there = http.post("/v1/chat/completions", json=body).json()
        assert there["choices"] == here["choices"]
        assert there["usage"] == here["usage"]


def test_bad_input_gets_the_envelope(http: Any, ask_body: Body, picture_url: Any) -> None:
    cut = ask_body()
    cut["messages"][0]["content"][0]["image_url"]["url"] = picture_url(0)[: 22 + 4000]
    cases = [
        (ask_body(model="gpt-4o"), 404, "model_not_found"),
        (ask_body(routing={"scale": 7}), 400, "unknown_scale"),
        (cut, 400, "invalid_image"),  # found out inside the encoder
        (ask_body("what " * 3000), 400, "context_length_exceeded"),  # inside the generator
        ([], 400, "invalid_type"),
    ]
    for body, status, code in cases:
        for stream in (False, True):
            sent = body | {"stream": stream} if isinstance(body, dict) else body
            reply = http.post("/v1/chat/completions", json=sent)
            assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert http.get("/nothing").json()["error"]["code"] == "not_found"
    assert http.post("/v1/chat/completions", json=ask_body()).status_code == 200


def test_health_models_route_feedback_metrics(http: Any, ask_body: Body) -> None:
    for path in ("/health/live", "/health/ready"):
        assert http.head(path).status_code == 200
    health = http.get("/health").json()
    assert (health["status"], health["router_ok"]) == ("ok", True)
    assert len(http.get("/v1/models").json()["data"]) == 6
    decided = http.post("/v1/route", json=ask_body()).json()
    assert decided["routing"]["scale"] == 36
    answer = http.post("/v1/chat/completions", json=ask_body()).json()
    reply = http.post("/v1/feedback", json={"request_id": answer["id"], "score": 1})
    assert reply.json() == {"status": "recorded"}
    assert http.post("/v1/feedback", json={"request_id": "a", "score": 1}).status_code == 404
    deadline = time.monotonic() + 20
    while "m3_decisions_total" not in (text := http.get("/metrics").text):
        assert time.monotonic() < deadline, text[:500]
        time.sleep(0.5)
    line = next(x for x in text.splitlines() if x.startswith("m3_decisions_total"))
    assert 'deployment="gateway"' in line
    assert "WorkerId" not in line


def test_a_killed_generator_costs_no_request(http: Any, ask_body: Body) -> None:
    victims = generators()
    assert len(victims) == 2, [p.cmdline() for p in psutil.Process().children(recursive=True)]

    def kill() -> None:
        time.sleep(1.0)
        os.kill(victims[0].pid, signal.SIGKILL)
        time.sleep(4.0)

    replies = under_load(http, ask_body, kill)
    failed = [reply for reply in replies if reply.status_code != 200]
    assert not failed, ([reply.text for reply in failed], further_tries())
    # A stream cannot be tried again once it has begun: at most those in flight may break off.
    broken = [r for r in replies if "event-stream" in r.headers["content-type"]
              and not r.text.endswith("data: [DONE]\n\n")]  # fmt: skip
    assert len(broken) <= 2, broken
    assert len(replies) > 10
    deadline = time.monotonic() + 60
    while len(generators()) < 2:
        assert time.monotonic() < deadline, "no replacement"
        time.sleep(0.5)


def test_a_dead_engine_costs_no_request(http: Any, ask_body: Body) -> None:
    from ray import serve

    def close_one() -> None:
        time.sleep(0.5)
        serve.get_deployment_handle("generator", "m3").close.remote().result(timeout_s=30)
        time.sleep(4.0)

    replies = under_load(http, ask_body, close_one)
    assert {reply.status_code for reply in replies} == {200}, [reply.text for reply in replies]
    broken = [r for r in replies if "event-stream" in r.headers["content-type"]
              and not r.text.endswith("data: [DONE]\n\n")]  # fmt: skip
    assert len(broken) <= 2, broken
    deadline = time.monotonic() + 60
    while len(generators()) < 2:
        assert time.monotonic() < deadline, "no replacement"
        time.sleep(0.5)


@pytest.mark.parametrize("kind", ["blocked_loop", "hung_worker"])
def test_a_generator_that_hangs_is_replaced_and_costs_no_request(
    http: Any, ray_service: Any, tmp_path: Path, ask_body: Body, kind: str
) -> None:
    cluster = Cluster(ray_service.url, tmp_path)
    until(lambda: len(cluster.replicas("generator")) == 2)  # those of earlier tests are replaced
    victim, _ = cluster.replicas("generator")
    in_hand = []

    def hang() -> None:
        time.sleep(0.5)
        in_hand.append(cluster.strike(victim.actor, kind).in_flight)
        cluster.until_without("generator", victim, wanted=2)

    replies = under_load(http, ask_body, hang)
    assert in_hand[0] > 0
    assert {reply.status_code for reply in replies} == {200}, [reply.text for reply in replies]
    for reply in replies:
        if "event-stream" in reply.headers["content-type"]:
            assert reply.text.endswith("data: [DONE]\n\n") or "replica_died" in reply.text


def test_routers_are_exchanged_without_a_failed_request(
    http: Any, ray_service: Any, make_router: Any, promote: Any, ask_body: Body
) -> None:
    version = make_router(ray_service.registry / "r9", 9)
    make_router(ray_service.registry / "damaged", 1)
    (ray_service.registry / "damaged" / "config.json").write_text("{}")

    def seen() -> str:
        body = ask_body(max_tokens=1)
        reply = http.post("/v1/chat/completions", json=body)
        return str(reply.json()["routing"]["router_version"])

    def swap() -> None:
        promote(ray_service.registry, ray_service.registry / "r9")
        deadline = time.monotonic() + 20
        while seen() != version:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        promote(ray_service.registry, ray_service.registry / "damaged")
        time.sleep(1.5)
        assert seen() == version

    replies = under_load(http, ask_body, swap)
    assert {reply.status_code for reply in replies} == {200}
    assert http.get("/health").json()["router_ok"] is False


def test_user_config_exchanges_the_router_and_never_raises(
    http: Any, ray_service: Any, make_router: Any, promote: Any, tmp_path: Path, ask_body: Body
) -> None:
    from ray import serve

    version = make_router(tmp_path / "r144", 144)
    promoted = make_router(ray_service.registry / "r1", 1)
    promote(ray_service.registry, ray_service.registry / "r1")
    encoder = serve.get_deployment_handle("encoder", "m3")
    time.sleep(2.5)  # the pointer is looked at every second
    encoder.broadcast("reconfigure", {"router": str(tmp_path / "r144")}).results(timeout_s=30)
    routing = http.post("/v1/chat/completions", json=ask_body()).json()["routing"]
    assert routing["router_version"] == promoted  # the registry's counts, and it is told
    assert http.get("/health").json()["router_ok"] is False
    shutil.rmtree(ray_service.registry / "journal")
    for config in ("nonsense", {"router": str(tmp_path / "nothing")}, {"router": 5}):
        encoder.broadcast("reconfigure", config).results(timeout_s=30)
    encoder.broadcast("reconfigure", {"router": str(tmp_path / "r144")}).results(timeout_s=30)
    routing = http.post("/v1/chat/completions", json=ask_body()).json()["routing"]
    assert (routing["scale"], routing["router_version"]) == (144, version)


def test_every_replica_tries_a_canary_on_the_same_sessions(
    http: Any, ray_service: Any, make_router: Any, tmp_path: Path, ask_body: Body, command: Any
) -> None:
    cheap, registry = make_router(tmp_path / "cheap", 1), ("--registry", ray_service.registry)
    groups = [f"g{number}" for number in range(16)]
    drawn = [is_drawn(session_of("", group, [], []), cheap, 0.4) for group in groups]
    assert set(drawn) == {True, False}

    def tried(seed: int) -> list[bool]:
        bodies = [ask_body(seeds=(seed,), routing={"group_id": group}) for group in groups]
        replies = [http.post("/v1/route", json=body) for body in bodies]
        assert {reply.status_code for reply in replies} == {200}
        return [reply.json()["routing"]["router_version"] == cheap for reply in replies]

    told = command("m3-train", "canary", tmp_path / "cheap", "--share", "0.4", *registry)
    assert told.returncode == 0, told.stderr
    until(lambda: all(tried(seed) == drawn for seed in (0, 1)))
    assert all(tried(seed) == drawn for seed in range(4))  # of two encoders, whichever is asked
    assert http.get("/health").json()["encoder"]["trial"].startswith("canary ")
    assert command("m3-train", "canary", "--stop", *registry).returncode == 0
    until(lambda: not any(tried(0) + tried(1)))


def test_a_second_look_pools_the_picture_again(
    http: Any, make_router: Any, tmp_path: Path, ask_body: Body
) -> None:
    from ray import serve

    make_router(tmp_path / "plain", 36)
    plain = Router.from_pretrained(tmp_path / "plain")
    # Whatever the answer at 1 token says, 144 is worth a second one.
    finer = {scale: Gate(0.0, 0.0, 0.0, 2.0 if scale == 144 else -9.0) for scale in plain.scales}
    rows = tuple(tuple(finer[s] for s in plain.scales[k:]) for k in range(4))
    look = SecondLook(plain.space.names, rows, start_price=1e6, price=0.01)
    router = Router(plain.predictor, plain.schema, plain.policy, second_look=look)
    router.save_pretrained(tmp_path / "looks")
    encoder = serve.get_deployment_handle("encoder", "m3")
    encoder.broadcast("reconfigure", {"router": str(tmp_path / "looks")}).results(timeout_s=30)
    fine = http.post("/v1/chat/completions", json=ask_body(model="m3-144", seeds=(6,))).json()
    both = http.post("/v1/chat/completions", json=ask_body(seeds=(6,))).json()
    assert both["choices"] == fine["choices"]
    assert both["routing"]["second_look"]["from"] == 1
    assert both["usage"]["prompt_tokens_details"]["image_tokens"] == 145


def test_ray_obeys_no_header_of_a_caller(http: Any, ask_body: Body) -> None:
    said = {"x-request-timeout-seconds": "0.001", "x-request-id": "a b<script>"}
    reply = http.post("/v1/chat/completions", json=ask_body(), headers=said)
    assert reply.status_code == 200, reply.text
    (name,) = reply.headers.get_list("x-request-id")
    assert reply.json()["id"].startswith(f"chatcmpl-{name}-")
    assert "script" not in name


def test_a_caller_who_leaves_frees_the_generator(http: Any, ask_body: Body) -> None:
    body = ask_body(model="m3-576", max_tokens=1000, stream=True)
    unwanted = {"x-request-disconnect-disabled": "?1"}
    with http.stream("POST", "/v1/chat/completions", json=body, headers=unwanted) as reply:
        next(reply.iter_lines())
    deadline = time.monotonic() + 20
    while http.get("/health").json()["inflight"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_decisions_and_pictures_are_on_disk(http: Any, ray_service: Any, ask_body: Body) -> None:
    from router.log import read_log

    reply = http.post("/v1/chat/completions", json=ask_body("Which bar?", seeds=(77,))).json()
    name = reply["id"].removeprefix("chatcmpl-").rpartition("-")[0]
    deadline = time.monotonic() + 15
    while True:
        rows = read_log(ray_service.log_dir).decisions.to_pylist()
        if found := [row for row in rows if row["request_id"] == name]:
            break
        assert time.monotonic() < deadline
        time.sleep(0.3)
    assert found[0]["question"] == "Which bar?"
    assert (ray_service.log_dir / "images" / f"{found[0]['picture_ids'][0]}.png").is_file()
