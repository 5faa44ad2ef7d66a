"""Which answers were given, and to whom: feedback is taken on those alone.

The id of a reply carries a signature over the request and its tenant, by a secret that lies in the
log's folder, so every gateway that writes there knows it again, restarts or not. Callers who hold
only the request's id are known to the gateway that answered them lately. Knows ids and names; knows
nothing of what was asked.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections import OrderedDict
from pathlib import Path

from serve.errors import ServeSetupError

SECRET_FILE = "answers.secret"
SIGNATURE_LENGTH = 16  # hexadecimal digits: 64 bits, which can only be tried by asking
REMEMBERED = 20_000
WRITTEN_WITHIN_S = 2.0


class Receipts:
    """Signs answers and knows them again.

    Args:
        secret: from `shared_secret`.
        prefix: before the id of every reply.
    """

    def __init__(self, secret: bytes, prefix: str) -> None:
        self._secret, self._prefix = secret, prefix
        # Both together: who names a request as another tenant did displaces nothing.
        self._answered: OrderedDict[tuple[str, str], None] = OrderedDict()

    def reply_id(self, request_id: str, tenant: str) -> str:
        """Return the id of the reply to a request."""
        return f"{self._prefix}{request_id}-{self._signature(request_id, tenant)}"

    def remember(self, request_id: str, tenant: str) -> None:
        """Take in that a request was answered."""
        self._answered[request_id, tenant] = None
        self._answered.move_to_end((request_id, tenant))
        if len(self._answered) > REMEMBERED:
            self._answered.popitem(last=False)

    def request_of(self, given: str, tenant: str) -> str | None:
        """Return the request that a caller means by an id; None: none that it has an answer to."""
        for name in (given, given.removeprefix(self._prefix)):
            if (name, tenant) in self._answered:
                return name
            request_id, _, signature = name.rpartition("-")
            expected = self._signature(request_id, tenant)
            if hmac.compare_digest(signature.encode(), expected.encode()):
                return request_id
        return None

    def _signature(self, request_id: str, tenant: str) -> str:
        said = f"{request_id}\n{tenant}".encode()
        return hmac.new(self._secret, said, hashlib.sha256).hexdigest()[:SIGNATURE_LENGTH]


def shared_secret(folder: Path) -> bytes:
    """Return the secret in a log's folder, made by whoever comes first; only its owner reads it.

    Raises:
        ServeSetupError: it can neither be made nor read.
    """
    path = folder / SECRET_FILE
    try:
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as made:
            made.write(secrets.token_hex(32))
    except FileExistsError:
        pass
    except OSError as error:
        raise ServeSetupError(f"cannot make {path}: {error.strerror or error}") from error
    give_up = time.monotonic() + WRITTEN_WITHIN_S
    while True:
        try:
            said = path.read_bytes()
        except OSError as error:
            raise ServeSetupError(
                f"cannot read {path}: {error.strerror or error}; all gateways that share the "
                "folder must run as one user"
            ) from error
        if len(said) == 64:
            return said
        if time.monotonic() > give_up:  # whoever made it has had time to write it
            raise ServeSetupError(f"{path} is damaged: delete it, another is made")
        time.sleep(0.01)
