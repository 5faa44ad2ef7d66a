"""Router folders of an object store, copied to this machine before they are loaded.

A copy is named by what the store lists, so one that is there is used again; and where a folder is
named by its content, as in a registry, that is proved of the copy. Knows files and names; does not
know what is in force.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path
from uuid import uuid4

from router.errors import RouterFileError
from router.folder import read_files, version_of
from router.places.content import hash_folder
from router.places.stored import StoredPlace
from router.places.together import read_all

_PROMOTED = re.compile(r"([0-9a-f]{12})(?:-\d+)?-([0-9a-f]{8})")  # version, and hash of all bytes


def local_copy(folder: StoredPlace) -> Path:
    """Return a folder of this machine with the files of one in a store.

    Raises:
        RouterFileError: it is not there, or is not what its name says.
        OSError: it cannot be read, or this machine has no room.
    """
    files = [each for each in folder.iterdir() if each.is_file() and each.name[0] != "."]
    if not files:
        raise RouterFileError(f"router {folder}: there is no such folder")
    listed = repr([(each.name, each.told) for each in files])
    named = hashlib.sha256(f"{folder}\n{listed}".encode()).hexdigest()[:16]
    copy = _cache() / f"{folder.name}-{named}"
    if copy.is_dir() and not _fault(copy, folder.name):
        return copy
    aside = copy.with_name(f".{copy.name}.{uuid4().hex}.tmp")
    aside.mkdir()
    try:
        for each, content in read_all(files):
            if isinstance(content, OSError):
                raise content
            (aside / each.name).write_bytes(content)
        if fault := _fault(aside, folder.name):
            raise RouterFileError(f"router {folder}: {fault}")
        shutil.rmtree(copy, ignore_errors=True)  # damaged, or not there
        try:
            aside.rename(copy)
        except OSError:
            if not copy.is_dir():  # else another process was as far a moment before
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return copy


def _fault(copy: Path, name: str) -> str:
    """Return in what a copy is not what its folder's name says, "" if in nothing."""
    told = _PROMOTED.fullmatch(name)
    if told is None:
        return ""
    found = version_of(read_files(copy)), hash_folder(copy)[:8]
    return "" if found == told.groups() else f"its files are those of {'-'.join(found)}"


def _cache() -> Path:
    """Return where copies lie: the user's cache, or where there is none a folder that will go."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = Path(home).expanduser() / "m3-router" / "routers"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):
        pass
    return _of_this_process()


def _of_this_process() -> Path:
    if not _made:
        _made.append(Path(tempfile.mkdtemp(prefix="m3-routers-")))
    return _made[0]


_made: list[Path] = []
