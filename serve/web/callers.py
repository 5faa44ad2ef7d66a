"""Who calls: a name for every request, whose key it carries, and what its headers are told.

Knows two headers; knows nothing of paths, bodies or answers. Which keys there are is the business
of `serve.tenants`.
"""

import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

from fastapi import Request

from serve.gateway.call import Call
from serve.telemetry import logs
from serve.tenants.budgets import Budgets
from serve.tenants.live_keys import LiveKeys

_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


def own_request_id(request: Request) -> str:
    """Return the caller's x-request-id if it is harmless, else a new one."""
    given = request.headers.get("x-request-id", "")
    return given if harmless_id(given) else uuid.uuid4().hex


def harmless_id(given: str) -> bool:
    """Return whether a caller's name for a request may stand in logs and headers."""
    return _REQUEST_ID.fullmatch(given) is not None


@dataclass(frozen=True)
class Callers:
    """Names requests and lets them in.

    Attributes:
        request_id: names a request.
        sets_request_id: False where whatever stands in front sets the x-request-id header.
        keys: let callers in.
        budgets: of those whose keys have one.
    """

    request_id: Callable[[Request], str]
    sets_request_id: bool
    keys: LiveKeys
    budgets: Budgets

    # A coroutine: FastAPI calls it on the event loop, which budgets are made for.
    async def admit(self, request: Request) -> Call:
        """Return what is known of a request before its body, which it keeps in its state.

        Raises:
            Unauthorized: it carries no key.
        """
        parents = request.headers.getlist("traceparent")  # several count as none
        call = request.state.call = Call(
            self.request_id(request), traceparent=parents[0] if len(parents) == 1 else None
        )
        logs.name_request(call.request_id)
        key = self.keys.of(request.headers.get("authorization", ""))
        if key is None:
            return call
        budget = self.budgets.of(key.name, key.visual_tokens_per_minute)
        request.state.call = replace(call, tenant=key.name, budget=budget)
        return request.state.call

    def headers(self, call: Call, scale: int | None = None) -> dict[str, str]:
        """Return what the response to a request says in its headers."""
        said = {"x-request-id": call.request_id} if self.sets_request_id else {}
        if scale is not None:
            said["x-m3-scale"] = str(scale)
        return said if call.budget is None else said | call.budget.headers()
