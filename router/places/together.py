"""Many objects read or removed at once: a store answers each late, and many as fast as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path

from router.places.clients import as_of_a_disk, client
from router.places.stored import Place, StoredPlace

AT_ONCE = 16
AHEAD = 256  # contents that are in memory before anybody took them


def read_all(places: Iterable[Place]) -> Iterator[tuple[Place, bytes | OSError]]:
    """Yield each place with its content, or with what kept it from being read, in order."""
    waiting = iter(places)
    pool: ThreadPoolExecutor | None = None
    try:
        while some := list(islice(waiting, AHEAD)):
            if len(some) == 1 or isinstance(some[0], Path):
                yield from ((place, _content(place)) for place in some)
                continue
            pool = pool or ThreadPoolExecutor(AT_ONCE, "m3-store")
            yield from zip(some, pool.map(_content, some), strict=True)
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def remove_all(places: Sequence[StoredPlace]) -> None:
    """Remove objects; those that are gone are no fault.

    Raises:
        OSError: some may be left.
    """
    for root, some in groupby(sorted(places), key=lambda place: place.root):
        keys = [place.key for place in some]
        with as_of_a_disk(root):
            from obstore import delete

            delete(client(root), keys)


def _content(place: Place) -> bytes | OSError:
    try:
        return place.read_bytes()
    except OSError as error:
        return error
