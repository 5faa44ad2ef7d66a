"""YAML files as plain values; a key that is given twice is an error, as is whatever YAML refuses.

Knows YAML; knows nothing of what the values mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from serve.configuration.faults import Fault, Place
from serve.errors import ServeSetupError


def read(file: Path) -> list[Any]:
    """Return the documents of a file that hold anything.

    Raises:
        ServeSetupError: it cannot be read, or is no YAML; one line that says where.
    """
    try:
        text = file.read_text("utf-8-sig")
    except OSError as error:
        raise ServeSetupError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ServeSetupError(f"{file}: not UTF-8 text") from error
    try:
        return parsed(text)
    except (ValueError, RecursionError) as error:
        raise ServeSetupError(f"{file}: {str(error) or 'nested too deeply'}") from error


def parsed(text: str) -> list[Any]:
    """Return the documents of a text that hold anything.

    Raises:
        ValueError: it is no YAML, or gives a key twice.
    """
    try:
        for node in yaml.compose_all(text, yaml.SafeLoader):
            for fault in _repeated(node, (), set()):
                raise ValueError(str(fault))
        return [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: "
        raise ValueError(f"{where}{error.problem}") from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _repeated(node: yaml.Node | None, place: Place, seen: set[int]) -> Iterator[Fault]:
    """Yield the keys that are given twice; YAML itself lets the last one win."""
    if id(node) in seen:  # an alias: looked at already, and possibly within itself
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for number, each in enumerate(node.value):
            yield from _repeated(each, (*place, number), seen)
    elif isinstance(node, yaml.MappingNode):
        keys: set[tuple[str, str]] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                below = (*place, key.value)
                if (key.tag, key.value) in keys:
                    line = key.start_mark.line + 1
                    yield Fault(below, f"given twice, the second time in line {line}")
                keys.add((key.tag, key.value))
                yield from _repeated(value, below, seen)
