"""Writes the registry's journal, and tells what it amounts to: in force, behind it, in quarantine.

An entry is written aside, brought to disk and linked to its number (in an object store: created on
the condition that there is none), which only one writer can do: whoever comes second reads again
and decides anew. So there is no lock to be left behind by a
process that dies, and no clock that must be right. Reading is router.registry's. Does not know
what a router is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from router.log.layout import sync_folder
from router.places import Place, StoredPlace
from router.registry import (
    JOURNAL,
    Action,
    Entry,
    Restriction,
    Trial,
    entry_path,
    history,
)
from training.errors import TrainingError
from training.registry.names import same_router

_POINTERS = ("current", "previous", ".lock")  # of registries of before


@dataclass(frozen=True)
class State:
    """What a journal amounts to.

    Attributes:
        entries: all of them, the first first.
        line: what is in force, last, behind it what was before and was not taken back; it begins
            with None, the router that a service starts with.
        quarantined: what was rolled back or named bad, and not promoted by force since.
    """

    entries: tuple[Entry, ...]
    line: tuple[str | None, ...]
    quarantined: tuple[str, ...]

    @property
    def trial(self) -> Trial | None:
        """What is tried beside the router in force."""
        return self.entries[-1].trial if self.entries else None

    @property
    def restriction(self) -> Restriction | None:
        """What the router in force is held to."""
        return self.entries[-1].restriction if self.entries else None

    @property
    def current(self) -> str | None:
        """What is in force; None: the router that a service starts with."""
        return self.line[-1]

    def is_quarantined(self, name: str) -> bool:
        """Return whether this router is in quarantine, under this name or another."""
        return any(same_router(name, bad) for bad in self.quarantined)

    def behind(self) -> Iterator[str | None]:
        """Yield what a rollback may go to, the nearest first."""
        for name in reversed(self.line[:-1]):
            if name is None:
                yield None
            elif not (self.is_quarantined(name) or same_router(name, self.current)):
                yield name

    def next(
        self, action: Action, before: str | None, to: str | None, who: str, why: str,
        report: str | None = None, forced: bool = False,
        trial: Trial | None = None, restriction: Restriction | None = None,
    ) -> Entry:  # fmt: skip
        """Return the entry that would come next, dated now.

        What is tried and what is restricted must be said again, or ends.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        seq = self.entries[-1].seq + 1 if self.entries else 1
        return Entry(
            seq, action, before, to, who, why, report, now, forced, trial, restriction
        )  # fmt: skip


def read_state(registry: Place) -> State:
    """Return what the journal amounts to.

    Raises:
        RouterFileError: it cannot be read.
    """
    entries = history(registry)
    line: list[str | None] = [None]
    quarantined: list[str] = []
    for entry in entries:
        if entry.action == "promote":
            if entry.before != line[-1]:  # a journal that began with pointers
                line.append(entry.before)
            line.append(entry.to)
            if entry.forced and entry.to is not None:
                released = entry.to
                quarantined = [bad for bad in quarantined if not same_router(bad, released)]
        elif entry.action in ("rollback", "quarantine") and entry.before is not None:
            quarantined.append(entry.before)
        if entry.action == "rollback":
            while line and line[-1] != entry.to:
                line.pop()
            line = line or [None, entry.to]
    return State(entries, tuple(line), tuple(quarantined))


def append(registry: Place, state: State, entry: Entry) -> bool:
    """Return whether the entry is in the journal now; False: another one came before it.

    Pointers of before become the first entry.

    Raises:
        TrainingError: the disk cannot do it.
        OSError: the store cannot be reached, and the entry may be there or not.
    """
    if isinstance(registry, StoredPlace):
        return entry_path(registry, entry.seq).create(entry.to_bytes())
    folder = registry / JOURNAL
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(registry)
        sync_folder(registry.resolve().parent)
    if entry.seq == 1 and state.entries:
        taken_over = replace(state.entries[0], seq=1, time_utc=entry.time_utc)
        if not _create(registry, taken_over):
            return False
        entry = replace(entry, seq=2)
    if not _create(registry, entry):
        return False
    for name in _POINTERS:  # nobody reads them any more
        with suppress(OSError):
            (registry / name).unlink()
    return True


def _create(registry: Path, entry: Entry) -> bool:
    path = entry_path(registry, entry.seq)
    aside = path.with_name(f".{path.stem}.{uuid4().hex}.tmp")
    try:
        with aside.open("xb") as file:
            file.write(entry.to_bytes())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(aside, path)
        except FileExistsError:
            # A network disk may say so of what it has done itself, when its first reply was lost.
            return path.exists() and aside.samefile(path)
        except FileNotFoundError:  # cleared away because the number was taken
            return False
        except OSError as error:
            raise TrainingError(
                f"cannot write {path}: {error.strerror}; a registry needs a disk with hard links"
            ) from error
        return True
    finally:
        aside.unlink(missing_ok=True)
        sync_folder(path.parent)
