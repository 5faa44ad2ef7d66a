"""What can go wrong when asking the service, and when another try is worth it.

The names are the openai SDK's:

    APIError
    ├── APIConnectionError            no reply, or a stream that broke off
    │   └── APITimeoutError
    └── APIStatusError                the service answered with an error
        ├── BadRequestError           400   ├── ConflictError             409
        ├── AuthenticationError       401   ├── UnprocessableEntityError  422
        ├── PermissionDeniedError     403   ├── RateLimitError            429
        └── NotFoundError             404   └── InternalServerError       5xx
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping

import httpx2

RETRIED_STATUSES = frozenset({408, 409, 429})  # and 500 upwards
FIRST_DELAY_S, LONGEST_DELAY_S, LONGEST_RETRY_AFTER_S = 0.5, 8.0, 60.0


class APIError(Exception):
    """Anything that kept the service from answering."""


class APIConnectionError(APIError):
    """The service could not be reached, or a reply broke off.

    ``proxy`` is the variable that names the proxy in between, if there is one.
    """

    def __init__(self, message: str, *, proxy: str | None = None) -> None:
        super().__init__(message)
        self.proxy = proxy


class APITimeoutError(APIConnectionError):
    """The service did not answer in time."""


class APIStatusError(APIError):
    """The service answered with an error; ``message`` says what to do about it."""

    def __init__(
        self, message: str, *, status_code: int, code: str | None = None, param: str | None = None,
        request_id: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.message, self.status_code = message, status_code
        self.code, self.param, self.request_id = code, param, request_id


class BadRequestError(APIStatusError):
    """400: the request is wrong and will stay wrong."""


class AuthenticationError(APIStatusError):
    """401: the API key is missing or wrong."""


class PermissionDeniedError(APIStatusError):
    """403."""


class NotFoundError(APIStatusError):
    """404: no such model, path or answer."""


class ConflictError(APIStatusError):
    """409."""


class UnprocessableEntityError(APIStatusError):
    """422."""


class RateLimitError(APIStatusError):
    """429: the queue is full, or the budget of the key is used up."""


class InternalServerError(APIStatusError):
    """5xx: the service failed or has no free replica."""


STATUS_ERRORS: dict[int, type[APIStatusError]] = {
    400: BadRequestError, 401: AuthenticationError, 403: PermissionDeniedError,
    404: NotFoundError, 409: ConflictError, 422: UnprocessableEntityError, 429: RateLimitError,
}  # fmt: skip


def status_error(status: int, body: bytes, headers: Mapping[str, str]) -> APIStatusError:
    """Return the typed error for a reply of 400 or more, whoever in the path wrote it."""
    try:
        error = json.loads(body)["error"]
        message, code, param = error["message"], error.get("code"), error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        text = body.decode("utf-8", "replace").strip()[:300]
        message, code, param = f"HTTP {status}: {text or 'no message'}", None, None
    kind = STATUS_ERRORS.get(status, InternalServerError if status >= 500 else APIStatusError)
    request_id = headers.get("x-request-id")
    return kind(message, status_code=status, code=code, param=param, request_id=request_id)


def connection_error(broken: httpx2.TransportError, proxy: str | None = None) -> APIConnectionError:
    """Return the typed error for a connection that failed, ``proxy`` named in between."""
    way = _words(broken) + (f" (through the proxy that {proxy} names)" if proxy else "")
    if isinstance(broken, httpx2.TimeoutException):
        return APITimeoutError(f"no answer in time: {way}", proxy=proxy)
    return APIConnectionError(f"the service is out of reach: {way}", proxy=proxy)


class Tries:
    """The retry rule of one request: each method returns the seconds to wait before the next try.

    A reply that stays wrong, a stream that had begun, and the last try raise instead.
    """

    def __init__(self, max_retries: int, proxy: str | None = None) -> None:
        self._left, self._delay_s, self._proxy = max_retries, FIRST_DELAY_S, proxy

    def after_reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> float:
        """Return the wait after a reply of 400 or more, as its Retry-After says if it says.

        Nor is a reply followed by another try that says so itself, in ``x-should-retry``.
        """
        wrong = status not in RETRIED_STATUSES and status < 500
        if wrong or headers.get("x-should-retry") == "false" or self._left <= 0:
            raise status_error(status, body, headers)
        try:
            asked_s = float(headers.get("retry-after", ""))
        except ValueError:
            asked_s = 0.0
        backoff_s = self._backoff_s()
        return asked_s if 0 < asked_s <= LONGEST_RETRY_AFTER_S else backoff_s

    def after_break(self, broken: httpx2.TransportError, *, begun: bool = False) -> float:
        """Return the wait after a connection that failed; ``begun``: text had already arrived."""
        if begun:
            raise APIConnectionError(f"the stream broke off: {_words(broken)}") from broken
        if self._left <= 0:
            raise connection_error(broken, self._proxy) from broken
        return self._backoff_s()

    def _backoff_s(self) -> float:
        self._left -= 1
        delay_s, self._delay_s = self._delay_s, min(self._delay_s * 2, LONGEST_DELAY_S)
        return delay_s * (1 - 0.25 * random.random())


def _words(broken: httpx2.TransportError) -> str:
    return str(broken) or type(broken).__name__
