"""Request bodies: read up to a limit, checked strictly, with one sentence about the first mistake.

Knows JSON, pydantic's complaints and OpenAI's error fields; knows nothing of paths or answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from pydantic import BaseModel, ValidationError

from serve.errors import BadRequest, QueueFull, TimedOut, TooLarge, UnsupportedMedia
from serve.protocol import ErrorReply

LARGE_BODY_BYTES = 200_000
DRAINED_BYTES, DRAINED_S = 64_000_000, 10.0  # of a body that is refused while it is being sent
IDLE_S = 10.0  # between two pieces of a body
# JSON as it is sent: values, members and escapes that are parsed at all. A conversation of a
# hundred long turns has some ten thousand; a body of nothing else would cost seconds and gigabytes.
MAX_VALUES, MAX_ESCAPES = 100_000, 1_000_000
Body = TypeVar("Body", bound=BaseModel)
REF = "#/components/schemas/{model}"


def check_headers(headers: Mapping[str, str]) -> None:
    """Return if the body is JSON as it stands.

    Another type is what a page of another site can send without asking.

    Raises:
        UnsupportedMedia: another type of content, none, or a compressed one.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not re.fullmatch(r"application/[\w.+-]+\+json", kind):
        raise UnsupportedMedia(
            f"The content type is '{kind[:100]}'. Send JSON with Content-Type: application/json."
            if kind
            else "The content type is missing. Send JSON with Content-Type: application/json."
        )
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", ""):
        raise UnsupportedMedia(
            f"Bodies with Content-Encoding '{coding[:100]}' are not read here. Send the body as it "
            "is; pictures are compressed already."
        )


def announced_bytes(headers: Mapping[str, str], max_bytes: int) -> int:
    """Return how long a body says it is, as far as it is read; 0 where it does not say."""
    said = headers.get("content-length", "")
    return min(int(said), max_bytes) if said.isdigit() else 0


async def read_body(
    request: Request, max_bytes: int, timeout_s: float, take: Callable[[int], None]
) -> bytes:
    """Return the request's body.

    Args:
        request: whose body was not read yet.
        max_bytes: of it.
        timeout_s: for all of it.
        take: told of the length of each piece before it is kept; may refuse it.

    Raises:
        TooLarge: it is longer than ``max_bytes``; the rest was read and thrown away, so that the
            caller, who is still sending, gets to read why.
        TimedOut: it does not arrive in time.
        QueueFull: ``take`` refuses a piece; the rest was read here too.
    """
    said = request.headers.get("content-length", "")
    announced = said.isdigit() and int(said) > max_bytes
    pieces, length = list[bytes](), 0
    stream = request.stream()
    try:
        async with asyncio.timeout(timeout_s):
            while not announced and (piece := await _next(stream)) is not None:
                length += len(piece)
                if length > max_bytes:
                    break
                take(len(piece))
                pieces.append(piece)
            else:
                if not announced:
                    return b"".join(pieces)
    except TimeoutError as error:
        raise TimedOut(
            f"The body did not arrive within {timeout_s:g} s, or paused for {IDLE_S:g} s. Send it "
            "without pauses, or send smaller pictures."
        ) from error
    except QueueFull:
        _forget(pieces, take)
        await _drain(stream)
        raise
    _forget(pieces, take)
    if request.headers.get("expect", "").lower() != "100-continue" or not announced:
        await _drain(stream)  # a caller who asks first has sent nothing yet
    raise TooLarge(
        f"The request is larger than {max_bytes:,} bytes. Send smaller or fewer pictures."
    )


def _forget(pieces: list[bytes], take: Callable[[int], None]) -> None:
    take(-sum(map(len, pieces)))
    pieces.clear()


async def _next(stream: AsyncGenerator[bytes]) -> bytes | None:
    async with asyncio.timeout(IDLE_S):
        return await anext(stream, None)


async def _drain(stream: AsyncGenerator[bytes]) -> None:
    """Read on for a while: a connection closed on a sender is reset, and its error never read."""
    left = DRAINED_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAINED_S):
            while left > 0 and (piece := await _next(stream)) is not None:
                left -= len(piece)


async def parse_body(raw: bytes, kind: type[Body]) -> Body:
    """Return the body as ``kind``.

    Raises:
        BadRequest: it is not JSON, or not of that shape; the wrong field is named.
    """
    return (
        await asyncio.to_thread(_parsed, raw, kind)
        if len(raw) > LARGE_BODY_BYTES
        else _parsed(raw, kind)
    )


def _parsed(raw: bytes, kind: type[Body]) -> Body:
    # Neither commas nor brackets nor backslashes stand in a picture's base64.
    if sum(map(raw.count, (b",", b"[", b"{"))) > MAX_VALUES or raw.count(b"\\") > MAX_ESCAPES:
        raise BadRequest(
            f"The body holds more than {MAX_VALUES:,} values, or {MAX_ESCAPES:,} escapes. Send "
            "fewer and shorter messages.",
            None, "too_many_values",
        )  # fmt: skip
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise _problem(error, raw) from None


def _problem(error: ValidationError, raw: bytes) -> BadRequest:
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    if problems[0]["type"] == "json_invalid":
        what = problems[0]["msg"]
        return BadRequest(
            f"The body is not JSON ({what}). Send a JSON object.", None, "invalid_json"
        )
    sent = json.loads(raw)
    # Where a field may be of several types, the deepest complaint is about the one that was meant.
    places = [_place(problem["loc"], sent, problem["type"] == "missing") for problem in problems]
    problem, place = max(zip(problems, places, strict=True), key=lambda pair: len(pair[1]))
    param = ".".join(map(str, place)) or None
    where = f" at '{param}'" if param else ""
    code = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
    advice = {"missing": "Add it", "extra_forbidden": "Remove it"}.get(
        problem["type"], "Correct it"
    )
    return BadRequest(
        f"The request is wrong{where}: {problem['msg']}. {advice}.",
        param, code.get(problem["type"], "invalid_type"),
    )  # fmt: skip


Step = int | str


def _place(loc: tuple[Step, ...], sent: Any, missing: bool) -> tuple[Step, ...]:
    """Return the part of pydantic's place that exists in what was sent; the rest names types.

    A type's name may also be a key (``text`` within a text part), so both readings are tried, and
    the one that reaches the last step counts.
    """
    return max(_readings(loc, sent, missing), key=lambda reading: reading[:2])[2]


def _readings(
    loc: tuple[Step, ...], sent: Any, missing: bool
) -> Iterator[tuple[bool, int, tuple[Step, ...]]]:
    """Yield (whether the last step was reached, length, place) of every way to walk the place."""
    if not loc:
        yield False, 0, ()
        return
    step, rest = loc[0], loc[1:]
    if missing and not rest and isinstance(sent, dict):
        yield True, 1, (step,)
    try:
        inner = sent[step]
    except (KeyError, IndexError, TypeError):
        pass
    else:
        for reached, length, place in _readings(rest, inner, missing):
            yield reached or not rest, length + 1, (step, *place)
    for reached, length, place in _readings(rest, sent, missing):
        yield reached, length, place


def _allow_nulls(schemas: Iterable[dict[str, Any]]) -> None:
    """Say of each field that may be left out that it may be null, as `serve.protocol.Wire` does."""
    for schema in schemas:
        for name, field in schema.get("properties", {}).items():
            if name not in schema.get("required", []):
                kinds = field.setdefault("anyOf", [_taken(field)])
                if {"type": "null"} not in kinds:
                    kinds.append({"type": "null"})


def _taken(field: dict[str, Any]) -> dict[str, Any]:
    """Return what a field's schema asks of a value, taken out of it."""
    about = ("default", "description", "title")
    return {name: field.pop(name) for name in [*field] if name not in about}


def describe_bodies(
    app: FastAPI,
    bodies: Mapping[str, type[BaseModel]],
    examples: Mapping[str, Mapping[str, Any]],
    streamed: str,
) -> None:
    """Make the OpenAPI description name the body of each POST path, and the errors.

    Args:
        app: the application.
        bodies: what each path takes.
        examples: of each, by name.
        streamed: the path that also answers in events.
    """
    plain = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        schema = plain()
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        kinds: list[type[BaseModel]] = [*bodies.values(), ErrorReply]
        for kind in dict.fromkeys(kinds):  # in one order every time
            own = kind.model_json_schema(ref_template=REF)
            found = own.pop("$defs", {}) | {kind.__name__: own}
            if kind is not ErrorReply:
                _allow_nulls(found.values())
            schemas |= found
        for path, kind in bodies.items():
            shown = {name: {"value": value} for name, value in examples[path].items()}
            told = {"schema": {"$ref": REF.format(model=kind.__name__)}, "examples": shown}
            content = {"application/json": told}
            schema["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
        answered = schema["paths"][streamed]["post"]["responses"]["200"]["content"]
        answered["text/event-stream"] = {}
        error = {"application/json": {"schema": {"$ref": REF.format(model=ErrorReply.__name__)}}}
        for methods in schema["paths"].values():
            for operation in methods.values():
                operation["responses"].pop("422", None)
                operation["responses"]["4XX"] = {"description": "What to do", "content": error}
                operation["responses"]["5XX"] = {"description": "Try again", "content": error}
        app.openapi_schema = schema
        return schema

    app.openapi = described  # type: ignore[method-assign]
