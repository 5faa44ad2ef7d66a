"""Request bodies in /openapi.json.

Bodies are read and checked by hand (limits, strict types, OpenAI's errors), so FastAPI does not see
their types; this puts them into its description. Knows OpenAPI only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from serve.protocol import ErrorReply

REF = "#/components/schemas/{model}"


def describe_bodies(app: FastAPI, bodies: Mapping[str, type[BaseModel]]) -> None:
    """Make the OpenAPI description name the body of each POST path, and the errors."""
    plain = app.openapi

    def described() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        schema = plain()
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        kinds: set[type[BaseModel]] = {*bodies.values(), ErrorReply}
        for kind in kinds:
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
