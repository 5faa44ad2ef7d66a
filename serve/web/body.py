"""Request bodies: read up to a limit, checked strictly, with one sentence about the first mistake.

Knows JSON, pydantic's complaints and OpenAI's error fields; knows nothing of paths or answers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from pydantic import BaseModel, ValidationError

from serve.errors import BadRequest, TooLarge
from serve.protocol import ErrorReply

LARGE_BODY_BYTES = 200_000
Body = TypeVar("Body", bound=BaseModel)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the request's body.

    Raises:
        TooLarge: as soon as it is known to be longer than ``max_bytes``.
    """
    too_large = TooLarge(
        f"The request is larger than {max_bytes:,} bytes. Send smaller or fewer pictures."
    )
    said = request.headers.get("content-length", "")
    if said.isdigit() and int(said) > max_bytes:
        raise too_large
    chunks, length = [], 0
    async for chunk in request.stream():
        length += len(chunk)
        if length > max_bytes:
            raise too_large
        chunks.append(chunk)
    return b"".join(chunks)


async def parse_body(raw: bytes, kind: type[Body]) -> Body:
    """Return the body as ``kind``.

    Raises:
        BadRequest: it is not JSON, or not of that shape; the wrong field is named.
    """

    def parse() -> Body:
        try:
            return kind.model_validate_json(raw)
        except ValidationError as error:
            raise _problem(error, raw) from None

    return await asyncio.to_thread(parse) if len(raw) > LARGE_BODY_BYTES else parse()


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
    param = ".".join(place) or None
    where = f" at '{param}'" if param else ""
    code = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
    advice = {"missing": "Add it", "extra_forbidden": "Remove it"}.get(
        problem["type"], "Correct it"
    )
    return BadRequest(
        f"The request is wrong{where}: {problem['msg']}. {advice}.",
        param, code.get(problem["type"], "invalid_type"),
    )  # fmt: skip


def _place(loc: tuple[int | str, ...], sent: Any, missing: bool) -> list[str]:
    """Return the part of pydantic's place that exists in what was sent; the rest names types."""
    place = []
    for depth, step in enumerate(loc):
        try:
            sent = sent[step]
        except (KeyError, IndexError, TypeError):
            if not (missing and depth == len(loc) - 1):
                continue
        place.append(str(step))
    return place


REF = "#/components/schemas/{model}"


def describe_bodies(app: FastAPI, bodies: Mapping[str, type[BaseModel]]) -> None:
    """Make the OpenAPI description name the body of each POST path, and the errors."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        schema = plain()
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        kinds: list[type[BaseModel]] = [*bodies.values(), ErrorReply]
        for kind in dict.fromkeys(kinds):  # in one order every time
            own = kind.model_json_schema(ref_template=REF)
            schemas |= own.pop("$defs", {})
            schemas[kind.__name__] = own
        for path, kind in bodies.items():
            content = {"application/json": {"schema": {"$ref": REF.format(model=kind.__name__)}}}
            schema["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
        error = {"application/json": {"schema": {"$ref": REF.format(model=ErrorReply.__name__)}}}
        for methods in schema["paths"].values():
            for operation in methods.values():
                operation["responses"].pop("422", None)
                operation["responses"]["4XX"] = {"description": "What to do", "content": error}
        app.openapi_schema = schema
        return schema

    app.openapi = described  # type: ignore[method-assign]
