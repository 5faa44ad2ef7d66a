"""Which replica gets a request, and how many there are: ours beside Ray's own ways.

    python benchmarks/serve_routing.py --json benchmarks/results/serve_routing.json
    python benchmarks/serve_routing.py --quick

One local cluster, one gateway an application, m3-mini if not said otherwise. What is compared runs
there at the same time, asked in turns with the same requests, so that a busy machine slows all
alike: read the ratios.

generators   two replicas of a random model that costs enough for engines to be what callers wait
             for; callers in a closed loop, a quarter of the requests at 576 visual tokens and the
             rest at 9: fewest outstanding tokens beside Ray's power of two choices. `imbalance`:
             outstanding tokens of the busiest replica over the mean (1 even, 2 all on one).
encoders     three replicas, decisions about pictures drawn by Zipf's law: own rendezvous hashing
             beside Ray's ConsistentHashRouter and its power of two. `hit_share`: of pictures that
             were asked about before or after, those that needed no pass of the vision tower.
autoscaling  one to three generators, six callers, first at 1 visual token, then at 576: by tokens
             beside Ray's own policy by requests. `replicas`: wanted, second by second.
"""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from _engine.workload import build_model
from _result import arguments, write
from _serve.load import Body, Timings, closed_loop, keep_asking, picture_url, question, sampled
from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig
from rich.console import Console
from rich.table import Table

from serve.on_ray import app as service
from serve.on_ray.autoscaling import SHORTEST_LOOK_BACK_S
from serve.on_ray.cluster import local_cluster
from serve.on_ray.service import http_options
from serve.settings import AutoscalingSettings, DeploymentSettings, ServeSettings

SEED, ANSWER_TOKENS = 0, 8
CONSISTENT = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"
SCALED = AutoscalingSettings(
    max_replicas=3, target_tokens=1200.0, upscale_delay_s=2.0, downscale_delay_s=5.0
)
# Two requests at 576 for each replica either way, Ray's default being two.
BY_REQUESTS = AutoscalingConfig(
    min_replicas=1, max_replicas=3, target_ongoing_requests=2, upscale_delay_s=2.0,
    downscale_delay_s=5.0, look_back_period_s=SHORTEST_LOOK_BACK_S,
)  # fmt: skip
Requests = list[tuple[str, Body]]


def settings(
    encoders: int, generator: DeploymentSettings, model: Path | None = None
) -> ServeSettings:
    """Return the settings of an application."""
    return ServeSettings(
        model=model, registry=None, log_dir=None, encoder=DeploymentSettings(replicas=encoders),
        generator=generator,
    )  # fmt: skip


@contextmanager
def applications(port: int, **wanted: tuple[ServeSettings, dict[str, Any]]) -> Iterator[None]:
    """Run applications, each with parts of `serve.on_ray.app` replaced by Ray's own."""
    targets = []
    for name, (of, replaced) in wanted.items():
        with patch.multiple(service, **replaced) if replaced else patch.dict({}):
            built = service.build_app(of)
        targets.append(
            serve.RunTarget(built, name, f"/{name}", logging_config=service.logging_config(of))
        )
    serve.start(
        proxy_location="HeadOnly", logging_config=service.logging_config(ServeSettings()),
        http_options=http_options(ServeSettings(), "127.0.0.1", port),
    )  # fmt: skip
    serve.run_many(targets)
    try:
        yield
    finally:
        for name in wanted:
            serve.delete(name)


def told(application: str, part: str, method: str) -> list[Any]:
    """Return what every replica of a part says."""
    handle = serve.get_deployment_handle(part, application)
    return list(handle.broadcast(method).results(timeout_s=60))


def routed_by_ray(kind: str = "") -> dict[str, Any]:
    """Return what makes an application's parts use a router of Ray's; "": its default."""
    config = {"request_router_class": kind} if kind else {}
    return {"_routed_by": lambda *_, **__: RequestRouterConfig(**config)}


def write_costly_model(folder: Path) -> None:
    """Write a random model whose answers never end by themselves."""
    model, processor = build_model(hidden=384, layers=6)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def generators(url: str, port: int, turns: int, n: int, model: Path) -> dict[str, Any]:
    """Return latencies and imbalance with both ways to choose generators."""
    rng, report = np.random.default_rng(SEED), dict[str, Any]()
    pictures = [picture_url(number) for number in range(4)]
    of = settings(1, DeploymentSettings(replicas=2), model)
    with applications(port, tokens=(of, {}), power_of_two=(of, routed_by_ray())):
        names = ("tokens", "power_of_two")
        for name in names:  # encoded once, so that only generators differ
            closed_loop(f"{url}/{name}", [("", question(p, 9, 1)) for p in pictures * 2], 2)
        timings = {name: Timings() for name in names}
        busiest, mean = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        for turn in range(turns):
            requests: Requests = []
            for _ in range(n):
                scale = 576 if rng.random() < 0.25 else 9
                url_of = pictures[rng.integers(len(pictures))]
                requests.append((str(scale), question(url_of, scale, ANSWER_TOKENS)))
            for name in names if turn % 2 == 0 else names[::-1]:

                def outstanding(name: str = name) -> list[float]:
                    stats = told(name, "generator", "record_autoscaling_stats")
                    return [each["m3_outstanding_tokens"] for each in stats]

                with sampled(outstanding, 0.1) as seen:
                    timings[name].add(closed_loop(f"{url}/{name}", requests, 8))
                busiest[name] += sum(max(tokens) for _, tokens in seen)
                mean[name] += sum(sum(tokens) / len(tokens) for _, tokens in seen)
        for name in names:
            even = {"imbalance": round(busiest[name] / mean[name], 3)}
            report[name] = timings[name].report() | even
    return report


def encoders(url: str, port: int, turns: int, n: int, pictures: int) -> dict[str, Any]:
    """Return hits, latencies and CPU with three ways to choose encoders."""
    rng = np.random.default_rng(SEED)
    of = settings(3, DeploymentSettings())
    wanted = {
        "rendezvous": (of, dict[str, Any]()),
        "consistent_hash": (of, routed_by_ray(CONSISTENT)),
        "power_of_two": (of, routed_by_ray()),
    }
    shares = 1.0 / np.arange(1, pictures + 1)
    timings = {name: Timings() for name in wanted}
    asked, encoded = 0, dict.fromkeys(wanted, 0)
    with applications(port, **wanted):
        for turn in range(turns):
            drawn = rng.choice(pictures, n, p=shares / shares.sum()) + turn * pictures
            urls = {int(each): picture_url(1000 + int(each)) for each in np.unique(drawn)}
            requests = [("decision", question(urls[int(each)], 9, 1)) for each in drawn]
            asked += n
            for name in list(wanted)[turn % 3 :] + list(wanted)[: turn % 3]:
                before = sum(each.cached_pictures for each in told(name, "encoder", "status"))
                timings[name].add(closed_loop(f"{url}/{name}", requests, 8, "/v1/route"))
                after = sum(each.cached_pictures for each in told(name, "encoder", "status"))
                encoded[name] += after - before
    return {
        name: timings[name].report()
        | {"encoded": encoded[name], "hit_share": round(1 - encoded[name] / asked, 3)}
        for name in wanted
    }


def autoscaling(url: str, port: int, phase_s: float) -> dict[str, Any]:
    """Return how many generators each policy wants under little and under much work."""
    of = settings(1, DeploymentSettings(autoscaling=SCALED))
    by_requests = {"autoscaling_config": lambda *_: BY_REQUESTS}
    report: dict[str, Any] = {}
    pictures = [picture_url(number) for number in range(4)]
    with applications(port, tokens=(of, {}), requests=(of, by_requests)):
        for name in ("tokens", "requests"):

            def wanted(name: str = name) -> int:
                parts = serve.status().applications[name].deployments
                return int(sum(parts["generator"].replica_states.values()))

            report[name] = {}
            for scale in (1, 576):
                bodies = [question(p, scale, ANSWER_TOKENS) for p in pictures]
                with keep_asking(f"{url}/{name}", bodies, 6), sampled(wanted, 1.0) as seen:
                    time.sleep(phase_s)
                report[name][str(scale)] = {
                    "replicas": [n for _, n in seen],
                    "at_the_end": seen[-1][1],
                    "replica_s": round(sum(n for _, n in seen), 1),
                }
                wait_until(lambda: wanted() == 1, 90.0)
    return report


def wait_until(true: Any, seconds: float) -> None:
    """Return when it is true, or when the time is up."""
    stop, deadline = threading.Event(), time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        stop.wait(0.5)


def show(title: str, rows: dict[str, dict[str, Any]]) -> None:
    """Print a part of the report, its numbers side by side."""
    flat = {name: dict(_flattened(row)) for name, row in rows.items()}
    table = Table("", *flat, title=title)
    for key in next(iter(flat.values())):
        table.add_row(key, *(str(row.get(key, "")) for row in flat.values()))
    Console().print(table)


def _flattened(row: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in row.items():
        if isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{key} ")
        elif not isinstance(value, list):
            yield prefix + key, value


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def main() -> None:
    """Run, print, and write where asked."""
    args = arguments(__doc__, "fewer requests and shorter phases").parse_args()
    quick, port = args.quick, free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as model, local_cluster(print):
        write_costly_model(Path(model))
        report = {
            "generators": generators(
                url, port, turns=2 if quick else 8, n=60 if quick else 200, model=Path(model)
            ),
            "encoders": encoders(
                url, port, turns=1 if quick else 6, n=60 if quick else 300,
                pictures=20 if quick else 100,
            ),
            "autoscaling": autoscaling(url, port, phase_s=25.0 if quick else 60.0),
            "quick": quick,
        }  # fmt: skip
    for part in ("generators", "encoders", "autoscaling"):
        show(part, report[part])
    write(report, args.json)


if __name__ == "__main__":
    main()
