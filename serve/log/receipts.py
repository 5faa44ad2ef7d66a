"""Which answers were given, and to whom: feedback is taken on those alone.

The id of a reply carries a signature over the request and its tenant, by a secret that lies in the
log's folder, so every gateway that writes there knows it again, restarts or not. Callers who hold
only the request's id are known to the gateway that answered them lately. Callers choose the ids of
their requests, and may send one for many: each request has a name of its own in the log, and an id
that was given several answers means none of them. Knows ids and names; knows nothing of what was
asked.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections import OrderedDict
from typing import TypeVar

from router.places import Place, StoredPlace
from serve.errors import ServeSetupError

Value = TypeVar("Value")
SECRET_FILE = "answers.secret"
SIGNATURE_LENGTH = 16  # hexadecimal digits: 64 bits, which can only be tried by asking
NONCE_BYTES = 4  # makes ids differ that gateways give to requests of one id without knowing
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
        # Id and tenant together: who names a request as another tenant did displaces nothing.
        self._named: OrderedDict[tuple[str, str], None] = OrderedDict()
        # The names of the requests of that id that were answered: one, or two for several.
        self._answered: OrderedDict[tuple[str, str], tuple[str, ...]] = OrderedDict()

    def name(self, request_id: str, tenant: str) -> str:
        """Return the name of a new request in the log: its id, or with an addition where this
        gateway has seen that before.
        """
        again = (request_id, tenant) in self._named
        _keep(self._named, (request_id, tenant), None)
        return f"{request_id}.{secrets.token_hex(NONCE_BYTES)}" if again else request_id

    def reply_id(self, name: str, tenant: str) -> str:
        """Return the id of the reply to a request, which no other reply has."""
        nonce = secrets.token_hex(NONCE_BYTES)
        return f"{self._prefix}{name}-{nonce}{self._signature(name, tenant, nonce)}"

    def remember(self, request_id: str, tenant: str, name: str | None = None) -> None:
        """Take in that a request was answered; ``name`` where it is not its id."""
        key, name = (request_id, tenant), name or request_id
        names = self._answered.get(key, ())
        _keep(self._answered, key, names if name in names else (*names, name)[:2])

    def request_of(self, given: str, tenant: str) -> str | None:
        """Return the name of the request that a caller means by an id; None: none that it has an
        answer to.

        Raises:
            AmbiguousId: several.
        """
        for told in (given, given.removeprefix(self._prefix)):
            names = self._answered.get((told, tenant), ())
            if len(names) > 1:
                raise AmbiguousId(given)
            if names:
                return names[0]
            name, _, end = told.rpartition("-")
            nonce, signature = end[:-SIGNATURE_LENGTH], end[-SIGNATURE_LENGTH:]
            expected = self._signature(name, tenant, nonce)
            if hmac.compare_digest(signature.encode(), expected.encode()):
                return name
        return None

    def _signature(self, name: str, tenant: str, nonce: str) -> str:
        said = f"{name}\n{tenant}" + (f"\n{nonce}" if nonce else "")  # ids of before had none
        return hmac.new(self._secret, said.encode(), hashlib.sha256).hexdigest()[:SIGNATURE_LENGTH]


class AmbiguousId(ValueError):
    """An id under which several answers were given."""


def _keep(known: OrderedDict[tuple[str, str], Value], key: tuple[str, str], value: Value) -> None:
    """Put in what is newest; what was told longest ago is forgotten."""
    known[key] = value
    known.move_to_end(key)
    if len(known) > REMEMBERED:
        known.popitem(last=False)


def shared_secret(folder: Place) -> bytes:
    """Return the secret in a log's folder, made by whoever comes first; only its owner reads it, in
    an object store whoever may read the log.

    Raises:
        ServeSetupError: it can neither be made nor read.
    """
    path = folder / SECRET_FILE
    if isinstance(path, StoredPlace):
        return _stored_secret(path)
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


def _stored_secret(path: StoredPlace) -> bytes:
    try:
        made = secrets.token_hex(32).encode()
        said = made if path.create(made) else path.read_bytes()
    except OSError as error:
        raise ServeSetupError(f"cannot make {path}: {error.strerror or error}") from error
    if len(said) != 64:
        raise ServeSetupError(f"{path} is damaged: delete it, another is made")
    return said
