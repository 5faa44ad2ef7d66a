"""The settings of the service in a YAML file: read, joined with flags, shown.

Knows `ServeSettings` and how flags stand above a file; knows nothing of the commands, nor of Ray.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from serve.configuration.documents import read
from serve.configuration.faults import Fault, unknown_keys, wrong_values
from serve.errors import ServeSetupError
from serve.settings import ServeSettings

WIDTH = 98
HEAD = "# Settings of m3-serve, for `m3-serve up --config FILE`. None in a sentence is null here.\n"
Settings = TypeVar("Settings", bound=BaseModel)


def faults_of(value: Any) -> list[Fault]:
    """Return what is wrong with a mapping of settings, unknown keys first."""
    if not isinstance(value, Mapping):
        return [Fault((), f"settings are a mapping of names to values, not {value!r}")]
    if faults := list(unknown_keys([ServeSettings], value)):
        return faults
    try:
        ServeSettings(**value)
    except ValidationError as error:
        return wrong_values(error, value)
    return []


def in_force(file: Path | None, flags: Mapping[str, Any] | None = None) -> ServeSettings:
    """Return the settings of a file, with those of the flags that were given in their place.

    Args:
        file: YAML of `ServeSettings`; None: the defaults.
        flags: values by dotted path, as `encoder.replicas`.

    Raises:
        ServeSetupError: one line with the path of what is wrong.
    """
    value = {} if file is None else _settings_in(file)
    for path, told in (flags or {}).items():
        value = _with(value, path.split("."), told)
    if faults := faults_of(value):
        raise ServeSetupError(complaint(faults))
    return ServeSettings(**value)


def complaint(faults: list[Fault], file: Path | None = None) -> str:
    """Return the first fault as one line, and how many there are besides."""
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{'' if file is None else f'{file}: '}{faults[0]}{more}"


def absolute(settings: Settings) -> Settings:
    """Return the same settings with folders that mean the same from everywhere."""
    changed: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Path):
            changed[name] = value.absolute()
        elif isinstance(value, BaseModel):
            changed[name] = absolute(value)
    return settings.model_copy(update=changed)


def shown(settings: ServeSettings) -> str:
    """Return every setting as YAML, each below its sentence."""
    return "\n".join([HEAD, *_lines(settings, "")]) + "\n"


def schema() -> str:
    """Return the JSON schema of a file of settings."""
    return json.dumps(ServeSettings.model_json_schema(), indent=2)


def _settings_in(file: Path) -> dict[str, Any]:
    documents = read(file)
    if len(documents) > 1:
        raise ServeSetupError(f"{file}: holds {len(documents)} documents, settings are one")
    if not documents:  # nothing but comments
        return {}
    if faults := faults_of(documents[0]):
        raise ServeSetupError(complaint(faults, file))
    return dict(documents[0])


def _with(value: Mapping[str, Any], path: list[str], told: Any) -> dict[str, Any]:
    name, *below = path
    return {**value, name: _with(value.get(name) or {}, below, told) if below else told}


def _lines(model: BaseModel, indent: str) -> Iterator[str]:
    plain = model.model_dump(mode="json")
    for name, field in type(model).model_fields.items():
        margin = f"{indent}# "
        yield from textwrap.wrap(
            field.description or "", WIDTH, initial_indent=margin, subsequent_indent=margin
        )
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:"
            yield from _lines(value, f"{indent}  ")
        else:
            yield f"{indent}{name}: {_in_a_line(plain[name])}"


def _in_a_line(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("...\n").rstrip()
