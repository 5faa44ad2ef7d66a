"""Which replicas get what, and how, on a real cluster: `test_ray`'s."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]
Body = Callable[..., dict[str, Any]]
CHAT = "/v1/chat/completions"


@pytest.fixture
def http(ray_service: Any) -> Any:
    with httpx2.Client(base_url=ray_service.url, timeout=60) as client:
        yield client


def replicas(part: str) -> list[psutil.Process]:
    mine = psutil.Process().children(recursive=True)
    return [p for p in mine if part in " ".join(p.cmdline())]


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def told(deployment: str, method: str) -> list[Any]:
    """Returns what every replica says."""
    from ray import serve

    handle = serve.get_deployment_handle(deployment, "m3")
    return list(handle.broadcast(method).results(timeout_s=30))


def cached() -> int:
    return sum(status.cached_pictures for status in told("encoder", "status"))


def test_a_picture_is_encoded_once_whichever_way_it_is_asked_about(
    http: Any, ask_body: Body
) -> None:
    until(lambda: len(told("encoder", "status")) == 2)
    before, pictures = cached(), range(200, 210)
    ways = [{"model": "m3-1"}, {"model": "m3-576"}, {"stream": True}, {}]
    for way in ways:
        for seed in pictures:
            assert http.post(CHAT, json=ask_body(seeds=(seed,), **way)).status_code == 200
            assert http.post("/v1/route", json=ask_body(seeds=(seed, 1))).status_code == 200
    new = cached() - before
    assert len(pictures) <= new <= len(pictures) + 2  # the second picture goes with the first
    assert all(status.cached_pictures for status in told("encoder", "status"))


def test_when_an_encoder_dies_the_others_take_its_pictures(http: Any, ask_body: Body) -> None:
    until(lambda: len(replicas("encoder")) == 2)
    bodies = [ask_body(seeds=(seed,), max_tokens=2) for seed in range(300, 312)]
    assert {http.post(CHAT, json=body).status_code for body in bodies} == {200}
    os.kill(replicas("encoder")[0].pid, signal.SIGKILL)
    assert {http.post(CHAT, json=body).status_code for body in bodies * 2} == {200}
    until(lambda: len(replicas("encoder")) == 2)


def test_replicas_tell_ray_what_it_listens_to(http: Any, ask_body: Body) -> None:
    for part in ("encoder", "generator"):
        well = [{"m3_well": True}] * 2
        until(lambda part=part, well=well: told(part, "record_routing_stats") == well)  # type: ignore[misc]
        for stats in told(part, "record_autoscaling_stats"):
            assert stats["m3_outstanding_tokens"] == 0.0  # everything that was taken is done
            assert {type(value) for value in stats.values()} == {float}


def test_pictures_and_tokens_never_lie_in_the_object_store(
    http: Any, ray_service: Any, ask_body: Body
) -> None:
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    def stored() -> Any:
        state = get_state_from_address(ray.get_runtime_context().gcs_address)
        return get_memory_info_reply(state).store_stats

    before = stored().cumulative_created_bytes
    bodies = [ask_body(model="m3-576", seeds=(n,), max_tokens=2) for n in range(400, 404)]
    # 9 MB in base64 each; noise does not shrink.
    bodies += [ask_body(model="m3-576", seeds=(410,), size=(1500, 1500), max_tokens=2)] * 3
    with ThreadPoolExecutor(4) as callers:
        replies = list(callers.map(lambda body: http.post(CHAT, json=body), bodies))
    assert {reply.status_code for reply in replies} == {200}, [reply.text for reply in replies]
    now = stored()
    assert now.cumulative_created_bytes - before < 200_000
    assert now.spilled_bytes_total == now.object_store_bytes_fallback == 0
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    assert not [path for path in session.rglob("*spill*") if path.is_file()]


@pytest.fixture
def scaled(tiny_model: Path, ray_service: Any) -> Iterator[Any]:
    """Another application on the cluster, with one generator to three; returns its handle."""
    from ray import serve

    from serve.on_ray.app import build_app
    from serve.settings import AutoscalingSettings, DeploymentSettings, ServeSettings

    tokens = AutoscalingSettings(
        max_replicas=3, target_tokens=1000.0, upscale_delay_s=0.0, downscale_delay_s=2.0
    )
    settings = ServeSettings(
        model=tiny_model, registry=None, log_dir=None,
        generator=DeploymentSettings(autoscaling=tokens),
    )  # fmt: skip
    serve.run(build_app(settings), name="scaled", route_prefix="/scaled")
    yield ray_service
    serve.delete("scaled")


def test_generators_follow_the_tokens_up_and_down(scaled: Any, ask_body: Body) -> None:
    from ray import serve

    def running() -> int:
        states = serve.status().applications["scaled"].deployments["generator"].replica_states
        return int(states.get("RUNNING", 0))

    stop, codes = threading.Event(), list[int]()

    def load(seed: int) -> None:
        body = ask_body(model="m3-576", seeds=(seed % 2,), max_tokens=900)
        with httpx2.Client(base_url=f"{scaled.url}/scaled", timeout=120) as client:
            while not stop.is_set():
                codes.append(client.post(CHAT, json=body).status_code)

    until(lambda: running() == 1)
    with ThreadPoolExecutor(6) as callers:
        for n in range(6):
            callers.submit(load, n)
        try:
            until(lambda: running() == 3)  # 6 x 640 = 3,840 tokens, where one should have 1,000
        finally:
            stop.set()
    assert set(codes) == {200}
    until(lambda: running() == 1, 120)
