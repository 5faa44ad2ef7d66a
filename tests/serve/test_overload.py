"""An overloaded service in one process: whose price rises, who looks once, who is refused.

Load is told to the gateway as the answers of a slow service would tell it; everything else is real.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pyarrow.parquet as pq
import pytest

from m3model.config import hash_model
from router import Certificate, Router, SecondLook
from router.certificate.promise import Rung
from router.second_look import Gate
from serve.in_process import compose
from serve.settings import OverloadSettings, ServeSettings

Body = Callable[..., dict[str, Any]]
SCALES = (1, 9, 36, 144, 576)
CHAT = "/v1/chat/completions"
# The router works at 0.1 and wants 36; at 50 it takes the coarsest scale whatever it predicts.
PRICES, DEAR = (-9.0, 0.1, 0.2, 50.0, 900.0), 50.0
LADDER = (Rung(0.01, 0.1, 36.0, 0.0), Rung(0.05, DEAR, 1.0, 0.01), Rung(0.3, 900.0, 1.0, 0.1))


@dataclass
class Running:
    """A composed service and its log folder."""

    service: Any
    log_dir: Path

    def post(
        self, *bodies: dict[str, Any], slow: bool, path: str = CHAT, ahead: int = 1
    ) -> list[httpx2.Response]:
        """The replies, in turn; ``slow``: the last answer took a hundred seconds to begin, and so
        many others are waiting.
        """

        async def run() -> list[httpx2.Response]:
            admission = self.service.gateway.admission
            if slow:
                admission.begun(100.0, 1)
                admission.inflight += ahead
            transport = httpx2.ASGITransport(app=self.service.api)
            async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
                replies = [await http.post(path, json=body) for body in bodies]
            admission.inflight -= ahead * slow
            return replies

        return asyncio.run(run())

    def routing(self, body: dict[str, Any], *, slow: bool = True, path: str = CHAT) -> Any:
        reply = self.post(body, slow=slow, path=path)[0]
        assert reply.status_code == 200, reply.text
        return reply.json()["routing"]


@pytest.fixture
def start(
    tiny_model: Path, make_router: Callable[[Path, int], str], tmp_path: Path
) -> Iterator[Callable[..., Running]]:
    """Starts a service whose router has a certificate, and looks twice (first at 1) or not."""
    made: list[Any] = []

    def make(*, looks_twice: bool = False, certified: bool = True, **overload: Any) -> Running:
        make_router(tmp_path / "plain", 36)
        plain = Router.from_pretrained(tmp_path / "plain")
        # After any answer 144 is thought to be right, and nothing else.
        right, wrong = Gate(0.0, 0.0, 0.0, 9.0), Gate(0.0, 0.0, 0.0, -9.0)
        rows = tuple(
            tuple(right if scale == 144 else wrong for scale in SCALES[start:])
            for start in range(len(SCALES) - 1)
        )
        look = (
            SecondLook(tuple(map(str, SCALES)), rows, start_price=1e6, price=0.01)
            if looks_twice
            else None
        )
        router = Router(plain.predictor, plain.schema, plain.policy, second_look=look)
        certificate = Certificate(
            loss="harm", bound=0.01, delta=0.05, method="betting", population="pictures",
            scored_by="exact match", pictures=500, questions=900, created_utc="2026-11-22T10:00:00",
            router_version=router.version, predictor_hash=router.predictor_hash,
            model_hash=hash_model(tiny_model), feature_schema=router.schema.hash, data_hash="d",
            prices=PRICES, ladder=LADDER, slices=(),
        )  # fmt: skip
        router = router.with_certificate(certificate) if certified else router
        router.save_pretrained(tmp_path / "router")
        settings = ServeSettings(
            model=tiny_model, router=tmp_path / "router", registry=None, log_dir=tmp_path / "log",
            overload=OverloadSettings(**overload),
        )  # fmt: skip
        made.append(compose(settings))
        return Running(made[-1], tmp_path / "log")

    yield make
    for each in made:
        each.encoder.close()
        each.generator.close()
        each.gateway.log.close()


def test_the_price_rises_within_the_certificate_and_is_told(start: Any, ask_body: Body) -> None:
    running = start()
    calm = running.routing(ask_body(), slow=False)
    assert (calm["scale"], calm["reason"], "price" in calm) == (36, "predicted", False)
    for path in (CHAT, "/v1/route"):
        degraded = running.routing(ask_body(), path=path)
        assert (degraded["scale"], degraded["reason"], degraded["price"]) == (1, "degraded", DEAR)
    text = asyncio.run(running.service.gateway.metrics.text())
    assert 'm3_decisions_total{reason="degraded",scale="1"} 2.0' in text
    assert f"m3_price_floor {DEAR}" in text
    assert "m3_overload_pressure 0." in text or "m3_overload_pressure 1.0" in text
    running.service.gateway.log.close()
    rows = [row for f in running.log_dir.rglob("*.parquet") for row in pq.read_table(f).to_pylist()]
    told = {(row["scale"], row["reason"], row["price"]) for row in rows}
    assert told == {(36, "predicted", 0.1), (1, "degraded", DEAR)}


def test_wishes_are_kept_whatever_the_load(start: Any, ask_body: Body) -> None:
    running = start()
    kept: list[tuple[dict[str, Any], int, str]] = [
        ({"routing": {"scale": 36}}, 36, "pinned"),
        ({"model": "m3-144"}, 144, "pinned"),
        ({"detail": "low"}, 9, "detail"),
        ({"routing": {"max_visual_tokens": 600}}, 36, "predicted"),
        ({"routing": {"max_harm": 0.01}}, 36, "predicted"),
        ({"seeds": (0, 1)}, 36, "predicted"),  # certificates are about one picture
        ({"seeds": ()}, 0, "no_image"),
    ]
    for wishes, scale, reason in kept:
        routing = running.routing(ask_body(**wishes))
        assert (routing["scale"], routing["reason"]) == (scale, reason), wishes
    explained = running.routing(ask_body(routing={"explain": True}))
    assert explained["reason"] == "degraded"
    assert "at the price 50" in explained["explain"]["sentence"]


def test_second_looks_go_first_unless_insisted_on(start: Any, ask_body: Body) -> None:
    running = start(looks_twice=True)
    assert running.routing(ask_body(), slow=False)["visual_tokens"] == 145
    insisting = running.routing(ask_body(routing={"second_look": True}))
    assert (insisting["visual_tokens"], insisting["reason"]) == (145, "predicted")
    # Hardly any pressure, but the first look stays as dear as is certified and nothing follows it.
    slight = running.service.gateway.admission.pressure * 1e-3
    assert 0.0 < slight < 1e-3
    once = running.routing(ask_body())
    assert (once["visual_tokens"], once["reason"], once["price"]) == (1, "degraded", DEAR)
    assert "second_look" not in once


@pytest.mark.parametrize(
    "settings", [{"max_harm": None}, {"max_harm": 0.005}, {"max_harm": 0.01}, {"certified": False}]
)
def test_nothing_rises_beyond_what_is_certified(
    start: Any, ask_body: Body, settings: dict[str, Any]
) -> None:
    running = start(looks_twice=True, **settings)
    routing = running.routing(ask_body())
    assert (routing["visual_tokens"], routing["reason"]) == (145, "predicted")


def test_only_then_requests_are_refused(start: Any, ask_body: Body) -> None:
    running = start(max_wait_s=0.001)
    # With nobody ahead, even who waits longer than set is let in, and is no load.
    replies = [reply.json() for reply in running.post(*[ask_body()] * 2, slow=True, ahead=0)]
    assert [reply["routing"]["reason"] for reply in replies] == ["predicted", "predicted"]
    assert running.post(ask_body(), slow=True)[0].json()["routing"]["reason"] == "degraded"
    said = {"request_id": replies[0]["id"], "score": 1.0}
    assert running.post(said, slow=True, path="/v1/feedback")[0].status_code == 200
    reply = running.post(ask_body(), slow=True)[0]
    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "queue_full")
    # Hundreds of seconds of work; but nobody is sent away for longer than half a minute.
    assert 30 <= int(reply.headers["retry-after"]) <= 32
