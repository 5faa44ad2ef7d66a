"""Which sessions a canary answers: as many as it should, always the same ones."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serve.arms.assignment import is_drawn, session_of
from serve.protocol import RoutingRequest

NAMES = [f"session {number}" for number in range(2000)]
Python = Callable[..., Any]


@given(st.text(min_size=1, max_size=20), st.floats(0.01, 1.0))
def test_the_share_is_kept(salt: str, share: float) -> None:
    drawn = sum(is_drawn(name, salt, share) for name in NAMES)
    sigma = math.sqrt(len(NAMES) * share * (1 - share))
    assert abs(drawn - share * len(NAMES)) <= 7 * sigma  # 3e-12 of binomial draws are further off


@given(st.text(max_size=20), st.text(max_size=20), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_who_is_drawn_is_drawn_at_a_larger_share_too(
    session: str, salt: str, one: float, other: float
) -> None:
    less, more = sorted((one, other))
    assert is_drawn(session, salt, more) >= is_drawn(session, salt, less)
    assert is_drawn(session, salt, 1.0)
    assert not is_drawn(session, salt, 0.0)


def test_another_canary_draws_others() -> None:
    both = [is_drawn(n, "one", 0.5) + is_drawn(n, "two", 0.5) for n in NAMES]
    assert 400 < both.count(2) < 600  # a quarter, not a half


def test_other_processes_draw_the_same(python: Python) -> None:
    """Also after a restart: nothing of it is of the process, as `hash` of a text would be."""
    code = (
        "import json; from serve.arms.assignment import is_drawn; "
        "print(json.dumps([is_drawn(f'session {n}', 'abc', 0.3) for n in range(200)]))"
    )
    told = [json.loads(python("-c", code).stdout) for _ in range(2)]
    assert told[0] == told[1] == [is_drawn(name, "abc", 0.3) for name in NAMES[:200]]
    # What the draw is, said another way.
    first = hashlib.sha256(b"m3-router arms 1:abc:session 0").hexdigest()[:16]
    assert told[0][0] == (int(first, 16) / 2**64 < 0.3)


def turn(role: str, text: str, *, picture: bool = False) -> dict[str, Any]:
    if not picture:
        return {"role": role, "content": text}
    return {"role": role, "content": [{"type": "image"}, {"type": "text", "text": text}]}


def test_the_turns_of_a_conversation_are_one_session() -> None:
    first = [turn("system", "Be brief."), turn("user", "What is it?", picture=True)]
    later = [*first, turn("assistant", "a bar"), turn("user", "And this?", picture=True)]
    one = session_of("t", None, first, ["p"])
    assert session_of("t", None, later, ["p", "q"]) == one
    assert session_of("t", None, [turn("user", "What is it?")], ["p"]) == one
    assert session_of("u", None, first, ["p"]) != one
    assert session_of("t", None, first, ["q"]) != one
    assert session_of("t", None, [turn("user", "Else?", picture=True)], ["p"]) != one


def test_a_group_is_one_session_whatever_is_asked() -> None:
    one = session_of("t", "doc", [turn("user", "a")], ["p"])
    assert session_of("t", "doc", [turn("user", "b", picture=True)], ["q"]) == one
    assert session_of("u", "doc", [turn("user", "a")], ["p"]) != one
    # A group cannot be made to look like a conversation, nor one tenant's like another's.
    assert session_of("t", json.dumps(["p", "a"]), [], []) != session_of(
        "t", None, [turn("user", "a")], ["p"]
    )
    assert session_of("a", "b", [], []) != session_of("a,b", "", [], [])


@pytest.mark.parametrize("name", ["d", "session 7/b", "\u66f8\u985e", "x" * 200])
def test_a_group_has_any_printable_name(name: str) -> None:
    assert RoutingRequest.model_validate({"group_id": name}).group_id == name


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", "\x00", "\ud800", 7, ["a"]])
def test_a_group_without_a_name_is_refused(name: Any) -> None:
    with pytest.raises(ValidationError, match="group_id"):
        RoutingRequest.model_validate({"group_id": name})
