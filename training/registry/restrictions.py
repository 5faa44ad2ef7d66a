"""Holds the router in force to a safer price or to the finest scale, and ends that again.

What a registry says of it is followed by every running service; a promotion or a rollback ends it,
because it is of the router that was in force. Does not know why a router should be restricted.
"""

from __future__ import annotations

from router.places import Place
from router.registry import DEFAULT_REGISTRY, Restriction
from training.errors import NotInForce
from training.registry.journal import append, read_state
from training.registry.names import START, is_called


def restrict(
    restriction: Restriction | None,
    registry: Place = DEFAULT_REGISTRY,
    *,
    expect: str | None = None,
    who: str = "",
    why: str = "",
) -> bool:
    """Return whether the router in force is held to something else than before now.

    What is on trial beside it goes on.

    Args:
        restriction: None ends the one there is.
        registry: its folder; it is made where there is none and something is to be said.
        expect: folder name or version that must be in force, ``start`` for none of the registry's.
        who: for the journal.
        why: for the journal; else the restriction's own.

    Raises:
        NotInForce: something else than expected is in force.
    """
    while True:
        state = read_state(registry)
        if expect is not None and not is_called(registry, state.current, expect):
            raise NotInForce(
                f"not restricted: {state.current or START} is in force, not {expect} as expected"
            )
        if restriction == state.restriction:
            return False
        told = why or ("" if restriction is None else restriction.why)
        entry = state.next(
            "restrict", state.current, state.current, who, told, trial=state.trial,
            restriction=restriction,
        )  # fmt: skip
        if append(registry, state, entry):
            return True
