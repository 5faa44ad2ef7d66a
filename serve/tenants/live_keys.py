"""The keys in force, and what their file has become since: followed while requests are running.

Knows one file and one reference. A file that cannot be used changes nothing but a gauge and a line
in the log.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path

from serve.errors import ServeSetupError, Unauthorized
from serve.metrics import Metrics
from serve.tenants.keys import Key, digest, read_keys

LOG = logging.getLogger(__name__)
POLL_S = 1.0


class LiveKeys:
    """Tells whose key a request carries.

    Args:
        keys: in force at first; None: everybody may call, for as long as this lives.
        metrics: told whether the file can be used.
        file: looked at every second by a thread of its own, since disks may hang; None: the first
            keys stay.
    """

    def __init__(
        self, keys: tuple[Key, ...] | None, metrics: Metrics, file: Path | None = None
    ) -> None:
        self._by_digest = None if keys is None else _by_digest(keys)
        self._metrics, self._file = metrics, file
        self._stamp: tuple[int, ...] | None = None  # unknown: the file is read once more
        self._complaint = ""
        self._stop = threading.Event()
        if file is not None and keys is not None:
            threading.Thread(target=self._poll, name="m3-api-keys", daemon=True).start()

    @property
    def are_asked_for(self) -> bool:
        """Whether callers need a key."""
        return self._by_digest is not None

    def of(self, authorization: str) -> Key | None:
        """Return the key that an Authorization header carries; None where none is asked for.

        Raises:
            Unauthorized: it carries none that is in force.
        """
        keys = self._by_digest
        if keys is None:
            return None
        scheme, _, given = authorization.partition(" ")
        # What is looked up is a digest: how long that takes tells nothing of any key.
        found = keys.get(digest(given.strip()))
        if scheme.lower() != "bearer" or found is None:
            raise Unauthorized(
                "The API key is missing or wrong. Send the header 'Authorization: Bearer <key>'."
            )
        return found

    def stop(self) -> None:
        """Stop following the file."""
        self._stop.set()

    def look(self) -> None:
        """Take over what the file says if it has changed; a file that is wrong changes nothing."""
        if self._file is None:
            return
        try:
            said = self._file.stat()
            stamp = (said.st_mtime_ns, said.st_size, said.st_ino, said.st_ctime_ns)
        except OSError as error:
            self._stamp = None
            self._failed(f"the file of keys {self._file} is gone: {error.strerror}")
            return
        if stamp == self._stamp:
            return
        try:
            keys = read_keys(self._file)
        except ServeSetupError as error:
            self._stamp = None  # it may be the disk's fault, which leaves no trace in the file
            self._failed(str(error))
            return
        self._stamp = stamp
        if (now := _by_digest(keys)) != self._by_digest:
            self._by_digest = now
            LOG.info("%d keys of %s are in force", len(now), self._file)
        self._complaint = ""
        self._metrics.gauge("m3_api_keys_stale", 0)

    def _poll(self) -> None:
        while not self._stop.is_set():
            try:
                self.look()
            except Exception:  # the keys in force stay, and the next look may succeed
                LOG.exception("the file of keys %s cannot be looked at", self._file)
            self._stop.wait(POLL_S)

    def _failed(self, complaint: str) -> None:
        if complaint != self._complaint:  # once, not once a second
            LOG.error("%s; the keys in force stay", complaint)
        self._complaint = complaint
        self._metrics.gauge("m3_api_keys_stale", 1)


def _by_digest(keys: tuple[Key, ...]) -> Mapping[str, Key]:
    return {key.sha256: key for key in keys}
