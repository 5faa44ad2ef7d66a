"""The decision log: every decision and all feedback, durable, append-only.

Knows files, threads and what may be stored; knows no HTTP, no Ray and no model. It never slows an
answer down and never fails one: records wait in a bounded queue for one writer thread, pictures,
which are decoded one at a time, for another, and what cannot be kept is counted in `LogCounts`. A
record is acknowledged when it is on disk: `LogCounts.written` counts it, and `flush` returns True.

    <folder>/live/                    segments that grow, see `serve.log.segments`
    <folder>/decisions/, feedback/    what was compacted of them, see `serve.log.upkeep`
    <folder>/images/<picture_id>.png  only with ``log_images``
    <folder>/answers.secret           see `serve.log.receipts`

In an object store each segment is an object that is written once, and ``on disk`` means that the
store said so. Who reads it uses `router.log`.
"""

from __future__ import annotations

import atexit
import io
import logging
import os
import queue
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from m3model.pictures import CHECKED_BEFORE, decode_picture
from router.log.layout import ASIDE, IMAGES, LIVE, replace_file, this_replica
from router.log.tombstones import is_erased
from router.places import Place, StoredPlace, as_place
from router.records import DecisionRecord, FeedbackRecord, picture_id
from serve.errors import ServeSetupError
from serve.log.audits import Audits
from serve.log.receipts import shared_secret
from serve.log.segments import Segments
from serve.log.upkeep import Upkeep

LOG = logging.getLogger(__name__)
PENDING_PICTURE_BYTES = 64 * 2**20
SEEN_PICTURES = 100_000


@dataclass
class LogCounts:
    """What became of the records: rows and pictures on disk, records lost, failed writes."""

    written: int = 0  # acknowledged: on disk, whatever happens next
    pictures: int = 0
    dropped: int = 0
    errors: int = 0


class _Flush:
    """Stands in a queue behind the records it asks about."""

    def __init__(self) -> None:
        self.on_disk, self.handled = True, threading.Event()


class _CloseSegments(_Flush):
    """Asks the same, and for the segments to be left to the upkeep."""


@dataclass(frozen=True)
class _Picture:
    picture_id: str
    data: bytes | NDArray[np.uint8]

    @property
    def n_bytes(self) -> int:
        return len(self.data) if isinstance(self.data, bytes) else self.data.nbytes


class DecisionLog:
    """Keeps records in ``folder``.

    Without ``log_prompts`` and ``log_images`` no question, no answer and no picture reaches the
    disk. ``log_prompts`` keeps conversations and answers of all requests, ``log_images`` keeps
    picture, conversation and answer of the audited ones.

    Args:
        folder: made if missing; or a place in an object store.
        log_images: see above.
        log_prompts: see above.
        flush_s: the longest a record waits before it is written: what a crash may cost.
        keep_days: days of records to keep beside today's; None: all.
        audit_rate: share of the requests that `audits` draws, until the log tells another.
        audit_seed: of those draws; None: nobody can foretell them.
        max_rows: so many waiting records are written at once.
        max_waiting: records beyond this many are dropped and counted.

    Raises:
        ServeSetupError: the folder cannot be made or written.
    """

    def __init__(
        self,
        folder: Place | str,
        *,
        log_images: bool = False,
        log_prompts: bool = False,
        flush_s: float = 0.2,
        keep_days: int | None = None,
        audit_rate: float = 1.0,
        audit_seed: int | None = None,
        max_rows: int = 256,
        max_waiting: int = 8192,
    ) -> None:
        self.folder = as_place(folder)
        self.log_images, self.log_prompts = log_images, log_prompts
        self.counts = LogCounts()
        self._flush_s, self._max_rows = flush_s, max_rows
        replica = this_replica()
        self._decisions = Segments(self.folder, "decisions", DecisionRecord, replica, max_waiting)
        self._feedback = Segments(self.folder, "feedback", FeedbackRecord, replica, max_waiting)
        self._images = self.folder / IMAGES
        try:
            stored = isinstance(self.folder, StoredPlace)  # which has no folders
            for made in (LIVE,) if stored else (LIVE, "decisions", "feedback", IMAGES):
                replace_file(self.folder / made / f".writable-{os.getpid()}{ASIDE}", b"").unlink()
        except OSError as error:
            raise ServeSetupError(
                f"cannot write the decision log in {self.folder}: {error.strerror or error}"
            ) from error
        self.secret = shared_secret(self.folder)
        self.audits = Audits(self.folder, audit_rate, audit_seed)
        self.audits.look()
        self._queue: queue.Queue[object] = queue.Queue(max_waiting)
        self._pictures: queue.Queue[object] = queue.Queue(max_waiting)
        self._closed = False
        self._lock = threading.Lock()  # of what both sides of the queue count
        self._picture_bytes = 0
        self._seen_pictures: set[str] = set()
        self._failing = False
        self._writer = threading.Thread(target=self._run, name="decision-log", daemon=True)
        self._painter = threading.Thread(
            target=self._save_pictures, name="decision-log-pictures", daemon=True
        )
        self._writer.start()
        self._painter.start()
        self._upkeep = Upkeep(self.folder, replica, keep_days, self._close_segments)
        atexit.register(self.close)

    def append(
        self, record: DecisionRecord, pictures: Sequence[bytes | NDArray[np.uint8]] = ()
    ) -> int:
        """Take a decision over, at once whatever the disk does; return how many of its pictures
        are not kept because too many wait.

        Args:
            record: conversation and answer are removed here unless they may be stored.
            pictures: files as received, or decoded (H, W, 3) RGB, as in ``record.picture_ids``.
        """
        with_pictures = self.log_images and record.audited
        if not (self.log_prompts or with_pictures):
            record = replace(record, question=None, answer=None, messages=None)
        self._put(record)
        kept = [
            self._put_picture(_Picture(identity, data))
            for identity, data in zip(record.picture_ids, pictures, strict=False)
            if with_pictures
        ]
        return kept.count(False)

    def feedback(self, record: FeedbackRecord) -> None:
        """Take feedback over; returns at once."""
        self._put(record)

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Return whether everything taken over so far is on disk, within ``timeout_s``. Records
        that were dropped are not: they are counted.
        """
        deadline = time.monotonic() + timeout_s
        asked = []
        for waiting in (self._queue, self._pictures):
            asked.append(_Flush())
            try:
                waiting.put(asked[-1], timeout=max(0.0, deadline - time.monotonic()))
            except queue.Full:
                return False
        return all(
            each.handled.wait(max(0.0, deadline - time.monotonic())) and each.on_disk
            for each in asked
        )

    def close(self) -> None:
        """Write what waits and stop; later records are dropped and counted, and so are pictures
        that would take longer than some seconds.
        """
        atexit.unregister(self.close)
        if not self._closed:
            self._closed = True
            for waiting in (self._queue, self._pictures):
                with suppress(queue.Full):
                    waiting.put(None, timeout=10.0)
            self._writer.join(timeout=10.0)
            self._painter.join(timeout=10.0)
            self._upkeep.end(timeout_s=10.0)
            self._drop(self._pictures.qsize() if self._painter.is_alive() else 0)

    def _put(self, item: object) -> bool:
        waiting = self._pictures if isinstance(item, _Picture) else self._queue
        try:
            if self._closed:
                raise queue.Full
            waiting.put_nowait(item)
        except queue.Full:
            self._drop(1)
            return False
        return True

    def _put_picture(self, picture: _Picture) -> bool:
        if picture.picture_id in self._seen_pictures:
            return True
        if len(self._seen_pictures) >= SEEN_PICTURES:
            self._seen_pictures.clear()  # only saves work: the writer looks at the folder too
        if self._picture_bytes + picture.n_bytes > PENDING_PICTURE_BYTES:
            self._drop(1)
            return False
        with self._lock:
            self._picture_bytes += picture.n_bytes
        if not self._put(picture):
            with self._lock:
                self._picture_bytes -= picture.n_bytes
            return False
        self._seen_pictures.add(picture.picture_id)
        return True

    def _drop(self, n_records: int) -> None:
        with self._lock:
            self.counts.dropped += n_records

    def _run(self) -> None:
        due = time.monotonic() + self._flush_s
        while True:
            item: object = None
            with suppress(queue.Empty):
                item = self._queue.get(timeout=max(0.0, due - time.monotonic()))
                if item is None:
                    break
            if isinstance(item, DecisionRecord):
                self._decisions.waiting.append(item)
            elif isinstance(item, FeedbackRecord):
                self._feedback.waiting.append(item)
            elif isinstance(item, _Flush):
                self._write()
                item.on_disk = not (self._decisions.waiting or self._feedback.waiting)
                if isinstance(item, _CloseSegments):
                    self._decisions.close()
                    self._feedback.close()
                item.handled.set()
            full = len(self._decisions.waiting) >= self._max_rows and not self._failing
            if full or time.monotonic() >= due:
                self._write()
                self.audits.look()
                due = time.monotonic() + self._flush_s
        self._write()
        self._drop(len(self._decisions.waiting) + len(self._feedback.waiting))
        self._decisions.close()
        self._feedback.close()

    def _close_segments(self) -> None:
        asked = _CloseSegments()
        with suppress(queue.Full):
            self._queue.put(asked, timeout=10.0)
            asked.handled.wait(10.0)

    def _save_pictures(self) -> None:
        while (item := self._pictures.get()) is not None:
            if isinstance(item, _Picture):
                self._save_picture(item)
            elif isinstance(item, _Flush):
                item.handled.set()

    def _write(self) -> None:
        failing = False
        for segments in (self._decisions, self._feedback):
            try:
                written, unfit = segments.write()
                self.counts.written += written
                self._drop(unfit)
            except OSError as error:
                failing = True
                self._failed(f"cannot write {segments.folder}", error)
                self._drop(segments.forget_oldest())
        self._failing = failing

    def _save_picture(self, picture: _Picture) -> None:
        path = self._images / f"{picture.picture_id}.png"
        try:
            if not path.is_file() and not is_erased(self.folder, picture.picture_id):
                rgb = picture.data
                if isinstance(rgb, bytes):
                    rgb = decode_picture(rgb, CHECKED_BEFORE)
                if picture_id(rgb) != picture.picture_id:
                    raise ValueError("the picture's pixels do not have this identity")
                png = io.BytesIO()
                Image.fromarray(rgb).save(png, format="PNG", compress_level=1)
                replace_file(path, png.getvalue())
                self.counts.pictures += 1
                if is_erased(self.folder, picture.picture_id):  # meanwhile
                    path.unlink(missing_ok=True)
        except (OSError, ValueError) as error:
            self._seen_pictures.discard(picture.picture_id)
            self._failed(f"cannot write {path}", error)
        finally:
            with self._lock:
                self._picture_bytes -= picture.n_bytes

    def _failed(self, what: str, error: Exception) -> None:
        with self._lock:
            self.counts.errors += 1
        if not self._failing:  # once an outage, not once a second
            LOG.error("%s: %s; answers go on, records wait or are dropped", what, error)
        self._failing = True
