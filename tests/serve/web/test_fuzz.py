"""Some hundred requests of the abuse benchmark, from a seed: no 5xx, the envelope on every refusal.

`benchmarks/abuse.py` sends thousands, over sockets, and watches what they cost.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import httpx2
import pytest
from _abuse.bodies import any_json, asked, base64_of_all_kinds, huge_number, odd_text
from _abuse.bombs import promised
from _abuse.pictures import MUTATIONS
from _abuse.sending import CHAT, ROUTE, Request

JSON = {"content-type": "application/json"}
EACH = 12
BODIES = {"base64": base64_of_all_kinds, "huge_number": huge_number, "any_json": any_json}


async def replies(app: Any, bodies: list[tuple[str, bytes]]) -> list[httpx2.Response]:
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
        return [
            await http.post(path, content=body, headers=JSON, timeout=60) for path, body in bodies
        ]


@pytest.fixture
def ask_all(running: Any) -> Callable[[list[tuple[str, bytes]]], Counter[int]]:
    """Sends bodies to the service's application; returns how often each status came."""

    def ask(bodies: list[tuple[str, bytes]]) -> Counter[int]:
        statuses: Counter[int] = Counter()
        for (path, body), reply in zip(
            bodies, asyncio.run(replies(running.service.api, bodies)), strict=True
        ):
            statuses[reply.status_code] += 1
            where = f"{path} {body[:300]!r}: {reply.text[:300]}"
            assert reply.status_code < 500, where
            if reply.status_code >= 400:
                error = reply.json()["error"]
                assert set(error) == {"message", "type", "param", "code"}, where
                assert error["message"].endswith("."), where
                assert error["type"] == "invalid_request_error", where
        return statuses

    return ask


@pytest.mark.parametrize("kind", [*MUTATIONS, "promised"])
def test_broken_pictures(ask_all: Any, kind: str) -> None:
    random, make = Random(f"suite {kind}"), {**MUTATIONS, "promised": promised}[kind]
    bodies = [
        (ROUTE if number % 3 else CHAT, json.dumps(asked(random, make(random))).encode())
        for number in range(EACH)
    ]
    statuses = ask_all(bodies)
    assert set(statuses) <= {200, 400}
    if kind in ("truncated", "wrong_type", "promised"):
        assert statuses[400] > EACH // 2


def sent(request: Request) -> tuple[str, bytes]:
    head, body = request.pieces
    assert isinstance(head, bytes)
    assert isinstance(body, bytes)
    return head.split(b" ")[1].decode(), body


@pytest.mark.parametrize("kind", BODIES)
def test_broken_bodies(ask_all: Any, kind: str) -> None:
    random = Random(f"suite {kind}")
    statuses = ask_all([sent(BODIES[kind](random)) for _ in range(3 * EACH)])
    assert set(statuses) <= {200, 400, 404}
    assert statuses[400] > EACH


def test_odd_text(ask_all: Any) -> None:
    random = Random("suite text")
    bodies = [sent(odd_text(random)) for _ in range(2 * EACH)]
    ask_all([(path, body) for path, body in bodies if len(body) < 50_000])


def test_what_may_be_left_out_may_be_null_in_the_description_too(running: Any) -> None:
    schemas = running.service.api.openapi()["components"]["schemas"]
    for name in ("ChatRequest", "RoutingRequest", "StreamOptions", "FeedbackRequest", "ImageURL"):
        for field, told in schemas[name]["properties"].items():
            required = field in schemas[name].get("required", [])
            assert ({"type": "null"} in told.get("anyOf", [])) is not required, (name, field)
    assert schemas["RoutingRequest"]["properties"]["explain"]["anyOf"][0] == {"type": "boolean"}
    assert schemas["ChatRequest"]["properties"]["stream"]["default"] is False


def test_the_examples_of_the_description_are_answered(running: Any) -> None:
    description = running.service.api.openapi()
    asked_for = []
    for path, methods in description["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        for name, example in content.get("application/json", {}).get("examples", {}).items():
            asked_for.append((path, name, json.dumps(example["value"]).encode()))
    told = asyncio.run(replies(running.service.api, [(path, body) for path, _, body in asked_for]))
    got = {
        (path, name): (reply.status_code, reply.headers["content-type"].partition(";")[0])
        for (path, name, _), reply in zip(asked_for, told, strict=True)
    }
    assert got.pop(("/v1/feedback", "scored"))[0] == 404  # of no answer
    assert got.pop((CHAT, "streamed")) == (200, "text/event-stream")
    assert len(got) == 4
    assert set(got.values()) == {(200, "application/json")}
    for (path, _), (status, kind) in got.items():
        assert kind in description["paths"][path]["post"]["responses"][str(status)]["content"]
