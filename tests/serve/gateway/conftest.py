"""A gateway between two small stages that fail as often as told, and a log in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import numpy as np
import pytest

from router.actions import Reading
from router.decision import Reason, RoutingDecision
from router.records import DecisionRecord
from serve.errors import ReplicaDied
from serve.gateway.gateway import Gateway
from serve.gateway.request_log import RequestLog
from serve.log.audits import Audits
from serve.log.decisions import LogCounts
from serve.metrics import LocalMetrics
from serve.settings import ServeSettings
from serve.stages.checkpoint import ModelCard
from serve.stages.messages import (
    AnswerPart,
    Encoded,
    EncodeRequest,
    EncoderStatus,
    GenerateRequest,
    GeneratorStatus,
)
from serve.web.api import create_api

SCALES = (1, 9, 36, 144, 576)
Body = Callable[..., dict[str, Any]]


@pytest.fixture
def tries_follow_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.gateway.gateway.RETRY_WAIT_S", 0.005)


class PlainEncoder:
    """Decides 36 for everything; fails as often as told."""

    def __init__(self, deaths: int = 0) -> None:
        self.calls, self.deaths = 0, deaths

    async def encode_and_route(self, request: EncodeRequest) -> Encoded:
        self.calls += 1
        if self.calls <= self.deaths:
            raise ReplicaDied()
        n = len(request.pictures)
        decision = RoutingDecision(
            36, 36 * n, Reason.predicted, dict.fromkeys(SCALES, 0.5), router_version="v",
            readings=(Reading.uniform(36),) * n,
        )  # fmt: skip
        tokens = tuple(np.zeros((36, 4), np.float16) for _ in range(n))
        return Encoded(tuple(f"id{i}" for i in range(n)), tokens, decision, 1.0)

    async def status(self) -> EncoderStatus:
        return EncoderStatus("v", True, 0, 0.0)


class PlainGenerator:
    """Says "a b c", token by token or at once; fails before or in the middle as often as told."""

    def __init__(
        self,
        deaths: int = 0,
        at: int = 0,
        wait_s: float = 0.0,
        error: type[Exception] = ReplicaDied,
    ) -> None:
        self.calls, self.deaths, self.at, self.wait_s = 0, deaths, at, wait_s
        self.error = error
        self.closed = 0
        self.heartbeat_s, self.alive = 0.0, True

    async def generate(self, request: GenerateRequest) -> AsyncIterator[AnswerPart]:
        self.calls += 1
        dies = self.calls <= self.deaths
        words = ["a", " b", " c"]
        try:
            if request.tokens_per_part is None:
                words = ["".join(words)]
            for number, word in enumerate(words):
                await asyncio.sleep(self.wait_s)
                if dies and number == self.at:
                    raise self.error()
                end = "stop" if number == len(words) - 1 else None
                yield AnswerPart(word, 3 // len(words), -0.1, 7, end)
        finally:
            self.closed += 1

    async def status(self) -> GeneratorStatus:
        return GeneratorStatus(0, 0, 0, self.heartbeat_s, alive=self.alive)


class ListLog:
    """A decision log in memory."""

    secret = b"of a folder"

    def __init__(self) -> None:
        self.records: list[DecisionRecord] = []
        self.audits = Audits(None, 1.0)
        self.counts = LogCounts()

    def append(self, record: DecisionRecord, pictures: Any = ()) -> int:
        self.records.append(record)
        return 0

    def flush(self) -> bool:
        return True

    def close(self) -> None:
        pass


def make(encoder: Any = None, generator: Any = None, **settings: Any) -> tuple[Gateway, ListLog]:
    log, card = ListLog(), ModelCard("tiny", SCALES)
    wanted = ServeSettings(registry=None, **settings)
    request_log = RequestLog(log, wanted, SCALES)  # type: ignore[arg-type]
    stages = encoder or PlainEncoder(), generator or PlainGenerator()
    gateway = Gateway(*stages, card, wanted, LocalMetrics(), request_log)
    return gateway, log


def client(gateway: Gateway) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=create_api(gateway)), base_url="http://localhost"
    )
