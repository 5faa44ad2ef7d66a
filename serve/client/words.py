"""What an answer cost and what was read, in the words that the command and the console share.

Knows the decision that came with a reply; knows no connection. The console has the same functions
in its own language; a test holds the two together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from serve.client.focus import CELL_TOKENS, Look

if TYPE_CHECKING:
    from serve.client.wire import Route


def cost_in_words(route: Route) -> str:
    """Return the visual tokens that were read, and what that saves against always the finest scale.

    A reply without predictions (a pinned scale, a fallback) does not tell the finest scale, and
    claims no saving.
    """
    read, looked = route.visual_tokens, route.second_look
    looks = route.looks or (None,)
    finest = 0
    if route.p_suffices and route.scale:
        pictures = len(route.scales) or (1 if looked or route.focus else read // route.scale)
        finest = pictures * max(key for key in route.p_suffices if isinstance(key, int))
    if looked is None:
        if not finest:
            return f"{_of_look(read, looks[-1])}{_tokens(read)} ({route.reason})"
        return f"{_of_look(read, looks[-1])}{_of(read, finest)} ({route.reason})"
    first, second = looked["first_visual_tokens"], looked["second_visual_tokens"]
    return (
        f"first look: {_of_look(first, looks[0])}{_tokens(first)}, "
        f"{100 * looked['confidence']:.0f} % sure; "
        f"second look: {_of_look(second, looks[-1])}{_tokens(second)}; "
        f"together {_sum(read, finest)}"
    )


def grid_in_words(route: Route) -> list[str]:
    """Return for each look at the picture which tokens lie where; of several pictures nothing."""
    looks = route.looks
    order = ("",) if len(looks) == 1 else ("first look: ", "second look: ")
    return [f"{which}{_where(look)}" for which, look in zip(order, looks, strict=False)]


def _where(look: Look) -> str:
    if not look.cells:
        return f"{_tokens(look.scale, '')} everywhere"
    fine = f"{CELL_TOKENS} x {len(look.cells)} fine tokens where the question looks"
    return f"{_tokens(look.scale, 'coarse ')} everywhere, {fine}"


def _of_look(read: int, look: Look | None) -> str:
    if look is None or not look.cells:
        return ""
    return f"{look.scale} coarse + {read - look.scale} fine = "


def _of(read: int, finest: int) -> str:
    return f"{read} of {_tokens(finest)}, {_saved(read, finest)}"


def _sum(read: int, finest: int) -> str:
    if read > finest:
        return f"{read}, {read - finest} more than always reading {finest}"
    return f"{read} of {finest}, {_saved(read, finest)}"


def _saved(read: int, finest: int) -> str:
    percent = min(99, round(100 * (1 - read / finest)))  # no picture is read for nothing
    return f"{percent} % saved" if percent else "none saved"


def _tokens(count: int, kind: str = "visual ") -> str:
    return f"{count} {kind}token{'' if count == 1 else 's'}"
