"""The hash of a router folder's bytes, by which a registry names it."""

from __future__ import annotations

import hashlib
import re

from router.places.stored import Place
from router.places.together import read_all

_BESIDE = re.compile(r"(lineage\.json|report-[0-9a-f]{16}\.json)(\..*)?")


def hash_folder(folder: Place) -> str:
    """Return the sha256 of the names and contents of a router folder's files.

    What the registry lays beside a router does not count, nor do hidden files and folders.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    for path, content in read_all(files_of(folder)):
        if isinstance(content, OSError):
            raise content
        digest.update(f"{path.name}\0".encode())
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def files_of(folder: Place) -> list[Place]:
    """Return the files of a router folder that its hash is of, sorted."""
    listed: list[Place] = list(folder.iterdir())
    return sorted(
        (path for path in listed
         if path.is_file() and path.name[0] != "." and not is_beside(path.name)),
        key=lambda path: path.name,
    )  # fmt: skip


def is_beside(name: str) -> bool:
    """Return whether a file is one that the registry lays beside a router."""
    return _BESIDE.fullmatch(name) is not None
