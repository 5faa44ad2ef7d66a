"""What can be wrong with a log folder, said in one line each.

Knows words; knows no files and no Arrow.
"""

from __future__ import annotations

from dataclasses import dataclass


class NewerLog(ValueError):
    """A file was written by a newer version of this program: nothing is read past it."""


class LogBusy(RuntimeError):
    """The folder cannot be compacted now; nothing was changed."""


@dataclass(frozen=True)
class Skipped:
    """A file, or a part of it, that is not read, and why."""

    file: str
    why: str

    def __str__(self) -> str:
        return f"{self.file}: {self.why}"
