"""A router on trial in a real service: followed through the journal, with no request lost."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from m3model.config import hash_model
from router import Certificate, Router
from router.certificate.promise import Rung
from router.log import read_log
from router.records import DecisionRecord, from_table
from router.registry import Trial, last_entry
from serve.arms.assignment import is_drawn, session_of
from serve.in_process import Service, compose
from serve.settings import ServeSettings

CHAT, ROUTE = "/v1/chat/completions", "/v1/route"
GROUPS = [f"g{number}" for number in range(16)]
Body = Callable[..., dict[str, Any]]
Command = Callable[..., Any]


@dataclass
class Served:
    """A service on a loop of its own, its folders, and the versions of its routers."""

    folder: Path
    service: Service
    loop: asyncio.AbstractEventLoop

    @property
    def registry(self) -> Path:
        return self.folder / "registry"

    def ask(self, bodies: list[dict[str, Any]], path: str = ROUTE) -> list[httpx2.Response]:
        async def run() -> list[httpx2.Response]:
            transport = httpx2.ASGITransport(app=self.service.api)
            async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
                return await asyncio.gather(*(http.post(path, json=body) for body in bodies))

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(120)

    def versions(self, bodies: list[dict[str, Any]], path: str = ROUTE) -> list[str]:
        replies = self.ask(bodies, path)
        assert {reply.status_code for reply in replies} == {200}
        return [reply.json()["routing"]["router_version"] for reply in replies]

    def waits_for(self, seen: Callable[[], bool]) -> None:
        for _ in range(1000):
            if seen():
                return
            time.sleep(0.02)
        raise AssertionError(self.trial)

    @property
    def trial(self) -> str:
        return self.service.encoder._router.trial.told

    def metrics(self) -> str:
        return asyncio.run(self.service.gateway.metrics.text())

    def log(self) -> list[DecisionRecord]:
        asyncio.run_coroutine_threadsafe(self.service.gateway.log.settle(), self.loop).result(20)
        rows = from_table(read_log(self.folder / "log").decisions, DecisionRecord)
        return sorted(rows, key=lambda row: row.time_utc)


@contextmanager
def served(folder: Path, tiny_model: Path, **more: Any) -> Iterator[Served]:
    settings = ServeSettings(
        model=tiny_model, registry=folder / "registry", registry_poll_s=0.02,
        log_dir=folder / "log", log_prompts=True, **{"router": folder / "live", **more},
    )  # fmt: skip
    service, loop = compose(settings), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield Served(folder, service, loop)
    finally:
        asyncio.run_coroutine_threadsafe(service.stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()


@pytest.fixture
def routers(tmp_path: Path, make_router: Callable[[Path, int], str]) -> tuple[str, str]:
    """Versions of the live router, which reads at 36, and of another, which reads at 9."""
    return make_router(tmp_path / "live", 36), make_router(tmp_path / "cheap", 9)


def of_group(ask_body: Body, group: str, seed: int = 0, **more: Any) -> dict[str, Any]:
    return ask_body(f"What is number {seed}?", seeds=(seed,), routing={"group_id": group, **more})


def test_a_canary_is_tried_stopped_and_promoted_without_a_failed_request(
    tmp_path: Path, tiny_model: Path, routers: tuple[str, str], ask_body: Body, command: Command
) -> None:
    live, cheap = routers
    wanted = [
        cheap if is_drawn(session_of("", group, [], []), cheap, 0.4) else live for group in GROUPS
    ]
    assert len(set(wanted)) == 2
    registry = ("--registry", tmp_path / "registry")
    with served(tmp_path, tiny_model) as running:
        statuses: list[int] = []
        stop = threading.Event()

        def traffic() -> None:
            while not stop.is_set():
                bodies = [of_group(ask_body, group) for group in GROUPS[:2]]
                statuses.extend(reply.status_code for reply in running.ask(bodies, CHAT))

        asking = threading.Thread(target=traffic)
        asking.start()
        try:
            told = command(
                "m3-train", "canary", tmp_path / "cheap", "--share", "0.4", *registry,
                "--why", "cheaper", "--expect", "start",
            )  # fmt: skip
            assert told.returncode == 0, told.stderr
            assert "the gate is asked when it is promoted" in told.stderr
            running.waits_for(lambda: running.trial.startswith("canary"))
            first = [of_group(ask_body, group) for group in GROUPS]
            again = [of_group(ask_body, group, 1) for group in GROUPS]
            assert running.versions(first) == wanted
            assert running.versions(again, CHAT) == wanted  # other pictures, other words
            assert "canary 0.4" in command("m3-train", "list", *registry).stdout
            # Another share of the same router takes nobody off it.
            command("m3-train", "canary", tmp_path / "cheap", "--share", "0.5", *registry)
            running.waits_for(lambda: "0.5" in running.trial)
            more = running.versions(first)
            assert all(now == cheap for now, before in zip(more, wanted, strict=True)
                       if before == cheap)  # fmt: skip
            assert command("m3-train", "canary", "--stop", *registry).returncode == 0
            running.waits_for(lambda: running.trial == "")
            assert set(running.versions(first)) == {live}
            command("m3-train", "canary", tmp_path / "cheap", "--share", "0.4", *registry)
            running.waits_for(lambda: running.trial != "")
            told = command(
                "m3-train", "promote", "--router", tmp_path / "cheap", "--force", *registry
            )
            assert told.returncode == 0, told.stderr
            running.waits_for(lambda: running.service.encoder._router.version == cheap)
            running.waits_for(lambda: running.trial == "")
            assert set(running.versions(first)) == {cheap}
        finally:
            stop.set()
            asking.join(60)
        assert set(statuses) == {200}
        assert len(statuses) > 4
        rows = running.log()
        metrics = running.metrics()
    assert {row.arm for row in rows} == {"live", "canary"}
    for row in rows:
        assert row.arm == "live" or row.router_version == cheap
        assert row.group_id in GROUPS
    n_canary = sum(row.arm == "canary" for row in rows)
    told_of = {line.split()[0]: float(line.split()[1]) for line in metrics.splitlines()
               if line.startswith("m3_arm_requests_total")}  # fmt: skip
    assert told_of['m3_arm_requests_total{arm="canary"}'] == n_canary > 0
    n_tokens = sum(row.visual_tokens for row in rows if row.arm == "live")
    assert f'm3_arm_visual_tokens_total{{arm="live"}} {float(n_tokens)}' in metrics
    assert 'm3_arm_failures_total{arm="canary"} 0.0' in metrics


def test_a_restart_and_another_replica_keep_every_session_on_its_arm(
    tmp_path: Path, tiny_model: Path, routers: tuple[str, str], ask_body: Body, command: Command
) -> None:
    command("m3-train", "canary", tmp_path / "cheap", "--share", "0.5",
            "--registry", tmp_path / "registry")  # fmt: skip
    talks = [ask_body(f"Is it {n}?", seeds=(n % 3,)) for n in range(12)]
    longer = [
        {**talk, "messages": [
            *talk["messages"], {"role": "assistant", "content": "no"},
            {"role": "user", "content": "And now?"},
        ]} for talk in talks
    ]  # fmt: skip
    with served(tmp_path, tiny_model) as one, served(tmp_path, tiny_model) as other:
        first = one.versions(talks)
        assert set(first) == set(routers)
        assert other.versions(talks) == first
    with served(tmp_path, tiny_model) as again:
        assert again.versions(talks) == first
        assert again.versions(longer) == first


def test_a_bad_canary_changes_nothing_but_a_gauge(
    tmp_path: Path, tiny_model: Path, routers: tuple[str, str], ask_body: Body, command: Command,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    live, cheap = routers
    registry = ("--registry", tmp_path / "registry")
    command("m3-train", "canary", tmp_path / "cheap", "--share", "0.5", *registry)
    (bad,) = (tmp_path / "registry").glob(f"{cheap}-*")
    (bad / "scale_0009.txt").write_text("tree\n")
    with served(tmp_path, tiny_model) as running:
        bodies = [of_group(ask_body, group) for group in GROUPS]
        (nameless,) = running.ask([of_group(ask_body, "")])
        assert (nameless.status_code, nameless.json()["error"]["param"]) == (
            400, "routing.group_id",
        )  # fmt: skip
        assert set(running.versions(bodies)) == {live}
        assert running.trial.endswith("cannot be loaded")
        health = asyncio.run_coroutine_threadsafe(running.service.gateway.health(), running.loop)
        told = health.result(20)
        assert (told["status"], told["router_ok"]) == ("ok", True)
        assert told["encoder"]["trial"] == running.trial
        assert "m3_trial_stale 1.0" in running.metrics()
        assert running.service.encoder._router.ok
        assert command("m3-train", "canary", "--stop", *registry).returncode == 0
        running.waits_for(lambda: "m3_trial_stale 0.0" in running.metrics())
    assert sum("is not tried" in record.message for record in caplog.records) == 1


def test_quarantine_ends_a_trial_and_keeps_it_ended(
    tmp_path: Path, tiny_model: Path, routers: tuple[str, str], ask_body: Body, command: Command
) -> None:
    live = routers[0]
    registry = ("--registry", tmp_path / "registry")
    with served(tmp_path, tiny_model) as running:
        command("m3-train", "canary", tmp_path / "cheap", "--share", "0.5", *registry)
        running.waits_for(lambda: running.trial != "")
        told = command("m3-train", "canary", "--stop", "--quarantine", "--why", "dull", *registry)
        assert told.returncode == 0
        running.waits_for(lambda: running.trial == "")
        assert set(running.versions([of_group(ask_body, g) for g in GROUPS])) == {live}
    for kind in ("canary", "shadow"):
        refused = command("m3-train", kind, tmp_path / "cheap", *registry)
        assert refused.returncode == 2
        assert "not tried" in refused.stderr
        assert "dull" in refused.stderr
        assert refused.stderr.count("\n") == 1


def test_a_canary_that_fails_is_given_no_more_requests_here(
    tmp_path: Path, tiny_model: Path, routers: tuple[str, str], ask_body: Body, command: Command,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    live, cheap = routers
    registry = ("--registry", tmp_path / "registry")
    command("m3-train", "canary", tmp_path / "cheap", "--share", "0.5", *registry)
    with served(tmp_path, tiny_model) as running, pytest.MonkeyPatch.context() as patch:
        sound = Router.route

        def route(self: Router, *arguments: Any, **more: Any) -> Any:
            if self.version == cheap:
                raise FloatingPointError("no number")
            return sound(self, *arguments, **more)

        patch.setattr(Router, "route", route)
        bodies = [of_group(ask_body, f"{group}/{n}") for n in range(6) for group in GROUPS]
        for start in range(0, len(bodies), 8):
            assert {r.status_code for r in running.ask(bodies[start : start + 8])} == {200}
        assert running.trial.endswith("stopped here because it fails")
        assert set(running.versions(bodies[:16])) == {live}
        assert "m3_canary_stopped 1.0" in running.metrics()
        patch.undo()
        # Begun anew, it is given requests again.
        command("m3-train", "canary", tmp_path / "cheap", "--share", "0.5", *registry)
        running.waits_for(lambda: "m3_canary_stopped 0.0" in running.metrics())
        assert set(running.versions(bodies[:16])) == {live, cheap}
    assert sum("is given no more" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("holders", ["none", "live", "both"])
def test_a_promise_is_kept_by_the_arm_only_where_its_router_can(
    tmp_path: Path, tiny_model: Path, routers: tuple[str, str], ask_body: Body, command: Command,
    holders: str,
) -> None:  # fmt: skip
    """No request fails, or loses a promise, because of a trial."""
    live, cheap = routers
    for name in {"none": (), "live": ("live",), "both": ("live", "cheap")}[holders]:
        certified(tmp_path / name, hash_model(tiny_model))
    command("m3-train", "canary", tmp_path / "cheap", "--share", "0.5",
            "--registry", tmp_path / "registry")  # fmt: skip
    with served(tmp_path, tiny_model) as running:
        bodies = [of_group(ask_body, group, max_harm=0.06) for group in GROUPS]
        replies = running.ask(bodies)
        if holders == "none":
            assert {reply.json()["error"]["code"] for reply in replies} == {"no_certificate"}
            return
        told = [reply.json()["routing"] for reply in replies]
        deciding = {live} if holders == "live" else {live, cheap}
        assert {each["router_version"] for each in told} == deciding
        assert {each["certified"]["max_harm"] for each in told} == {0.05}
        free = [of_group(ask_body, group) for group in GROUPS]
        assert set(running.versions(free)) == {live, cheap}


def certified(folder: Path, model_hash: str) -> None:
    """Give a router a made-up certificate."""
    router = Router.from_pretrained(folder)
    rungs = (Rung(0.01, None, 576.0, 0.0), Rung(0.05, 0.01, 36.0, 0.01))
    router.with_certificate(
        Certificate(
            loss="harm", bound=0.01, delta=0.05, method="betting", population="pictures",
            scored_by="exact match", pictures=500, questions=900, created_utc="2026-11-22T10:00:00",
            router_version=router.version, predictor_hash=router.predictor_hash,
            model_hash=model_hash, feature_schema=router.schema.hash, data_hash="d",
            prices=(-9.0, 0.0, 0.01, 0.5), ladder=rungs, slices=(),
        )
    ).save_pretrained(folder)  # fmt: skip


def test_a_shadow_changes_nothing_and_says_what_it_would_have_done(
    tmp_path: Path, tiny_model: Path, routers: tuple[str, str], ask_body: Body, command: Command
) -> None:
    cheap = routers[1]
    registry = ("--registry", tmp_path / "registry")
    bodies = [of_group(ask_body, group, seed) for seed, group in enumerate(GROUPS[:6])]
    bodies.append(ask_body("Pinned?", routing={"scale": 9}))
    bodies.append(ask_body("No picture?", seeds=()))
    with served(tmp_path, tiny_model) as running:
        plain = [reply.json()["choices"] for reply in running.ask(bodies, CHAT)]
        command("m3-train", "shadow", tmp_path / "cheap", *registry)
        running.waits_for(lambda: running.trial.startswith("shadow"))
        assert [reply.json()["choices"] for reply in running.ask(bodies, CHAT)] == plain
        with pytest.MonkeyPatch.context() as patch:
            sound = Router.route

            def route(self: Router, *arguments: Any, **more: Any) -> Any:
                if self.version == cheap:
                    raise FloatingPointError("no number")
                return sound(self, *arguments, **more)

            patch.setattr(Router, "route", route)
            assert [reply.json()["choices"] for reply in running.ask(bodies, CHAT)] == plain
        metrics, rows = running.metrics(), running.log()
        assert command("m3-train", "shadow", "--stop", *registry).returncode == 0
        running.waits_for(lambda: running.trial == "")
    assert 'm3_shadow_decisions_total{outcome="differs"} 6.0' in metrics
    assert 'm3_shadow_decisions_total{outcome="failed"} 6.0' in metrics
    assert "m3_routing_failures_total 0.0" in metrics
    assert {row.arm for row in rows} == {"live"}
    told = [json.loads(row.shadow) for row in rows if row.shadow is not None]
    assert len(told) == 12
    assert {each["version"] for each in told} == {cheap}
    assert [each["failed"] for each in told if "failed" in each] == ["FloatingPointError"] * 6
    for each in told:
        if "failed" not in each:
            assert (each["actions"], each["visual_tokens"]) == (["9"], 9)
            assert each["served"] == {"actions": ["36"], "visual_tokens": 36}
    said = command("m3-train", "shadow", "--report", "--log-dir", tmp_path / "log")
    assert said.returncode == 0, said.stderr
    assert "6 of 6 requests read otherwise, 9.0 visual tokens for 36.0" in said.stdout
    assert "6 failed (FloatingPointError)" in said.stdout
    assert "+27.0" in said.stdout


def test_a_trial_does_not_replace_the_router_that_was_asked_for(
    tmp_path: Path, tiny_model: Path, routers: tuple[str, str], make_router: Any, promote: Any,
    command: Command,
) -> None:  # fmt: skip
    """`--router` counts until a later promotion: a trial is none, though its entry names what the
    registry has in force."""
    registry = tmp_path / "registry"
    make_router(registry / "old", 144)
    promote(registry, registry / "old")
    with served(tmp_path, tiny_model) as running:
        live = running.service.encoder._router
        assert live.version == routers[0]
        command("m3-train", "canary", tmp_path / "cheap", "--force", "--registry", registry)
        running.waits_for(lambda: running.trial != "")
        command("m3-train", "canary", "--stop", "--registry", registry)
        running.waits_for(lambda: running.trial == "")
        assert live.version == routers[0]
        entry = last_entry(registry)
        assert entry is not None
        assert (entry.trial, entry.to) == (None, "old")
        assert Trial("canary", "x", 0.1) != entry.trial
