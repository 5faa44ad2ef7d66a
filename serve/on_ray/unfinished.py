"""What callers hear whose gateway is gone: Ray's proxy would say nothing, or stop in mid-air.

Stands before the proxy, see `serve.on_ray.headers`. A reply that was never begun becomes a 503 like
those of the gateway, a stream that breaks off gets an error event. Knows ASGI and the envelope.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastapi.responses import JSONResponse
from fastapi.sse import format_sse_event
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import ReplicaDied
from serve.web.stream import EventStream, envelope

REQUEST_ID = "x-request-id"
GONE = ReplicaDied("The gateway that worked on this request is gone. Ask again.")


@dataclass(frozen=True)
class Finished:
    """Finishes the replies that whoever stands behind leaves unfinished."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and see its reply to the end."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = streams = ended = False

        async def noting(message: Message) -> None:
            nonlocal begun, streams, ended
            if message["type"] == "http.response.start":
                begun = True
                kind = Headers(raw=message["headers"]).get("content-type", "")
                streams = kind.startswith(EventStream.media_type)
            elif message["type"] == "http.response.body":
                ended = not message.get("more_body", False)
            await send(message)

        await self.app(scope, receive, noting)
        if not begun:
            headers = {"retry-after": str(GONE.retry_after_s)}
            if (name := Headers(scope=scope).get(REQUEST_ID)) is not None:
                headers[REQUEST_ID] = name
            told = JSONResponse(envelope(GONE).model_dump(), GONE.status, headers)
            await told(scope, receive, send)
        elif streams and not ended:
            event = format_sse_event(data_str=envelope(GONE).model_dump_json())
            await send({"type": "http.response.body", "body": event, "more_body": False})
