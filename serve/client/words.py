"""What an answer cost, in the words that `m3-serve ask`, its pictures and the console share.

Knows the decision that came with a reply; knows no connection. The console has the same function in
its own language; a test holds the two together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serve.client.wire import Route


def cost_in_words(route: Route) -> str:
    """Return the visual tokens that were read, and what that saves against always the finest scale.

    A reply without predictions (a pinned scale, a fallback) does not tell the finest scale, and
    claims no saving.
    """
    read, looked = route.visual_tokens, route.second_look
    finest = 0
    if route.p_suffices and route.scale:
        pictures = len(route.scales) or (1 if looked else read // route.scale)
        finest = max(route.p_suffices) * pictures
    if looked is None:
        if not finest:
            return f"{_tokens(read)} ({route.reason})"
        return f"{_of(read, finest)} ({route.reason})"
    first, second = looked["first_visual_tokens"], looked["second_visual_tokens"]
    return (
        f"first look: {_tokens(first)}, {100 * looked['confidence']:.0f} % sure; "
        f"second look: {_tokens(second)}; together {_sum(read, finest)}"
    )


def _of(read: int, finest: int) -> str:
    return f"{read} of {_tokens(finest)}, {_saved(read, finest)}"


def _sum(read: int, finest: int) -> str:
    if read > finest:
        return f"{read}, {read - finest} more than always reading {finest}"
    return f"{read} of {finest}, {_saved(read, finest)}"


def _saved(read: int, finest: int) -> str:
    percent = min(99, round(100 * (1 - read / finest)))  # no picture is read for nothing
    return f"{percent} % saved" if percent else "none saved"


def _tokens(count: int) -> str:
    return f"{count} visual token{'' if count == 1 else 's'}"
