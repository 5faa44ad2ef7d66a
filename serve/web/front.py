"""What stands before every path: which host was meant, whose page is asking, and the path's form.

A service without keys trusts whoever reaches it, so it must not be reached through somebody's
browser: not by a name that leads to 127.0.0.1 (DNS rebinding), and not from another site's page.
Knows headers and ASGI; knows nothing of bodies, keys or answers.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import ForeignOrigin, ServiceError, UnknownHost
from serve.telemetry import logs
from serve.web.stream import envelope

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
EXPOSED_HEADERS = (
    "x-request-id", "x-m3-scale", "retry-after", "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens",
)  # fmt: skip
ANY = "*"
Failed = Callable[[Request, Exception], Awaitable[Response]]
# Probes ask under whatever address they have, and learn nothing that would help a stranger.
PROBED = ("/health", "/health/live", "/health/ready", "/health/inflight")


@dataclass(frozen=True)
class Front:
    """Refuses what was not meant for this service, and straightens the rest.

    Args:
        app: the application behind it.
        hosts: names in the Host header that are answered; None: all.
        origins: other sites whose pages may ask.
        refused: told of every request that is not passed on.
        failed: answers what nobody meant to raise.
    """

    app: ASGIApp
    hosts: frozenset[str] | None
    origins: Sequence[str]
    refused: Callable[[ServiceError], None]
    failed: Failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it with the reason."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        logs.begin_request()
        error = self._refusal(scope)
        if error is not None:
            self.refused(error)
            await JSONResponse(envelope(error).model_dump(), error.status)(scope, receive, send)
            return
        scope = {**scope, "path": straight(scope["path"])}
        if scope["method"] == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, noting)
        except Exception as surprise:  # ends here: who runs this would log it with all its words
            reply = await self.failed(Request(scope), surprise)
            if begun:
                raise RuntimeError("a reply broke off; the log says why") from None
            await reply(scope, receive, send)

    def _refusal(self, scope: Scope) -> ServiceError | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        name = host_name(host)
        probed = straight(scope["path"]) in PROBED
        if self.hosts is not None and name not in self.hosts and not probed:
            return UnknownHost(
                f"This service does not answer under the name '{name[:100]}'. Start it with "
                "--allowed-host NAME (the setting allowed_hosts), or set API keys."
            )
        origin = headers.get("origin")
        if origin is None or scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return None  # a browser shows a page of another origin nothing of these
        known = origin.lower() in self.origins or ANY in self.origins
        if known or origin.lower().partition("://")[2] == host.lower():
            return None
        return ForeignOrigin(
            f"Pages of {origin[:100]} may not use this service. Start it with --cors-origin ORIGIN "
            "(the setting cors_origins). A proxy in front must hand on the Host header."
        )


def hosts_of(allowed: Sequence[str] | None, *, has_keys: bool) -> frozenset[str] | None:
    """Return the host names that are answered, None for all.

    With keys a page that reaches the service through a name of its own has none to send.
    """
    if allowed is None:
        return None if has_keys else LOOPBACK_NAMES
    return None if ANY in allowed else frozenset(allowed)


def host_name(host: str) -> str:
    """Return the name in a Host header, lower-case, without its port and a dot at its end."""
    return re.sub(r":\d*$", "", host).lower().rstrip(".")


def straight(path: str) -> str:
    """Return the path without doubled slashes and without one at its end.

    Answered in place: a redirect would send keys and pictures once more, to an address that whoever
    stands in front may know under another scheme.
    """
    return re.sub(r"/{2,}", "/", path).rstrip("/") or "/"


def _without_body(send: Send) -> Send:
    async def headers_only(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return headers_only
