"""Writes docs/reference.md from the code: every flag, setting, wire key, metric and variable.

Reads the command objects, the pydantic models and the metrics' table, so the page cannot say what
the code does not; a test compares the two. Prints nothing.

    python docs/make_reference.py
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
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
    "is asked for. Secrets are no settings, so there is no flag.",
    "RANK": "`m3-train` under torchrun: only rank 0 draws progress. torchrun sets it.",
    "RAY_ADDRESS": "`m3-serve up`: the running cluster to deploy to; unset: a local one is "
    "started, and ended with the service.",
    "RAY_USAGE_STATS_ENABLED": "Ray's usage statistics; set to 0 unless you set it otherwise.",
}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥",
          "max_length": "length ≤"}  # fmt: skip


def page() -> str:
    """Return the whole page."""
    return "\n".join([HEAD, *_commands(), *_settings(), *_wire(), *_metrics(), *_variables()])


def _apps() -> dict[str, Any]:
    from m3model.convert.checkpoint import app as convert
    from serve.cli import app as serve_app
    from serve.demo import main as demo
    from training.cli.main import app as train_app

    demo_app = typer.Typer(add_completion=False)
    demo_app.command()(demo)
    apps = {"m3-serve": serve_app, "m3-train": train_app,
            "python -m m3model.convert": convert, "python -m serve.demo": demo_app}  # fmt: skip
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
    silent = parameter.default is None or parameter.default is False or parameter.multiple
    default = "" if silent else f"`{parameter.default}`"
    told = _sentence(parameter.help)
    if parameter.envvar:
        told += f" Also from `{parameter.envvar}`."
    return [
        " ".join(f"`{name}`" for name in names), kind,
        "required" if parameter.required else default, told,
    ]  # fmt: skip


def _settings() -> Iterator[str]:
    from serve.settings import ServeSettings

    yield (
        "## Settings\n\nThe fields of `ServeSettings`: what stands under `args:` in a Ray Serve "
        "YAML. The usual ones are flags of `m3-serve up`.\n"
    )
    yield from _models([ServeSettings])


def _wire() -> Iterator[str]:
    from serve import protocol

    yield (
        "## On the wire\n\n`/openapi.json` of a running service holds the same as JSON schema. "
        "Unknown keys within `messages` and `routing` are errors; other keys of OpenAI's are "
        "refused where they would change an answer.\n"
    )
    shown = [protocol.ChatRequest, protocol.ChatCompletion, protocol.ChatChunk,
             protocol.RouteReply, protocol.FeedbackRequest, protocol.ErrorReply]  # fmt: skip
    yield from _models(shown)


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


def _models(roots: Iterable[type[BaseModel]]) -> Iterator[str]:
    """Yield a section for every model and for every model that is the type of a field."""
    waiting, seen = list(roots), set[type[BaseModel]]()
    while waiting:
        model = waiting.pop(0)
        if model in seen:
            continue
        seen.add(model)
        model.model_rebuild()
        yield f"### {model.__name__}\n\n{_sentence(inspect.getdoc(model))}\n"
        fields = model.model_fields.items()
        rows = [_field(name, field) for name, field in fields]
        columns = ["key", "value", "default", "what it says"]
        if not any(row[-1] for row in rows):  # said by the name, or above the table
            columns, rows = columns[:-1], [row[:-1] for row in rows]
        yield _table(columns, rows)
        inner = [found for _, field in fields for found in _inner(field.annotation)]
        waiting = [*inner, *waiting]


def _field(name: str, field: FieldInfo) -> list[str]:
    if field.is_required():
        default = "required"
    elif field.default_factory is not None:
        default = "its defaults"
    else:
        default = f"`{'null' if field.default is None else _plain(field.default)}`"
    kind = ", ".join([_kind(field.annotation), *_bounds(field.metadata)])
    return [f"`{field.alias or name}`", kind, default, _sentence(field.description)]


def _bounds(constraints: Iterable[Any]) -> list[str]:
    """Return the bounds of a number or a length; some constraints hold several."""
    found = [c.metadata if isinstance(c, FieldInfo) else [c] for c in constraints]
    return [
        f"{sign} {value}"
        for each in (each for several in found for each in several)
        for key, sign in BOUNDS.items()
        if (value := getattr(each, key, None)) is not None
    ]


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _inner(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models within a type."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _inner(part)


def _kind(annotation: Any) -> str:
    """Return a type as a reader says it."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = ", ".join(_bounds(parts[1:]))
        return f"{_kind(parts[0])} ({limits})" if limits else _kind(parts[0])
    if origin is Literal:
        return " or ".join(f"`{_plain(each)}`" for each in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_kind(part) for part in parts)
    if origin in (list, tuple):
        return f"list of {_kind(parts[0])}"
    if origin is dict:
        return f"{_kind(parts[0])} → {_kind(parts[1])}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    names = {type(None): "null", str: "text", Path: "path", bool: "true or false", int: "integer",
             float: "number"}  # fmt: skip
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
