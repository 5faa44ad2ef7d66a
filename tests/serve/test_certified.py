"""`routing.max_harm` through the whole service in one process: kept from the certificate or 400."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from m3model.config import hash_model
from router import Certificate, Router
from router.certificate.promise import Rung
from serve.client.wire import chat_body, parse_route
from serve.in_process import compose
from serve.settings import ServeSettings

Body = Callable[..., dict[str, Any]]


def certified(folder: Path, model_hash: str) -> None:
    """Give a router, which wants 36 for everything, a made-up certificate for two bounds."""
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


@pytest.fixture
def service(
    tiny_model: Path, make_router: Callable[[Path, int], str], tmp_path: Path
) -> Iterator[Callable[..., Any]]:
    """Composes a service; ``model_hash`` None: its router holds no certificate."""
    made: list[Any] = []

    def make(model_hash: str | None) -> Any:
        make_router(tmp_path / "router", 36)
        if model_hash is not None:
            certified(tmp_path / "router", model_hash)
        settings = ServeSettings(
            model=tiny_model, router=tmp_path / "router", registry=None, log_dir=tmp_path / "log"
        )
        made.append(compose(settings))
        return made[-1]

    yield make
    for each in made:
        each.encoder.close()
        each.generator.close()
        each.gateway.log.close()


def post(service: Any, path: str, body: dict[str, Any]) -> httpx2.Response:
    async def run() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=service.api)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.post(path, json=body)

    return asyncio.run(run())


def test_bounds_are_kept_or_refused(service: Any, tiny_model: Path, ask_body: Body) -> None:
    running = service(hash_model(tiny_model))

    def route(path: str = "/v1/route", seeds: tuple[int, ...] = (0,), **routing: Any) -> Any:
        return post(running, path, ask_body(seeds=seeds, routing=routing))

    assert "certified" not in route().json()["routing"]
    for path in ("/v1/route", "/v1/chat/completions"):
        kept = route(path, max_harm=0.06).json()["routing"]
        assert (kept["scale"], kept["reason"]) == (36, "predicted")
        expected = {"bound": "harm", "max_harm": 0.05, "delta": 0.05, "price": 0.01}
        assert kept["certified"] == expected
    lossless = {"bound": "harm", "max_harm": 0.0, "delta": 0.0, "price": None}
    for wishes in ({"max_harm": 0.02}, {"max_harm": 0.0001, "scale": 576}):
        routing = route(**wishes).json()["routing"]
        assert (routing["scale"], routing["certified"]) == (576, lossless)
    assert route(seeds=(), max_harm=0.0001).json()["routing"]["certified"] == lossless
    refusals = [
        ({"max_harm": 0.001}, "0.01, 0.05"),
        ({"max_harm": 0.05, "max_visual_tokens": 9}, "raise max_visual_tokens"),
        ({"max_harm": 0.05, "scale": 9}, "pinned scale 9"),
        ({"max_harm": 0.05, "seeds": (0, 1)}, "one picture"),
    ]
    for wishes, says in refusals:
        reply = route(**wishes)
        error = reply.json()["error"]
        assert reply.status_code == 400, error
        assert (error["param"], error["code"]) == ("routing.max_harm", "not_certified")
        assert says in error["message"]
    assert "0.05, each 0.95 sure" in asyncio.run(running.encoder.status()).certificate


@pytest.mark.parametrize(
    ("model_hash", "says"), [(None, "holds no certificate"), ("another", "has expired")]
)
def test_without_a_usable_certificate_the_reason_is_given(
    service: Any, ask_body: Body, model_hash: str | None, says: str
) -> None:
    running = service(model_hash)
    reply = post(running, "/v1/route", ask_body(routing={"max_harm": 0.05}))
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "no_certificate")
    assert error["param"] == "routing.max_harm"
    assert says in error["message"]
    assert post(running, "/v1/route", ask_body()).json()["routing"]["scale"] == 36
    assert says in asyncio.run(running.encoder.status()).certificate


def test_a_failed_decision_costs_tokens_and_keeps_the_bound(
    service: Any, tiny_model: Path, ask_body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = service(hash_model(tiny_model))
    monkeypatch.setattr(Router, "route", lambda *_, **__: 1 / 0)
    routing = post(running, "/v1/route", ask_body(routing={"max_harm": 0.05})).json()["routing"]
    assert (routing["scale"], routing["reason"]) == (576, "fallback")
    assert routing["certified"]["max_harm"] == 0.0
    capped = {"max_harm": 0.05, "max_visual_tokens": 100}
    assert post(running, "/v1/route", ask_body(routing=capped)).status_code == 400


def test_the_client_asks_for_a_bound_and_reads_it() -> None:
    assert chat_body(None, "q", {"max_harm": 0.02})["routing"] == {"max_harm": 0.02}
    bound = {"bound": "harm", "max_harm": 0.01, "delta": 0.05, "price": 0.2}
    assert parse_route({"routing": {"scale": 9, "certified": bound}}).certified == bound
    assert parse_route({"routing": {"scale": 9}}).certified is None


def test_a_repriced_router_keeps_what_was_certified(
    tiny_model: Path, make_router: Callable[[Path, int], str], tmp_path: Path
) -> None:
    make_router(tmp_path, 36)
    certified(tmp_path, hash_model(tiny_model))
    router = Router.from_pretrained(tmp_path)
    cheaper = router.with_policy(replace(router.policy, price=5.0))
    assert cheaper.held.certificate == router.held.certificate
