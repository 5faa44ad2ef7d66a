"""Python clients of the service: `M3Client` and its asyncio twin `AsyncM3Client`.

Importing this package loads neither torch nor Ray.

    with M3Client() as client:
        answer = client.ask("street.jpg", "What number is on the sign?")
        print(answer.text, answer.scale, answer.visual_tokens)

        with client.stream("street.jpg", "What number is on the sign?") as stream:
            for piece in stream:
                print(piece, end="")
        print(stream.answer.scale)
"""

from serve.client.aio import AsyncAnswerStream, AsyncM3Client
from serve.client.errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    UnprocessableEntityError,
)
from serve.client.explain import RouteExplanation
from serve.client.focus import Focus
from serve.client.sync import AnswerStream, M3Client
from serve.client.wire import Answer, AskOptions, Route

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "Answer",
    "AnswerStream",
    "AskOptions",
    "AsyncAnswerStream",
    "AsyncM3Client",
    "AuthenticationError",
    "BadRequestError",
    "ConflictError",
    "Focus",
    "InternalServerError",
    "M3Client",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "Route",
    "RouteExplanation",
    "UnprocessableEntityError",
]
