"""Writes the router registry: promotes a candidate, remembers the one before, rolls back.

A registry holds router folders named ``<utc>-<sha8>`` and two text files, ``current`` and
``previous``, each naming a folder. The pointer is replaced in one system call, so a service that
polls it sees the old router or the new one. The reading side is router.registry. Does not know how
routers are fitted or judged.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from router.registry import DEFAULT_REGISTRY
from training.errors import TrainingError
from training.files import replacing


def promote(router: Path, registry: Path = DEFAULT_REGISTRY) -> Path:
    """Copy a router folder into the registry, make it current and return where it lies.

    The copy is loaded before the pointer moves: what the service will read has been read once.

    Raises:
        TrainingError: the folder is not a router.
    """
    from router.router import Router

    _load(Router, router)
    registry.mkdir(parents=True, exist_ok=True)
    with _locked(registry):
        utc = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        target = registry / f"{utc}-{hash_folder(router)[:8]}"
        if not target.exists():
            aside = registry / f".{target.name}.{os.getpid()}.tmp"
            shutil.rmtree(aside, ignore_errors=True)
            shutil.copytree(router, aside)
            _load(Router, aside)
            _sync(aside)
            aside.rename(target)
        before = _pointed(registry, "current")
        if before is not None and before != target.name:
            _point(registry, "previous", before)
        _point(registry, "current", target.name)
    return target


def rollback(registry: Path = DEFAULT_REGISTRY) -> Path:
    """Make the previous router current again (and the current one previous); return its folder.

    Raises:
        TrainingError: there is none, or its folder is gone or damaged.
    """
    from router.router import Router

    if not registry.is_dir():
        raise TrainingError(f"{registry} is not a registry; promote a router first")
    with _locked(registry):
        current, previous = _pointed(registry, "current"), _pointed(registry, "previous")
        if previous is None:
            raise TrainingError(f"{registry} has no previous router to go back to")
        _load(Router, registry / previous)
        _point(registry, "current", previous)
        if current is not None:
            _point(registry, "previous", current)
    return registry / previous


def hash_folder(folder: Path) -> str:
    """Return the sha256 of the names and contents of a folder's files."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _load(router_class: type, folder: Path) -> None:
    from router.errors import RouterFileError

    try:
        router_class.from_pretrained(folder)  # type: ignore[attr-defined]
    except (RouterFileError, OSError) as error:
        raise TrainingError(f"{folder} is not a usable router: {error}") from error


def _pointed(registry: Path, pointer: str) -> str | None:
    try:
        name = (registry / pointer).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    return name if name and (registry / name).is_dir() and "/" not in name else None


def _point(registry: Path, pointer: str, name: str) -> None:
    with replacing(registry / pointer) as temporary:
        temporary.write_text(f"{name}\n", encoding="utf-8")


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


@contextmanager
def _locked(registry: Path) -> Iterator[None]:
    """Hold the registry: two promotions at once must not lose the one before."""
    with (registry / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
