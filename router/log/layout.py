"""Where the things of a log folder lie, and how a file is put there for good.

    <log>/live/<kind>_<replica>_<utc>-<number>.arrows                segments that grow
    <log>/<kind>/date=<day>/replica=<replica>/part-<number>.parquet  what was compacted
    <log>/<kind>/*.parquet                                           of before, and of others
    <log>/images/<picture_id>.png
    <log>/erased/<hash of a picture_id>.json

In an object store all is the same, but that a segment is written once, whole, and never grows. A
kind is ``decisions`` or ``feedback``, a replica one process that writes, a day that of the
records (UTC). Knows names, the file system and what a store does in its stead; knows nothing of
what a file holds.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from router.log.faults import LogBusy
from router.places import Place, StoredPlace
from router.records import DecisionRecord, FeedbackRecord

KINDS: dict[str, type[Any]] = {"decisions": DecisionRecord, "feedback": FeedbackRecord}
LIVE, IMAGES, ERASED = "live", "images", "erased"
SEGMENT, PARQUET = ".arrows", ".parquet"
LOCK = ".compacting"
ELSEWHERE_S = 3600.0  # six times what a writer that lives keeps a segment open for
ASIDE = ".aside"  # at the end of the names of files that are not there yet
_SEGMENT_NAME = re.compile(rf"(\w+?)_([A-Za-z0-9.-]+)_[0-9TZ.]+-[0-9]+\{SEGMENT}")
_DAY = re.compile(r"date=(\d{4}-\d\d-\d\d)")


def this_replica() -> str:
    """Return the name under which this process writes."""
    return f"{_this_host()}-{os.getpid()}"


def _this_host() -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", socket.gethostname()).strip("-.") or "host"


def segment_name(kind: str, replica: str, number: int) -> str:
    """Return the name of a new segment; the time in it keeps a reborn process from its old one."""
    return f"{kind}_{replica}_{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{number:06d}{SEGMENT}"


def owner_of(segment: str) -> tuple[str, str] | None:
    """Return (kind, replica) of a segment by its name; None: it is no segment."""
    found = _SEGMENT_NAME.fullmatch(segment)
    return (found[1], found[2]) if found and found[1] in KINDS else None


def partition(log: Place, kind: str, day: date, replica: str) -> Place:
    """Return the folder of a replica's day."""
    return log / kind / f"date={day.isoformat()}" / f"replica={replica}"


def day_of(folder: str) -> date | None:
    """Return the day whose records a folder of this name holds; None: of no day."""
    found = _DAY.fullmatch(folder)
    with suppress(ValueError):
        return date.fromisoformat(found[1]) if found else None
    return None


def sync_folder(folder: Place) -> None:
    """Return when the names in a folder are on disk."""
    if isinstance(folder, StoredPlace):
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Place) -> None:
    """Make a folder and those above it, their names on disk."""
    if isinstance(folder, Path) and not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def replace_file(path: Place, payload: bytes | memoryview) -> Place:
    """Put ``payload`` at ``path`` so that a crash leaves the old file, the new one or none."""
    if isinstance(path, StoredPlace):
        path.write_bytes(payload)
        return path
    aside = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}{ASIDE}")
    make_folder(path.parent)  # somebody may have cleared the log away
    try:
        with aside.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        with suppress(OSError):
            aside.unlink()
        raise
    sync_folder(path.parent)
    return path


@contextmanager
def only_compaction(log: Place, wait_s: float) -> Iterator[None]:
    """Hold the right to compact a log, among all processes and hosts that share the folder.

    The kernel lets it go when the process dies, however it dies. A store has no such right to give,
    and needs none (router.log.shared_parts).

    Raises:
        LogBusy: another holds it, or the file system has no locks.
        OSError: the folder cannot be written.
    """
    if isinstance(log, StoredPlace):
        yield
        return
    with (log / LOCK).open("a+b") as file:
        give_up = time.monotonic() + wait_s
        while not _locked(file.fileno()):
            if time.monotonic() >= give_up:
                raise LogBusy(f"another compaction of {log} is running; try again later")
            time.sleep(0.05)
        yield


def is_closed(segment: Place, replica: str) -> bool:
    """Return whether nobody writes to a segment any more. Its writer holds its lock for as long as
    it lives, and none is opened twice. Some shared file systems do not show the locks of another
    host: its segments count as written for a while longer than any that lives keeps one open.

    Raises:
        OSError: it is gone, or not ours to write.
        LogBusy: the file system has no locks.
    """
    if isinstance(segment, StoredPlace):
        return True
    with segment.open("r+b") as file:
        if not _locked(file.fileno()):
            return False
        age = time.time() - os.fstat(file.fileno()).st_mtime
        return replica.rpartition("-")[0] == _this_host() or age > ELSEWHERE_S


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise LogBusy(
                "the file system has no locks, so nobody can tell which files are still written; "
                "compact a copy of the folder elsewhere"
            ) from error
        raise
    return True
