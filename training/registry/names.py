"""The names of routers in a registry: which are of one router, and what a person's word means.

A folder's name is made of the router's version and a hash of all its bytes, as in
``3f0c2a7be915-90ab12cd``; registries of before have a date where the version is, and in an object
store one that was cleared away may come back as ``3f0c2a7be915-2-90ab12cd``. Knows names and which
folders there are; does not know what is in force.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from router.folder import read_files, version_of
from router.places import Place
from router.registry import Entry
from training.errors import TrainingError

START = "start"  # the router that a service starts with, which has no name in a registry
FEWEST_CHARACTERS = 4  # of the beginning of a name
_VERSION, _BYTES = re.compile(r"([0-9a-f]{12})(-.*)?"), re.compile(r".*-([0-9a-f]{8})")
_MADE_HERE = re.compile(r"([0-9a-f]{12}(-\d+)?|\d{8}T\d{6}Z)-[0-9a-f]{8}")


def same_router(name: str | None, other: str | None) -> bool:
    """Return whether two names are of one router, whatever lies beside it in the folder."""
    if name is None or other is None:
        return name is other
    found = [(part.fullmatch(name), part.fullmatch(other)) for part in (_VERSION, _BYTES)]
    return name == other or any(one and two and one[1] == two[1] for one, two in found)


def version_in(registry: Place, name: str) -> str:
    """Return the version of the router in a folder of the registry, "" where it cannot be told."""
    found = _VERSION.fullmatch(name)
    if found:
        return found[1]
    try:
        return version_of(read_files(registry / name))
    except OSError:
        return ""


def is_called(registry: Place, name: str | None, word: str) -> bool:
    """Return whether a folder name, or a router's version, is that of what is in force."""
    if name is None:
        return word == START
    return bool(word) and word in (name, version_in(registry, name))


def folders(registry: Place, entries: Sequence[Entry]) -> list[str]:
    """Return the router folders there are, the last promoted first.

    Folders that no entry names count where promotion made them: a process that died left them, or
    they are older than the journal. What others put there does not count.
    """
    promoted = {entry.to: entry.seq for entry in entries if entry.to is not None}
    promoted = {entry.before: 0 for entry in entries if entry.before is not None} | promoted
    there = [
        (promoted.get(path.name, -1), path.name)
        for path in list[Place](registry.iterdir())
        if path.is_dir() and (path.name in promoted or _MADE_HERE.fullmatch(path.name))
    ]
    return [name for _, name in sorted(there, reverse=True)]


def named(registry: Place, entries: Sequence[Entry], word: str) -> str:
    """Return the name that a folder name, a version, or the beginning of one means.

    A whole version counts also where no such router was promoted.

    Raises:
        TrainingError: it means none, or more than one.
    """
    known = {each for entry in entries for each in (entry.to, entry.before) if each is not None}
    known |= set(folders(registry, entries)) if registry.is_dir() else set()
    if word in known:
        return word
    found = sorted(name for name in known if is_called(registry, name, word))
    if not found and _VERSION.fullmatch(word):
        return word
    if not found and len(word) >= FEWEST_CHARACTERS:
        found = sorted(name for name in known if name.startswith(word))
    if len(found) == 1:
        return found[0]
    if found:
        raise TrainingError(f"{word} may mean {' or '.join(found)}; say which")
    raise TrainingError(f"{registry} has no router {word}; m3-train list shows what it has")
