"""Files that are there whole or not at all, whoever reads them meanwhile.

Knows paths and JSON; knows nothing of what is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file to write, which then takes the place of ``path``.

    It is on disk before it does, so no power cut leaves half a file. After an error ``path`` is as
    it was. Only a process that is killed leaves its temporary file behind.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def clear_leftovers(path: Path) -> None:
    """Remove what killed processes left beside ``path``; no other process may be writing it."""
    for leftover in path.parent.glob(f"{path.name}.*.tmp"):
        leftover.unlink()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file that is there whole or not at all."""
    text = json.dumps(content, indent=1, sort_keys=True)
    with replacing(path) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")
