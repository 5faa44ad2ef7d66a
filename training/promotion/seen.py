"""Which pictures shaped a router: a small file beside it, so that a gate can leave them out.

Without the file the rule of the splits tells: training and calibration pictures are seen, test
pictures never are, whoever fitted the router. The file says more: pictures of those splits that
came after the router was fitted are fresh to it. It counts for no version and may be lost without
harm. Knows identities of pictures (or of groups of them); knows nothing of routers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from router.places import Place
from training.files import replacing
from training.oracle.columns.names import numbered
from training.oracle.data import OracleData

SEEN_FILE = "seen.npy"


def write_seen(folder: Path, data: OracleData, *more: Place) -> None:
    """Write beside a router that the data's training and calibration pictures shaped it, and all
    that shaped the routers in the folders ``more``; nothing where one of those does not tell."""
    before = [read_seen(each) for each in more]
    known = [each for each in before if each is not None]
    path = folder / SEEN_FILE
    if len(known) < len(before):
        path.unlink(missing_ok=True)  # what lay there was another router's
        return
    ours = marks(numbered(data.units[data.splits != "test"])[0].tolist())
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.unique(np.concatenate([ours, *known])), allow_pickle=False)


def read_seen(folder: Place) -> NDArray[np.uint64] | None:
    """Return the marks of the pictures that shaped the router in a folder; None: it is not told."""
    try:
        with (folder / SEEN_FILE).open("rb") as file:
            found = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.dtype == np.uint64 and found.ndim == 1 else None


def marks(identities: Iterable[str]) -> NDArray[np.uint64]:
    """Return 64 bits of a hash of each identity."""
    digests = [hashlib.sha256(b"m3-router seen 1:" + name.encode()).digest() for name in identities]
    return np.array([int.from_bytes(each[:8], "big") for each in digests], dtype=np.uint64)


def unseen_by(data: OracleData, seen: NDArray[np.uint64] | None) -> NDArray[np.bool_]:
    """Return (n,): whether the picture of each question is fresh to a router."""
    if seen is None:
        rule: NDArray[np.bool_] = data.splits == "test"
        return rule
    names, inverse = numbered(data.units)
    return ~np.isin(marks(names.tolist()), seen)[inverse]
