"""The client of an object store, one a bucket and process, and its errors as those of a disk.

The package obstore is loaded on first use. Credentials and endpoints come from the environment
(AWS_*, GOOGLE_*, AZURE_*) or the machine's own identity, never from an address. Knows nothing of
what is stored.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from typing import Any

HOW_TO_INSTALL = 'object stores need one more package: pip install "m3-router[stores]"'
# A store that hangs is an error while somebody can still act on it. An endpoint that is http:// was
# given by a person.
_CLIENT: Any = {"connect_timeout": "5s", "timeout": "20s", "allow_http": True}
_BACKOFF = {
    "init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2,
}  # fmt: skip
_RETRIES: Any = {
    "max_retries": 4, "retry_timeout": timedelta(seconds=20), "backoff": _BACKOFF,
}  # fmt: skip


def is_installed() -> bool:
    """Return whether object stores can be used here."""
    return find_spec("obstore") is not None


@cache
def client(root: str) -> Any:
    """Return the client of a bucket, given as ``s3://bucket``."""
    from obstore.store import from_url

    with as_of_a_disk(root):
        return from_url(root, client_options=_CLIENT, retry_config=_RETRIES)


@contextmanager
def as_of_a_disk(place: object) -> Iterator[None]:
    """Raise what a disk would: FileNotFoundError, FileExistsError (where a condition of a write
    does not hold), PermissionError, or another OSError.
    """
    from obstore import exceptions

    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, "no such object", str(place)) from error
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
        raise FileExistsError(errno.EEXIST, "another one was quicker", str(place)) from error
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise PermissionError(errno.EACCES, f"not allowed: {_said(error)}", str(place)) from error
    except exceptions.BaseError as error:
        raise OSError(errno.EIO, _said(error), str(place)) from error


def _said(error: Exception) -> str:
    """Return what a store said in one line: its own words have many, with the program's innards."""
    words = str(error)
    if "NoSuchBucket" in words:
        return "no such bucket"
    code = re.search(r"<Code>(\w+)</Code>", words)
    told = " ".join(re.split(r"\n\n|<", words, maxsplit=1)[0].split())[:300]
    return f"{code[1]}: {told}" if code else told
