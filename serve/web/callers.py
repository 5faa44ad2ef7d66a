"""Who calls: a name for every request, and the keys that let callers in.

Knows two headers; knows nothing of paths, bodies or answers.
"""

import hashlib
import hmac
import os
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request

from serve.errors import ServeSetupError, Unauthorized
from serve.gateway.call import Call
from serve.settings import API_KEYS_VARIABLE

_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


def own_request_id(request: Request) -> str:
    """Return the caller's x-request-id if it is harmless, else a new one."""
    given = request.headers.get("x-request-id", "")
    return given if harmless_id(given) else uuid.uuid4().hex


def harmless_id(given: str) -> bool:
    """Return whether a caller's name for a request may stand in logs and headers."""
    return _REQUEST_ID.fullmatch(given) is not None


def key_digests() -> tuple[str, ...]:
    """Return the digests of the keys that M3_API_KEYS lists; none: everybody may call.

    Digests can travel to replicas whose environment does not hold the keys, and be seen there.

    Raises:
        ServeSetupError: the variable is set and lists no key, as an empty secret does.
    """
    said = os.environ.get(API_KEYS_VARIABLE)
    if said is None:
        return ()
    keys = tuple(_digest(key.strip()) for key in said.split(",") if key.strip())
    if not keys:
        raise ServeSetupError(
            f"{API_KEYS_VARIABLE} is set but holds no key: give one, or unset it, which lets "
            "everybody in"
        )
    return keys


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True)
class Callers:
    """Names requests and lets them in.

    Attributes:
        request_id: names a request.
        sets_request_id: False where whatever stands in front sets the x-request-id header.
        keys: digests of those that let callers in; none: everybody may call.
    """

    request_id: Callable[[Request], str]
    sets_request_id: bool
    keys: tuple[str, ...]

    def admit(self, request: Request) -> Call:
        """Return what is known of a request before its body, which it keeps in its state.

        Raises:
            Unauthorized: it carries no key.
        """
        call = request.state.call = Call(self.request_id(request))
        check_key(request.headers.get("authorization", ""), self.keys)
        return call

    def headers(self, call: Call, scale: int | None = None) -> dict[str, str]:
        """Return what the response to a request says in its headers."""
        said = {"x-request-id": call.request_id} if self.sets_request_id else {}
        return said if scale is None else said | {"x-m3-scale": str(scale)}


def check_key(authorization: str, keys: tuple[str, ...]) -> None:
    """Return if the header carries one of the keys, or no keys are set.

    Raises:
        Unauthorized: it does not.
    """
    if not keys:
        return
    scheme, _, given = authorization.partition(" ")
    # Every key is compared in constant time, and all of them whatever came before.
    matches = [hmac.compare_digest(_digest(given.strip()), key) for key in keys]
    if scheme.lower() != "bearer" or not any(matches):
        raise Unauthorized(
            "The API key is missing or wrong. Send the header 'Authorization: Bearer <key>'."
        )
