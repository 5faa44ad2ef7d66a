"""Headers that Ray's proxy would obey do not reach it, by Ray's own reading of them."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from ray._common.utils import import_attr
from ray.serve._private.http_util import (
    RequestIdMiddleware,
    _apply_middlewares,
    parse_disconnect_disabled_header,
    parse_request_timeout_header,
    validate_http_proxy_callback_return,
)
from starlette.types import Receive, Scope, Send

from serve.on_ray.headers import IMPORT_PATH, silenced


def test_ray_reads_no_wish_of_a_callers() -> None:
    said = [
        (b"x-request-timeout-seconds", b"0"), (b"x-request-disconnect-disabled", b"?1"),
        (b"serve_multiplexed_model_id", b"m"), (b"serve-multiplexed-model-id", b"m"),
        (b"authorization", b"Bearer k"), (b"x-request-id", b"mine-1"),
    ]  # fmt: skip
    assert parse_request_timeout_header(dict(said), 125.0) is None  # the limit would be lifted
    assert parse_disconnect_disabled_header(dict(said))
    kept = silenced(said)
    assert kept == [(b"authorization", b"Bearer k"), (b"x-request-id", b"mine-1")]
    assert parse_request_timeout_header(dict(kept), 125.0) == 125.0
    assert not parse_disconnect_disabled_header(dict(kept))
    assert silenced([(b"x-request-id", b"\xe9")]) == []  # Ray would fail to decode it


@pytest.mark.parametrize("names", [["mine-1"], ["a b<script>"], ["x" * 129], ["a", "b"], [""], []])
def test_ray_answers_with_a_harmless_name(names: list[str]) -> None:
    """The chain of the proxy, as Ray builds it from the setting's import path."""
    seen: list[str] = []

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(v.decode() for k, v in scope["headers"] if k == b"x-request-id")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    made: Any = validate_http_proxy_callback_return(import_attr(IMPORT_PATH)())
    app = _apply_middlewares(proxy, made)
    assert not isinstance(app, RequestIdMiddleware)  # ours stands before Ray's

    async def ask() -> httpx2.Response:
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=app), base_url="http://localhost"
        ) as http:
            return await http.get("/", headers=[("x-request-id", name) for name in names])

    told = asyncio.run(ask()).headers.get_list("x-request-id")
    assert told == seen
    assert len(told) == 1
    if names == ["mine-1"]:
        assert told == names
    else:
        assert told[0] not in names
        assert len(told[0]) == 36
