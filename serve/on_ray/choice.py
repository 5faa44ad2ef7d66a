"""Which of several replicas should take a request: the least loaded, or the one with the picture.

Pure functions of what is known about the replicas; they know neither Ray nor requests.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

HASHED_AT_ONCE = 65_536  # bytes; more would hold up every other request meanwhile


@dataclass(frozen=True)
class ReplicaState:
    """A replica as one gateway sees it.

    Args:
        name: the same in every gateway.
        well: whether it says that it can work.
        outstanding: work of this gateway's that is there.
        queued: requests there, others' included, when it last told.
    """

    name: str
    well: bool = True
    outstanding: int = 0
    queued: int = 0


def least_loaded(states: Sequence[ReplicaState], random: Random) -> list[int]:
    """Return the replicas that may take a request, best first, as indices.

    Of those that are equal, any; unwell ones only if all are.
    """
    return sorted(
        _able(states), key=lambda i: (states[i].outstanding, states[i].queued, random.random())
    )


def anywhere(states: Sequence[ReplicaState], random: Random) -> list[int]:
    """Return the replicas that may take a request, in any order: for what costs nothing."""
    able = _able(states)
    random.shuffle(able)
    return able


def nearest(states: Sequence[ReplicaState], picture: str, slack: int) -> list[int]:
    """Return the replicas that may take a picture, best first, as indices.

    Every gateway puts them in the same order, picture by picture, and the order of those that stay
    does not change when others come or go (rendezvous hashing). The first has the picture cached,
    unless it is new; it is passed over for the second only when it has more than ``slack`` more to
    do, since that one would have to encode the picture as well.
    """
    order = sorted(_able(states), key=lambda i: _weight(states[i].name, picture), reverse=True)
    if len(order) > 1:
        first, second, *others = order
        if states[first].outstanding > states[second].outstanding + slack:
            return [second, first, *others]
    return order


async def picture_key(picture: bytes) -> str:
    """Return what a picture's bytes are known by."""
    if len(picture) > HASHED_AT_ONCE:
        return await asyncio.to_thread(_sha256, picture)
    return _sha256(picture)


def _able(states: Sequence[ReplicaState]) -> list[int]:
    well = [index for index, state in enumerate(states) if state.well]
    return well or list(range(len(states)))


def _weight(name: str, picture: str) -> bytes:
    return hashlib.blake2b(f"{picture} {name}".encode(), digest_size=8).digest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
