"""Router folders in a registry in an object store: uploaded whole before an entry names them.

A store can neither rename nor delete on condition, so who names a folder and who clears it away
look out for each other, each by an object of its own that is put down before it looks:

    <registry>/<name>/.held-<id>   by whoever is about to name it in the journal
    <registry>/.gone/<name>/<id>   by whoever is about to clear it away

Who holds and sees no mark may name it: whoever marks later sees the hold. Who marks and sees no
hold, and no entry that needs the folder, may clear it away: whoever holds later sees the mark, and
takes another name. So no entry names what goes, whoever dies when; what a dead process leaves
behind costs a router another name, or the store some bytes. Knows folders and marks; does not know
what is in force.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from router.places import Place, StoredPlace, remove_all
from router.places.content import files_of, hash_folder
from router.router import Router
from training.errors import TrainingError
from training.registry.lineage import LINEAGE, Report, write_lineage

HELD, GONE = ".held-", ".gone"
FORGOTTEN_S = 86_400.0  # nobody is about to name a folder for so long


def generation_of(version: str, digest: str, generation: int) -> str:
    """Return the name of a router's folder; the first that is not on its way out is taken."""
    between = "" if generation == 1 else f"-{generation}"
    return f"{version}{between}-{digest[:8]}"


@contextmanager
def held(folder: Place | None) -> Iterator[bool]:
    """Yield whether a folder may be named in the journal within the block; on a disk, always."""
    if not isinstance(folder, StoredPlace):
        yield True
        return
    hold = folder / f"{HELD}{uuid4().hex}"
    hold.write_bytes(b"")
    yield not _marks(folder).is_dir()
    hold.unlink()  # not after a failure: what was sent to a store may still arrive


def upload(
    router: Place, target: StoredPlace, digest: str, parent: str | None, report: Report | None
) -> None:
    """Put what is missing of a router into its folder: of one that dies here, the next goes on.

    Raises:
        TrainingError: the router changes meanwhile.
        OSError: the store cannot be written.
    """
    there = {each.name for each in target.iterdir()}
    if there.issuperset([LINEAGE, *(path.name for path in files_of(router))]):
        return
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch)
        for path in files_of(router):
            (copy / path.name).write_bytes(path.read_bytes())
        if hash_folder(copy) != digest:
            raise TrainingError(f"{router} was changed while it was read; promote it again")
        write_lineage(copy, Router.from_pretrained(copy), digest, parent, report)
        for path in sorted(copy.iterdir()):
            if path.name not in there:
                (target / path.name).create(path.read_bytes())


def take_down(folder: StoredPlace, needed: Callable[[], Collection[str]]) -> bool:
    """Return whether a folder was cleared away; not what is needed, or about to be named.

    Args:
        folder: of a router.
        needed: asks the journal which names are.
    """
    if folder.name in needed():
        return False
    mark = _marks(folder) / uuid4().hex
    mark.write_bytes(b"")
    files, now = list(folder.rglob("*")), mark.stat().st_mtime  # both by the store's clock
    is_held = any(
        each.name.startswith(HELD) and now - each.stat().st_mtime < FORGOTTEN_S for each in files
    )
    goes = not is_held and folder.name not in needed()
    if goes:
        remove_all(files)
    mark.unlink()  # not after a failure, as above
    return goes


def _marks(folder: StoredPlace) -> StoredPlace:
    return folder.parent / GONE / folder.name
