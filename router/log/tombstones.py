"""Which pictures were erased, and which requests were about them.

A tombstone is a file, named by a hash of the picture's identity, so that not even the identity is
left; in it are hashes of the requests whose feedback goes too. It counts for whatever names the
picture, also later. Knows tombstones and the columns they hide; rewrites nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from router.log.layout import ERASED, make_folder, replace_file, sync_folder
from router.places import Place, StoredPlace, read_all
from router.records import FeedbackRecord

# What `Erased.hidden` looks at, by kind of record.
LOOKED_AT = {"picture_ids", "picture_id", "request_id", "tenant"}


def hash_of_picture(picture_id: str) -> str:
    """Return the name of a picture's tombstone."""
    return hashlib.sha256(f"picture\n{picture_id}".encode()).hexdigest()


def hash_of_request(request_id: str, tenant: str | None) -> str:
    """Return how a tombstone names a request; callers choose ids, each tenant its own."""
    return hashlib.sha256(f"request\n{tenant or ''}\n{request_id}".encode()).hexdigest()[:32]


def is_erased(log: Place, picture_id: str) -> bool:
    """Return whether a picture must not be kept."""
    return _path(log, hash_of_picture(picture_id)).exists()


@dataclass(frozen=True)
class Erased:
    """The tombstones of a log at one moment.

    Args:
        requests: ``{hash of a picture: hashes of the requests about it}``.
        unswept: the pictures of which compacted files may still hold records.
    """

    requests: dict[str, frozenset[str]]
    unswept: frozenset[str] = frozenset()

    def hidden(self, table: pa.Table, kind: type[Any]) -> pa.BooleanArray | None:
        """Return which rows nobody may see; None: all may be seen. Needs the columns `LOOKED_AT`
        that the kind has.
        """
        if not self.requests or not table.num_rows:
            return None
        if kind is FeedbackRecord:
            gone = frozenset().union(*self.requests.values())
            if not gone:
                return None
            keys = zip(table["request_id"].to_pylist(), table["tenant"].to_pylist(), strict=True)
            flags = pa.array([hash_of_request(*key) in gone for key in keys])
        else:
            flags = self._about_erased(table)
        return flags if pc.any(flags).as_py() else None

    def _about_erased(self, table: pa.Table) -> pa.BooleanArray:
        if "picture_id" in table.schema.names:
            return pc.is_in(
                table["picture_id"].combine_chunks(), value_set=self._named(table["picture_id"])
            )
        lists = table["picture_ids"].combine_chunks()
        named = pc.is_in(lists.flatten(), value_set=self._named(lists.flatten()))
        rows = pc.unique(pc.list_parent_indices(lists).filter(named))
        return pc.is_in(pa.array(range(len(lists)), rows.type), value_set=rows)

    def _named(self, identities: Any) -> pa.Array:
        names = [name for name in pc.unique(identities).to_pylist() if name is not None]
        return pa.array([n for n in names if hash_of_picture(n) in self.requests], pa.string())

    def requests_in(self, table: pa.Table) -> dict[str, set[str]]:
        """Return the requests about erased pictures that no tombstone names yet, by picture."""
        found: dict[str, set[str]] = {}
        columns = (table[name].to_pylist() for name in ("picture_ids", "request_id", "tenant"))
        for pictures, request_id, tenant in zip(*columns, strict=True):
            for picture in map(hash_of_picture, pictures):
                request = hash_of_request(request_id, tenant)
                if request not in self.requests.get(picture, {request}):
                    found.setdefault(picture, set()).add(request)
        return found

    def visible(self, table: pa.Table, kind: type[Any]) -> pa.Table:
        """Return the table without what nobody may see."""
        flags = self.hidden(table, kind)
        return table if flags is None else table.filter(pc.invert(flags))


def read_erased(log: Place) -> Erased:
    """Return the tombstones of a log. One that cannot be read still hides its picture."""
    requests, unswept = {}, set()
    there: list[Place] = list((log / ERASED).glob("[0-9a-f]*.json"))
    for path, content in read_all(sorted(there, key=lambda path: path.name)):
        requests[path.stem], swept = _parsed(content)
        if not swept:
            unswept.add(path.stem)
    return Erased(requests, frozenset(unswept))


def begin_tombstone(log: Place, picture: str) -> None:
    """Put a tombstone down unless there is one: it counts for every reader from now on.

    Args:
        picture: from `hash_of_picture`.
    """
    path = _path(log, picture)
    if isinstance(path, StoredPlace):
        path.create(_text(frozenset(), swept=False).encode())
        return
    make_folder(log / ERASED)
    with suppress(FileExistsError), path.open("x", encoding="utf-8") as file:
        file.write(_text(frozenset(), swept=False))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(log / ERASED)


def write_tombstone(log: Place, picture: str, requests: frozenset[str], *, swept: bool) -> None:
    """Replace a tombstone. Only who holds the lock of compaction may; in an object store, which has
    none, what others wrote into it meanwhile stays, and makes it unswept.

    Args:
        picture: from `hash_of_picture`.
        requests: about it, those that the tombstone names included.
        swept: no compacted file holds anything of it.
    """
    path = _path(log, picture)
    if isinstance(path, Path):
        replace_file(path, _text(requests, swept=swept).encode())
        return
    while True:
        try:
            content, version = path.read_version()
            known, _ = _parsed(content)
        except FileNotFoundError:
            known, version = frozenset(), None
        whole = _text(requests | known, swept=swept and known <= requests)
        if path.replace(whole.encode(), version):
            return


def _text(requests: frozenset[str], *, swept: bool) -> str:
    return f"{json.dumps({'requests': sorted(requests), 'swept': swept})}\n"


def _parsed(content: bytes | OSError) -> tuple[frozenset[str], bool]:
    """Return the requests that a tombstone names, and whether it says that it is swept."""
    try:
        if isinstance(content, OSError):
            raise content
        told = json.loads(content.decode("utf-8"))
        return frozenset(map(str, told["requests"])), told["swept"] is True
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset(), False


def _path(log: Place, picture: str) -> Place:
    return log / ERASED / f"{picture}.json"
