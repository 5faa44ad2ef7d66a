"""What an operator changes while clients ask: the router, the number of replicas."""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import ray
from _faults import inside
from _faults.cluster import Cluster, Strike, promote
from _faults.load import Ended, Load
from _faults.replicas import WARM_REQUESTS, found, until_there

WINDOW_S = 3.0
SWAPS = ("r9", "r36", "r9", "r36")


def router_swap(cluster: Cluster, requests: int) -> dict[str, Any]:
    """Exchange the router four times, then promote a damaged one."""
    registry = cluster.folder / "registry"
    added, took, in_flight = [], [], []
    with Load(cluster.url) as load:
        load.until(WARM_REQUESTS)
        start = time.time()
        for name in SWAPS:
            time.sleep(WINDOW_S)
            before = versions(cluster)
            while not load.open:
                pass
            in_flight.append(load.open)
            at = time.time()
            promote(registry, name)
            took.append(until_there(partial(all_new, cluster, before)) - at)
            time.sleep(WINDOW_S)
            usual = slowest(load.ended, at - WINDOW_S, WINDOW_S)
            added.append(slowest(load.ended, at, WINDOW_S) - usual)
        in_force = versions(cluster)
        promote(registry, "damaged")
        time.sleep(WINDOW_S)
        kept = versions(cluster) == in_force
        load.until(requests)
    promote(registry, "r36")
    report = found(load.ended, Strike(min(in_flight), start), start + max(took))
    return report | {
        "added_s": round(max(0.0, statistics.median(added)), 2),
        "added_worst_s": round(max(added), 2),
        "bad_router_changed_nothing": kept,
    }


def all_new(cluster: Cluster, before: set[str]) -> bool:
    """Return whether no encoder decides by a router of before any more."""
    return not versions(cluster) & before


def versions(cluster: Cluster) -> set[str]:
    """Return the versions of the routers in force, over all encoders."""
    asked = [
        each.actor.__ray_call__.remote(inside.router_version)
        for each in cluster.replicas("encoder")
    ]
    return set(ray.get(asked))


def slowest(ended: list[Ended], start: float, seconds: float) -> float:
    """Return the slowest request, streams apart, that was under way in a stretch of time."""
    there = [
        each.seconds for each in ended
        if not each.stream and each.started < start + seconds and each.ended > start
    ]  # fmt: skip
    return max(there, default=0.0)


def scaling(cluster: Cluster, requests: int) -> dict[str, Any]:
    """One generator becomes three and one again; then two, as it was."""
    cluster.scale("generator", 1)
    with Load(cluster.url) as load:
        load.until(WARM_REQUESTS)
        start = time.time()
        cluster.scale("generator", 3)
        up = time.time()
        load.until(requests // 2)
        while not (in_flight := cluster.in_hand("generator")):
            pass
        strike = Strike(in_flight, time.time())
        cluster.scale("generator", 1)
        down = time.time()
        load.until(requests)
    cluster.scale("generator", 2)
    return found(
        load.ended, strike, down, up_s=round(up - start, 1), down_s=round(down - strike.at, 1)
    )
