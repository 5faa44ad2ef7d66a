"""Replicas, the controller and the proxy, hurt while clients ask."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import ray
from _faults import inside
from _faults.cluster import LONGEST_RECOVERY_S, LOOK_S, Cluster, Strike
from _faults.load import CLIENTS, Ended, Load, body_of, counts, outcome, picture_of

WARM_REQUESTS = 20
LONG_ANSWER, LEAVE_AFTER_S, FREE_WITHIN_S = 1400, 1.5, 1.0
SDK_RETRIES = 2  # the openai SDK's own default


def found(ended: list[Ended], strike: Strike, recovered: float, **more: Any) -> dict[str, Any]:
    """Return a fault's entry of the report."""
    hit = [each.seconds for each in ended if each.started < recovered and each.ended > strike.at]
    return {
        "requests": sum(not each.stream for each in ended),
        "failed": sum(each.failed for each in ended),
        "in_flight_on_victim": strike.in_flight,
        "recovered_s": round(recovered - strike.at, 1),
        **more,
        "slowest_meanwhile_s": round(max(hit, default=0.0), 1),
        "ended": counts(ended),
    }


def replica_fault(deployment: str, kind: str, retries: int | None = None) -> Any:
    """Return the fault that hurts one of two replicas of a deployment."""

    def fault(cluster: Cluster, requests: int) -> dict[str, Any]:
        with Load(cluster.url, retries) as load:
            load.until(WARM_REQUESTS)
            victim, *others = cluster.replicas(deployment)
            strike = cluster.strike(victim.actor, kind)
            out, recovered = cluster.until_without(deployment, victim, 1 + len(others))
            load.until(requests)
        return found(load.ended, strike, recovered, out_s=round(out - strike.at, 1))

    return fault


gateway_kill: Callable[[Cluster, int], dict[str, Any]] = replica_fault(
    "gateway", "kill", SDK_RETRIES
)


def controller_kill(cluster: Cluster, requests: int) -> dict[str, Any]:
    """Kill Ray Serve's controller; it works on no request, so those of the service count."""
    with Load(cluster.url) as load:
        load.until(WARM_REQUESTS)
        while not (in_flight := cluster.in_hand("gateway")):
            pass
        strike = Strike(in_flight, time.time())
        old = cluster.kill(cluster.controller)
        recovered = until_there(lambda: ray.get(_pid(cluster.controller), timeout=5) != old)
        load.until(requests)
    return found(load.ended, strike, recovered)


def proxy_kill(cluster: Cluster, requests: int) -> dict[str, Any]:
    """Kill the only proxy: nobody answers until Ray has started another."""
    with Load(cluster.url, SDK_RETRIES) as load:
        load.until(WARM_REQUESTS)
        (proxy,) = cluster.details()["proxies"].values()
        actor = ray.get_actor(proxy["actor_name"], namespace="serve")
        strike = cluster.strike(actor, "kill")
        recovered = until_there(lambda: answers(cluster))
        load.until(requests)
    return found(load.ended, strike, recovered)


def poison_picture(cluster: Cluster, requests: int) -> dict[str, Any]:
    """Send one picture of which every encoder dies, while others ask."""
    seed = 2**50
    before = cluster.replicas("encoder")
    with Load(cluster.url) as load:
        load.until(WARM_REQUESTS)
        for each in before:
            ray.get(each.actor.__ray_call__.remote(inside.poison, picture_of(seed)))
        strike = Strike(1, time.time())  # the picture itself; others besides
        reply = httpx2.post(
            f"{cluster.url}/v1/chat/completions", json=body_of(seed), timeout=120, trust_env=False
        )
        until_there(lambda: len(cluster.replicas("encoder")) < len(before))
        recovered = until_there(lambda: len(cluster.replicas("encoder")) == len(before))
        names = {each.name for each in before}
        cost = len(names - {each.name for each in cluster.replicas("encoder")})
        load.until(requests // 5)
    return found(
        load.ended, strike, recovered, replicas_lost=cost, told=outcome(reply, stream=False),
        may_repeat=reply.headers.get("x-should-retry", "true"),
    )  # fmt: skip


def callers_leave(cluster: Cluster, requests: int) -> dict[str, Any]:
    """Ask for long answers and leave: the engines must have nothing left a second later."""
    url, bodies = f"{cluster.url}/v1/chat/completions", [
        body_of(2**51 + n, stream=n % 2 == 0, max_tokens=LONG_ANSWER) for n in range(CLIENTS)
    ]  # fmt: skip
    limits = httpx2.Timeout(60, read=LEAVE_AFTER_S)

    def leave(body: dict[str, Any]) -> None:
        with httpx2.Client(timeout=limits, trust_env=False) as http:
            try:
                with http.stream("POST", url, json=body) as reply:
                    next(reply.iter_lines())
                    time.sleep(LEAVE_AFTER_S)
            except httpx2.ReadTimeout:
                pass

    with ThreadPoolExecutor(CLIENTS) as callers:
        left = [callers.submit(leave, body) for body in bodies]
        in_flight = 0
        while not all(each.done() for each in left):
            in_flight = max(in_flight, cluster.in_hand("generator"))
    at = time.time()
    free = until_there(lambda: cluster.in_hand("generator") == 0)
    failed = 0 if free - at <= FREE_WITHIN_S else len(bodies)
    return {
        "requests": len(bodies), "failed": failed, "in_flight_on_victim": in_flight,
        "recovered_s": round(free - at, 1),
    }  # fmt: skip


def answers(cluster: Cluster) -> bool:
    """Return whether the service is ready."""
    url = f"{cluster.url}/health/ready"
    return httpx2.get(url, timeout=5, trust_env=False).status_code == 200


def until_there(is_there: Callable[[], bool]) -> float:
    """Return the time at which it is there; whatever is raised, it is not yet."""
    limit = time.time() + LONGEST_RECOVERY_S
    while time.time() < limit:
        try:
            if is_there():
                return time.time()
        except Exception:
            pass
        time.sleep(LOOK_S)
    raise TimeoutError(f"not there within {LONGEST_RECOVERY_S:g} s")


def _pid(actor: Any) -> Any:
    return actor.__ray_call__.remote(inside.pid)
