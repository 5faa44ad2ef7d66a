"""What Ray's proxy must not hear from callers: headers that it obeys and we promise nothing about.

Ray 2.60's proxy lets any caller lift or shorten the limit of a request, have it worked on after
leaving, choose among replicas, and name it with anything. The gateway stands behind the proxy and
hears of it too late, so `middlewares` stands before it: Ray calls it in every process that
listens, where RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it. Knows headers only.
"""

from __future__ import annotations

from dataclasses import dataclass

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.on_ray.unfinished import Finished
from serve.web.callers import harmless_id

IMPORT_PATH = f"{__name__}:middlewares"
REQUEST_ID = "x-request-id"
OBEYED = frozenset(
    {"x-request-timeout-seconds", "x-request-disconnect-disabled", "serve-multiplexed-model-id"}
)


def middlewares() -> list[Middleware]:
    """Return what stands before Ray's proxy, the outermost last."""
    return [Middleware(Finished), Middleware(Silenced)]


@dataclass(frozen=True)
class Silenced:
    """Passes requests on without the headers that Ray would obey."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if "headers" in scope:
            scope = {**scope, "headers": silenced(list(scope["headers"]))}
        await self.app(scope, receive, send)


def silenced(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers that may stay; of several names for a request, or a harmful one, none.

    Ray gives a request without a name one, and answers with it.
    """
    ids = [value for name, value in headers if _name(name) == REQUEST_ID]
    unwanted = OBEYED
    if len(ids) != 1 or not harmless_id(ids[0].decode("latin-1")):
        unwanted |= {REQUEST_ID}
    return [(name, value) for name, value in headers if _name(name) not in unwanted]


def _name(header: bytes) -> str:
    """Return a header's name as Ray compares some of them."""
    return header.decode("latin-1").lower().replace("_", "-")
