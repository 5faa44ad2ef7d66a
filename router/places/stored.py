"""Places in an object store, used as paths are, and the words that mean a place.

A `StoredPlace` has of `pathlib.Path` what logs and registries use: names, listings, reading and
deleting. Folders are there while something is in them. A write is whole or not there, and may be
bound to a condition: `create` (If-None-Match) and `replace` (If-Match) say whether it held, which
only one of several writers is told. Knows nothing of what is stored.
"""

from __future__ import annotations

import fnmatch
import io
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from router.places.clients import HOW_TO_INSTALL, as_of_a_disk, client, is_installed

SCHEMES = ("s3", "gs", "az")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_ROOT_PARTS = {"az": 2}  # az://account/container; elsewhere the bucket alone


class NoPlace(ValueError):
    """Words that mean no place; the message says what would."""


@dataclass(frozen=True)
class Told:
    """What a listing says of a place.

    Attributes:
        size: bytes of an object; None: a folder.
        modified: seconds since 1970, by the store's clock.
    """

    size: int | None = None
    modified: float = 0.0


@dataclass(frozen=True)
class Version:
    """Which content of an object was read, for `StoredPlace.replace`."""

    e_tag: str | None
    version: str | None


@dataclass(frozen=True)
class Stat:
    """Size and time of an object, as `os.stat_result` names them."""

    st_size: int
    st_mtime: float


@dataclass(frozen=True, order=True)
class StoredPlace:
    """A place in an object store.

    Attributes:
        root: the bucket, as ``s3://bucket``.
        key: within it, without slashes at its ends; "": all of it.
        told: what the listing said that it is from.
    """

    root: str
    key: str = ""
    told: Told | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"{self.root}/{self.key}" if self.key else self.root

    def __truediv__(self, name: str) -> StoredPlace:
        return StoredPlace(self.root, f"{self.key}/{name}" if self.key else name)

    @property
    def name(self) -> str:
        """Return the last part of the key."""
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """Return the name without its suffix."""
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        """Return the end of the name from its last dot."""
        return PurePosixPath(self.key).suffix

    @property
    def parent(self) -> StoredPlace:
        """Return the folder that it is in."""
        return StoredPlace(self.root, self.key.rpartition("/")[0])

    @property
    def parents(self) -> list[StoredPlace]:
        """Return the folders that it is in, the nearest first."""
        above, places = self, []
        while above.key:
            above = above.parent
            places.append(above)
        return places

    def relative_to(self, other: Any) -> PurePosixPath:
        """Return the way from a folder to it."""
        return PurePosixPath(self.key).relative_to(other.key)

    def expanduser(self) -> StoredPlace:
        """Return itself: a store knows no homes."""
        return self

    def exists(self) -> bool:
        """Return whether it is an object or a folder with something in it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Return whether it is an object."""
        if self.told is not None:
            return self.told.size is not None
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Return whether something is in it."""
        if self.told is not None:
            return self.told.size is None
        return next(self._below(), None) is not None

    def stat(self) -> Stat:
        """Return its size and time.

        Raises:
            FileNotFoundError: there is no such object.
            OSError: the store cannot be asked.
        """
        if self.told is None or self.told.size is None:
            with as_of_a_disk(self):
                found = _obstore().head(client(self.root), self.key)
            return Stat(found["size"], found["last_modified"].timestamp())
        return Stat(self.told.size, self.told.modified)

    def read_bytes(self) -> bytes:
        """Return its content.

        Raises:
            FileNotFoundError: there is no such object.
            OSError: it cannot be read.
        """
        return self.read_version()[0]

    def read_version(self) -> tuple[bytes, Version]:
        """Return its content, and which one it is.

        Raises:
            FileNotFoundError: there is no such object.
            OSError: it cannot be read.
        """
        with as_of_a_disk(self):
            found = _obstore().get(client(self.root), self.key)
            content, meta = bytes(found.bytes()), found.meta
        return content, Version(meta["e_tag"], meta["version"])

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return its content as text."""
        return self.read_bytes().decode(encoding)

    def open(self, mode: str = "rb") -> io.BytesIO:
        """Return its content as a file to read from: all of one moment."""
        if mode != "rb":
            raise ValueError(f"mode {mode!r}: objects are written whole")
        return io.BytesIO(self.read_bytes())

    def write_bytes(self, content: bytes | memoryview) -> None:
        """Return when this is its content, for good.

        Raises:
            OSError: it may be or not.
        """
        self._put(content, "overwrite")

    def create(self, content: bytes | memoryview) -> bool:
        """Return whether this call made it; False: there was one.

        Raises:
            OSError: it may be there or not.
        """
        try:
            self._put(content, "create")
        except FileExistsError:
            # Also what a store says of a first try whose reply was lost.
            return self.read_bytes() == bytes(content)
        return True

    def replace(self, content: bytes | memoryview, version: Version | None) -> bool:
        """Return whether this took the place of a version that was read; None: of nothing.

        Raises:
            OSError: it may have or not.
        """
        facts = {} if version is None else asdict(version)
        told = {name: fact for name, fact in facts.items() if fact is not None}
        try:
            self._put(content, "create" if version is None else told)
        except FileExistsError:
            return False
        return True

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove it; a store does not say whether it was there."""
        with as_of_a_disk(self):
            _obstore().delete(client(self.root), self.key)

    def iterdir(self) -> Iterator[StoredPlace]:
        """Yield what is in it, folders included, sorted."""
        with as_of_a_disk(self):
            found = _obstore().list_with_delimiter(client(self.root), self.key or None)
        folders = [
            StoredPlace(self.root, key.rstrip("/"), Told()) for key in found["common_prefixes"]
        ]
        objects = [self._met(each) for each in found["objects"] if each["path"] != self.key]
        yield from sorted([*folders, *objects])

    def glob(self, pattern: str) -> Iterator[StoredPlace]:
        """Yield the objects at its depth or below whose way from here is of a pattern."""
        literal = re.split(r"[*?\[]", pattern, maxsplit=1)[0]
        if literal == pattern:
            yield from filter(StoredPlace.is_file, [self / pattern])
            return
        depth = pattern.count("/")
        for each in self._below(literal):
            way = each.key[len(self.key) + 1 if self.key else 0 :]
            if way.count("/") == depth and fnmatch.fnmatchcase(way, pattern):
                yield each

    def rglob(self, pattern: str) -> Iterator[StoredPlace]:
        """Yield the objects below it, at any depth, whose name is of a pattern."""
        return (each for each in self._below() if fnmatch.fnmatchcase(each.name, pattern))

    def _below(self, beginning: str = "") -> Iterator[StoredPlace]:
        """Yield the objects in it whose way from here begins so, sorted."""
        folder, _, start = beginning.rpartition("/")
        place = self / folder if folder else self
        first = f"{place.key}/{start}" if place.key else start
        with as_of_a_disk(self):
            listed = _obstore().list(
                client(self.root), place.key or None, offset=first if start else None
            )
            for each in (each for chunk in listed for each in chunk):
                if each["path"].startswith(first):
                    yield self._met(each)
                elif each["path"] > first:
                    return

    def _met(self, meta: Any) -> StoredPlace:
        told = Told(meta["size"], meta["last_modified"].timestamp())
        return StoredPlace(self.root, meta["path"], told)

    def _put(self, content: bytes | memoryview, mode: Any) -> None:
        with as_of_a_disk(self):
            _obstore().put(
                client(self.root), self.key, bytes(content), mode=mode, use_multipart=False
            )


Place: TypeAlias = Path | StoredPlace


def as_place(told: str | os.PathLike[str] | StoredPlace) -> Place:
    """Return the place that words mean: a path, or ``s3://bucket/folder`` and the like.

    Raises:
        NoPlace: an address of no store that is known, with a password in it, or of one that this
            installation lacks the package for.
    """
    if isinstance(told, StoredPlace):
        return told
    found = _URL.fullmatch(told) if isinstance(told, str) else None
    if found is None:
        return Path(told)
    scheme, rest = found[1].lower(), found[2]
    if scheme not in SCHEMES:
        known = ", ".join(f"{each}://" for each in SCHEMES)
        raise NoPlace(f"{told!r} is neither a path nor in an object store that is known: {known}")
    parts = rest.rstrip("/").split("/")
    n_root = _ROOT_PARTS.get(scheme, 1)
    wrong = {"", ".", ".."} & set(parts) or set(rest) & set("@?#%\\") or len(parts) < n_root
    if wrong or not rest.isprintable():
        example = "az://account/container" if scheme == "az" else f"{scheme}://bucket"
        raise NoPlace(
            f"{told!r} is no address of a folder in a store, such as {example}/folder; keys and "
            "endpoints come from the environment"
        )
    if not is_installed():
        raise NoPlace(f"{told}: {HOW_TO_INSTALL}")
    root = f"{scheme}://{'/'.join(parts[:n_root])}"
    return StoredPlace(root, "/".join(parts[n_root:]))


def _obstore() -> Any:
    return import_module("obstore")
