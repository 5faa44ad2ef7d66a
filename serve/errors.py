"""Every error the service tells a caller about, each with its HTTP status and what to do next.

Knows statuses and OpenAI's error codes; knows no web framework and no Ray. Errors travel between
replicas, so they pickle through their five plain fields.

    ServiceError
    ├── BadRequest            400   ├── TooLarge      413
    ├── Unauthorized          401   ├── UnsupportedMedia 415
    ├── ForeignOrigin         403   ├── UnknownHost   421
    ├── UnknownModel          404   ├── QueueFull     429, Retry-After
    ├── TimedOut              408   │   └── RateLimited    (the caller's own budget)
    └── NotFound, WrongMethod 404, 405  ├── NotReady  503, Retry-After
                                        └── ReplicaDied    (retried before a caller sees it)
                                            └── DiedAgain  (never repeated)
"""

from __future__ import annotations

from router.errors import (
    BudgetTooSmall,
    Contradiction,
    NotCertified,
    RoutingError,
    UnknownScale,
)


class ServiceError(Exception):
    """An answer with an error status.

    Args:
        message: one or two sentences for the caller; the last one says what to do.
        param: the field of the request that is wrong, as a dotted path.
        code: a short stable word for programs.
        retry_after_s: sent as the Retry-After header.
    """

    status = 500
    type = "server_error"
    default_code: str | None = "internal_error"
    should_retry = True  # False: clients are told not to repeat it, whatever the status

    def __init__(
        self,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message, param, code, retry_after_s)
        self.message, self.param = message, param
        self.code = code or self.default_code
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class BadRequest(ServiceError):
    """400: the request is wrong and will stay wrong."""

    status, type, default_code = 400, "invalid_request_error", "invalid_value"


class Unauthorized(ServiceError):
    """401: the API key is missing or wrong."""

    status, type, default_code = 401, "authentication_error", "invalid_api_key"


class ForeignOrigin(ServiceError):
    """403: the page of another site asks."""

    status, type, default_code = 403, "invalid_request_error", "foreign_origin"


class UnknownHost(ServiceError):
    """421: the request was meant for another host."""

    status, type, default_code = 421, "invalid_request_error", "unknown_host"


class UnsupportedMedia(ServiceError):
    """415: a body of a kind, or compressed in a way, that is not read here."""

    status, type, default_code = 415, "invalid_request_error", "unsupported_media_type"


class UnknownModel(ServiceError):
    """404: no model of that name."""

    status, type, default_code = 404, "invalid_request_error", "model_not_found"


class NotFound(ServiceError):
    """404: no such path."""

    status, type, default_code = 404, "invalid_request_error", "not_found"


class WrongMethod(ServiceError):
    """405: the path exists, the method does not."""

    status, type, default_code = 405, "invalid_request_error", "method_not_allowed"


class TimedOut(ServiceError):
    """408: the request took longer than the service allows."""

    status, type, default_code = 408, "server_error", "timeout"


class TooLarge(ServiceError):
    """413: the body is larger than the service reads."""

    status, type, default_code = 413, "invalid_request_error", "request_too_large"


class QueueFull(ServiceError):
    """429: as many requests are in flight as the service admits."""

    status, type, default_code = 429, "rate_limit_error", "queue_full"

    def __init__(
        self,
        message: str = "The service is at its limit. Try again after the seconds in Retry-After.",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = 1,
    ) -> None:
        super().__init__(message, param, code, retry_after_s)


class RateLimited(QueueFull):
    """429: the caller has used up what its key allows, whatever the service has left."""

    default_code = "rate_limit_exceeded"


class NotReady(ServiceError):
    """503: no replica can take the request now."""

    status, type, default_code = 503, "server_error", "not_ready"

    def __init__(
        self,
        message: str = "No replica is ready. Try again after the seconds in Retry-After.",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = 2,
    ) -> None:
        super().__init__(message, param, code, retry_after_s)


class ReplicaDied(NotReady):
    """503: the replica that worked on the request is gone; the same request may be sent again."""

    default_code = "replica_died"


class DiedAgain(ReplicaDied):
    """503: two replicas died while they worked on this request; a third must not."""

    should_retry = False

    def __init__(
        self,
        message: str = "Two replicas died while they worked on this request. Do not repeat it; "
        "send another, or report the request id.",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message, param, code, retry_after_s)


class ServeSetupError(ValueError):
    """The service cannot start with these settings; the message is one line and says why."""


def no_second_look(why: str) -> BadRequest:
    """Return what the caller is told who asked for a second look that cannot be had."""
    return BadRequest(
        f"No second look can follow: {why}. Leave out routing.second_look, or set it to false.",
        "routing.second_look", "no_second_look",
    )  # fmt: skip


def too_much_text(characters: int, most: int) -> BadRequest:
    """Return what the caller is told whose text cannot fit, whatever its tokens are."""
    return BadRequest(
        f"The text has {characters:,} characters, and no more than {most:,} can fit the context of "
        "this model. Shorten the text.",
        "messages", "context_length_exceeded",
    )  # fmt: skip


def refusal(error: RoutingError) -> BadRequest:
    """Return what the caller is told of a wish that cannot be met."""
    param, code = "routing", "invalid_value"
    if isinstance(error, UnknownScale):
        param, code = "routing.scale", "unknown_scale"
    elif isinstance(error, BudgetTooSmall):
        param, code = "routing.max_visual_tokens", "budget_too_small"
    elif isinstance(error, Contradiction):
        param, code = f"routing.{error.wish}", f"no_{error.wish}"
    elif isinstance(error, NotCertified):
        param, code = "routing.max_harm", error.code
    return BadRequest(as_sentence(error), param, code)


def as_sentence(error: Exception) -> str:
    """Return the error's words as a sentence for the caller; a field it begins with stays."""
    text = str(error)
    if text.partition(" ")[0].isalpha():
        text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."
