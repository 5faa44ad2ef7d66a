"""Writes docs/reference.md from the code: every flag, setting, wire key, metric and variable.

Reads the command objects, the pydantic models and the metrics' table, so the page cannot say what
the code does not; a test compares the two. Prints nothing.

    python docs/make_reference.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from typer.main import get_command

PAGE = Path(__file__).parent / "reference.md"
HEAD = """\
# Reference

Written by `make docs` from the code; do not edit it by hand. What the words mean is said in
[how it decides](../README.md#how-it-decides); how to use these things in the
[other pages](index.md).
"""
# Variables that no command object names; those of flags are read off the flags.
VARIABLES = {
    "M3_API_KEYS": "`m3-serve up`: the keys that callers may send, comma-separated; unset: no key "
    "is asked for. Secrets are no settings, so there is no flag; `--api-keys-file` takes digests.",
    "AWS_ENDPOINT_URL": "Logs and registries in an object store (`s3://`, `gs://`, `az://`): keys, "
    "region and endpoint are those of the environment, in the variables AWS_*, GOOGLE_* and "
    "AZURE_* as everywhere, or the machine's own identity. Needs the extra `[stores]`.",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "`m3-serve up`: where traces are sent as OTLP over HTTP; unset, "
    "as `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`: there are none. Needs the extra `[otel]`.",
    "OTEL_SDK_DISABLED": "`m3-serve up`: `true` switches traces off, whatever else is set.",
    "OTEL_TRACES_EXPORTER": "`m3-serve up`: `otlp`, `console` or `none`. Other variables of "
    "OpenTelemetry's SDK (service name, sampler, headers, ...) mean what they always mean.",
    "RANK": "`m3-train` under torchrun: only rank 0 draws progress. torchrun sets it.",
    "RAY_ADDRESS": "`m3-serve up`: the running cluster to deploy to; unset: a local one is "
    "started, and ended with the service.",
    "RAY_USAGE_STATS_ENABLED": "Ray's usage statistics; set to 0 unless you set it otherwise.",
    "XDG_CACHE_HOME": "Routers of an object store are copied below it, to `m3-router/routers`, "
    "before they are loaded; unset: `~/.cache`.",
    "WORLD_SIZE": "`lmms-eval --model m3`: more than 1 process is refused. Launchers set it.",
}
BOUNDS = {
    "minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<",
    "minLength": "length ≥", "maxLength": "length ≤",
    "minItems": "length ≥", "maxItems": "length ≤",
}  # fmt: skip


def page() -> str:
    """Return the whole page."""
    return "\n".join([HEAD, *_commands(), *_settings(), *_wire(), *_metrics(), *_variables()])


def _apps() -> dict[str, Any]:
    from m3model.convert.checkpoint import app as convert
    from serve.cli import app as serve_app
    from training.cli.program import app as train_app

    apps = {"m3-serve": serve_app, "m3-train": train_app, "python -m m3model.convert": convert}
    return {name: get_command(app) for name, app in apps.items()}


def _leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield every command that does something, groups in groups included."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
    else:
        for word, each in inner.items():
            yield from _leaves(f"{name} {word}", each)


def _commands() -> Iterator[str]:
    yield "## Commands\n"
    for program, group in _apps().items():
        if hasattr(group, "commands"):
            yield f"### {program}\n\n{_sentence(group.help)}\n"
        for name, command in _leaves(program, group):
            yield f"{'####' if name != program else '###'} {name}\n\n{_sentence(command.help)}\n"
            rows = [_flag(each) for each in command.params if not each.hidden]
            if rows:
                yield _table(["flag", "value", "default", "what it does"], rows)


def _flag(parameter: Any) -> list[str]:
    names = [*parameter.opts, *parameter.secondary_opts]
    if not names[0].startswith("-"):
        names = [parameter.name.upper()]
    annotation = parameter.type_descriptor.annotation
    if parameter.multiple:
        annotation = get_args(annotation)[0]
    kind = "" if annotation is bool else _kind(annotation)
    limits = [f"≥ {parameter.min}"] if parameter.min is not None else []
    limits += [f"≤ {parameter.max}"] if parameter.max is not None else []
    kind = ", ".join([kind, *limits]) + (", repeatable" if parameter.multiple else "")
    default = parameter.default
    silent = default is None or default is False or parameter.multiple or callable(default)
    told = _sentence(parameter.help)
    if parameter.envvar:
        told += f" Also from `{parameter.envvar}`."
    return [
        " ".join(f"`{name}`" for name in names), kind,
        "required" if parameter.required else "" if silent else f"`{default}`", told,
    ]  # fmt: skip


def _settings() -> Iterator[str]:
    from serve.settings import ServeSettings

    yield (
        "## Settings\n\nThe fields of `ServeSettings`: what stands in a file for `m3-serve up "
        "--config`, and under `args:` in a Ray Serve YAML. The usual ones are flags of "
        "`m3-serve up`.\n"
    )
    yield from _models([(ServeSettings, "validation")])


def _wire() -> Iterator[str]:
    from serve import protocol as wire

    yield (
        "## On the wire\n\n`/openapi.json` of a running service holds the same as JSON schema. "
        "Unknown keys within `messages` and `routing` are errors; other keys of OpenAI's are "
        "refused where they would change an answer.\n"
    )
    requests = (wire.ChatRequest, wire.FeedbackRequest)
    replies = (wire.ChatCompletion, wire.ChatChunk, wire.RouteReply, wire.ErrorReply)
    yield from _models([*((each, "validation") for each in requests),
                        *((each, "serialization") for each in replies)])  # fmt: skip


def _metrics() -> Iterator[str]:
    from serve.metrics import METRICS

    yield "## Metrics\n\n`GET /metrics`; Prometheus adds `_total` to counters.\n"
    rows = [
        [f"`{name}`", m.kind, ", ".join(f"`{label}`" for label in m.labels), m.description]
        for name, m in METRICS.items()
    ]
    yield _table(["metric", "kind", "labels", "what it counts"], rows)


def _variables() -> Iterator[str]:
    yield "## Environment variables\n"
    found: dict[str, list[str]] = {}
    for program, group in _apps().items():
        for name, command in _leaves(program, group):
            for each in command.params:
                if each.envvar:
                    found.setdefault(each.envvar, []).append(f"`{each.opts[0]}` of `{name}`")
    told = VARIABLES | {name: f"{', '.join(flags)}." for name, flags in found.items()}
    yield _table(["variable", "what it does"], [[f"`{k}`", told[k]] for k in sorted(told)])


def _models(roots: list[tuple[type[BaseModel], Literal["validation", "serialization"]]]) -> Any:
    """Yield a section for every model and for every type that its fields have."""
    _, found = models_json_schema(roots)
    schemas = found["$defs"]
    waiting, seen = [model.__name__ for model, _ in roots], set[str]()
    while waiting:
        name = waiting.pop(0)
        if name in seen:
            continue
        seen.add(name)
        schema = schemas[name]
        yield f"### {name}\n\n{_sentence(schema.get('description'))}\n"
        required, fields = schema.get("required", ()), schema["properties"].items()
        rows = [_field(key, field, key in required) for key, field in fields]
        columns = ["key", "value", "default", "what it says"]
        if not any(row[-1] for row in rows):  # said by the name, or above the table
            columns, rows = columns[:-1], [row[:-1] for row in rows]
        yield _table(columns, rows)
        waiting = [*(inner for _, field in fields for inner in _inner(field)), *waiting]


def _field(name: str, schema: dict[str, Any], required: bool) -> list[str]:
    default = "required" if required else "its defaults"
    if "default" in schema:
        default = f"`{_json(schema['default'])}`"
    return [f"`{name}`", _shape(schema), default, _sentence(schema.get("description"))]


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _inner(schema: Any) -> Iterator[str]:
    """Yield the names of the types within a JSON schema."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].rpartition("/")[2]
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from _inner(part)


def _shape(schema: Any) -> str:
    """Return a JSON schema as a reader says it."""
    if not isinstance(schema, dict):  # true: whatever it is
        return "anything"
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(_shape(part) for part in schema[several])
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(f"`{_json(value)}`" for value in values)
    if schema.get("type") == "array":
        told = f"list of {_shape(schema.get('items', {}))}"
    elif schema.get("type") == "object":
        told = f"key → {_shape(schema.get('additionalProperties'))}"
    else:
        named = {"string": "text", "boolean": "true or false"}
        kind = schema.get("format", schema.get("type", "anything"))
        told = named.get(kind, kind)
    bounds = [f"{sign} {schema[key]}" for key, sign in BOUNDS.items() if key in schema]
    return f"{told} ({', '.join(bounds)})" if bounds else told


def _kind(annotation: Any) -> str:
    """Return the type of a flag as a reader says it."""
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{each}`" for each in get_args(annotation))
    names = {str: "text", Path: "path", Any: "path or address", int: "integer", float: "number"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _sentence(text: str | None) -> str:
    """Return text for a table cell or a paragraph: one line, paragraphs joined."""
    plain = re.sub(r"\s+", " ", text or "").strip()
    return plain.replace("``", "`").replace("|", "\\|")


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
