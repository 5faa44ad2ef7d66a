"""A restricted router: followed while running, told in replies and the log, not freed by haste."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from m3model import M3Config
from router import ComplexityPredictor, Constraints, Policy, Router, feature_schema
from router.actions import ActionSpace
from router.decision import NOTHING_LOST, Reason
from router.registry import Restriction
from serve.in_process import compose
from serve.settings import ServeSettings

SCALES = (1, 9, 36, 144, 576)
ANCHOR = Restriction(None, "it loses answers")
Body = Callable[..., dict[str, Any]]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "never happened"
        time.sleep(0.01)


@pytest.fixture
def routed(running: Any, ask_body: Body, restrict: Any) -> Iterator[Callable[..., Any]]:
    """Asks the service of the test run; it is unrestricted again afterwards."""

    def ask(path: str = "chat/completions", **routing: Any) -> Any:
        body = ask_body(routing=routing) if routing else ask_body()
        return httpx2.post(f"{running.url}/v1/{path}", json=body, timeout=60)

    yield ask
    restrict(running.registry, None)
    wait_for(lambda: running.service.encoder._router.restriction is None)


def restriction_of(running: Any) -> Restriction | None:
    found: Restriction | None = running.service.encoder._router.restriction
    return found


def test_the_service_follows_to_the_anchor_and_back(
    running: Any, routed: Callable[..., Any], restrict: Any
) -> None:
    assert routed().json()["routing"]["scale"] == 36
    restrict(running.registry, ANCHOR)
    wait_for(lambda: restriction_of(running) == ANCHOR)

    told = routed().json()["routing"]
    assert (told["scale"], told["reason"]) == (576, "restricted")
    assert told["router_version"] == running.router_version
    assert told["p_suffices"] is not None
    pinned = routed(scale=9).json()["routing"]
    assert (pinned["scale"], pinned["reason"]) == (9, "pinned")
    capped = routed(max_visual_tokens=200).json()["routing"]
    assert (capped["scale"], capped["reason"]) == (144, "budget_cap")
    explained = routed(explain=True).json()["routing"]
    assert (explained["scale"], explained["reason"]) == (576, "restricted")
    assert explained["explain"] is not None
    state = httpx2.get(f"{running.url}/health").json()
    assert state["status"] == "ok"
    assert state["restricted"] == "the finest scale: it loses answers"
    assert "m3_router_restricted 1.0" in httpx2.get(f"{running.url}/metrics").text

    restrict(running.registry, None)
    wait_for(lambda: restriction_of(running) is None)
    told = routed().json()["routing"]
    assert (told["scale"], told["reason"]) == (36, "predicted")
    assert httpx2.get(f"{running.url}/health").json()["restricted"] is None
    assert "m3_router_restricted 0.0" in httpx2.get(f"{running.url}/metrics").text


def test_bounds_are_kept_by_the_finest_scale_and_no_second_look_follows(
    running: Any, routed: Callable[..., Any], restrict: Any
) -> None:
    assert routed(max_harm=0.01).json()["error"]["code"] == "no_certificate"
    restrict(running.registry, Restriction(0.1, "moved"))
    wait_for(lambda: restriction_of(running) is not None)
    told = routed("route", max_harm=0.01).json()["routing"]
    assert (told["scale"], told["certified"]["max_harm"]) == (576, 0.0)
    refused = routed(second_look=True)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "no_second_look"


def test_the_log_tells_what_was_decided_under(
    running: Any, routed: Callable[..., Any], restrict: Any
) -> None:
    from router import constraints_from_json
    from router.log import read_log

    restrict(running.registry, ANCHOR)
    wait_for(lambda: restriction_of(running) == ANCHOR)
    request_id = routed().headers["x-request-id"]
    running.service.gateway.log._log.flush()
    rows = read_log(running.log_dir).decisions.to_pylist()
    [row] = [row for row in rows if row["request_id"] == request_id]
    assert (row["reason"], row["actions"], row["certificate"]) == ("restricted", ["576"], None)
    held_to = constraints_from_json(row["constraints"])
    assert (held_to.restricted, held_to.restricted_price) == (True, None)


@pytest.fixture(scope="module")
def router(tiny_model: Path) -> Router:
    """P(suffices) near 0.5, 0.5, 0.8, 0.9, 1 for everything: 36 at price 0.5, 576 below 0.1."""
    config = M3Config.from_pretrained(tiny_model)
    schema = feature_schema(SCALES, config.grid_side, config.hidden_size)
    rng = np.random.default_rng(0)
    features = rng.standard_normal((400, len(schema.names))).astype(np.float32)
    suffices = rng.random((400, 1)) < np.array([[0.5, 0.5, 0.8, 0.9, 1.0]])
    predictor = ComplexityPredictor(n_estimators=2).fit(features, suffices)
    return Router(predictor, schema, Policy(tuple(s / 576 for s in SCALES), 0.5))


def test_a_price_by_hand(router: Router) -> None:
    """value - price x cost: at 0.5 36 has 0.8 - 0.03, 576 has 1 - 0.5; at 0.01 0.8 and 0.99."""
    row = np.zeros(len(router.schema.names), np.float32)
    free = router.route(row)
    assert (free.scale, free.reason) == (36, Reason.predicted)
    safer = router.route(row, Constraints(restricted=True, restricted_price=0.01))
    assert (safer.scale, safer.reason, safer.price) == (576, Reason.restricted, 0.01)
    same = router.route(row, Constraints(restricted=True, restricted_price=0.5))
    assert (same.scale, same.reason) == (36, Reason.restricted)
    none = router.route(row, Constraints(restricted=True))
    assert (none.scale, none.reason) == (576, Reason.restricted)
    bound = router.route(row, Constraints(restricted=True, restricted_price=0.5, max_harm=0.1))
    assert (bound.scale, bound.certified) == (576, NOTHING_LOST)
    odd = router.route(row, Constraints(restricted=True, restricted_price=0.5), unfamiliar=True)
    assert (odd.scale, odd.reason) == (576, Reason.unfamiliar)
    floored = router.route(row, Constraints(restricted=True, price_floor=9.0))
    assert (floored.scale, floored.reason) == (576, Reason.restricted)
    two = router.route(np.stack([row, row]), Constraints(restricted=True))
    assert (two.scales, two.reason) == ((576, 576), Reason.restricted)


def test_one_that_took_the_finest_goes_on_to(router: Router) -> None:
    finest = router.with_policy(Policy(router.policy.costs, 0.0, finest_only=True))
    row = np.zeros(len(router.schema.names), np.float32)
    assert finest.route(row, Constraints(restricted=True, restricted_price=0.5)).scale == 576


def test_with_a_focus_the_anchor_reads_the_whole_picture(
    make_focus_router: Any, tmp_path: Path
) -> None:
    focusing = make_focus_router(tmp_path, "9+144@500x12")
    space: ActionSpace = focusing.space
    plan = space.plan(np.ones(576, np.float32))
    row = np.zeros(len(focusing.schema.names), np.float32)
    assert focusing.route(row, plan=plan).readings[0].fine == 144
    held = focusing.route(row, Constraints(restricted=True), plan=plan)
    assert (held.scale, held.readings[0].fine) == (576, None)


@pytest.fixture
def start(tiny_model: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Composes services on one registry."""
    made: list[Any] = []

    def compose_one(**more: Any) -> Any:
        settings = ServeSettings(
            model=tiny_model,
            registry=tmp_path / "registry",
            registry_poll_s=0.02,
            log_dir=None,
            **more,
        )
        made.append(compose(settings))
        return made[-1].encoder._router

    yield compose_one
    for each in made:
        asyncio.run(each.stop())


def test_a_start_follows_what_was_said_before_it(
    start: Callable[..., Any], make_router: Any, promote: Any, restrict: Any, tmp_path: Path
) -> None:
    """The restriction is of the router that the registry names, at the start as later."""
    registry, given = tmp_path / "registry", tmp_path / "given"
    make_router(given, 9)
    restrict(registry, Restriction(0.02, "before anything was promoted"))
    assert start(router=given).restriction == Restriction(0.02, "before anything was promoted")
    make_router(registry / "a", 36)
    promote(registry, registry / "a")
    assert start().restriction is None  # a promotion ends it
    restrict(registry, Restriction(0.02, "moved"))
    live = start()
    assert live.restriction == Restriction(0.02, "moved")
    other = start(router=given)  # asked for instead of what is restricted
    assert other.restriction is None
    make_router(registry / "b", 144)
    promote(registry, registry / "b")
    wait_for(lambda: live.current.version == other.current.version)
    assert live.restriction is None


def test_what_stands_in_for_a_restricted_router_is_held_to_the_anchor(
    start: Callable[..., Any], make_router: Any, promote: Any, restrict: Any, tmp_path: Path
) -> None:
    """A price is of one router, and a promotion that fails frees nobody."""
    registry = tmp_path / "registry"
    first = make_router(registry / "a", 36)
    make_router(registry / "damaged", 1)
    (registry / "damaged" / "scale_0009.txt").write_text("tree\n")
    promote(registry, registry / "a")
    live = start()
    restrict(registry, Restriction(0.02, "moved"))
    wait_for(lambda: live.restriction == Restriction(0.02, "moved"))
    promote(registry, registry / "damaged")
    wait_for(lambda: not live.ok)
    assert (live.version, live.restriction) == (first, Restriction(0.02, "moved"))
    restrict(registry, Restriction(0.01, "worse"))
    wait_for(lambda: live.restriction != Restriction(0.02, "moved"))
    assert (live.version, live.restriction) == (first, Restriction(None, "worse"))
    make_router(registry / "b", 144)
    promote(registry, registry / "b")
    wait_for(lambda: live.ok)
    assert live.restriction is None
