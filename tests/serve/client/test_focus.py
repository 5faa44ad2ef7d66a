"""What was read, against readings placed by hand, and against the model's own tokens."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3model import Focus as ModelFocus
from m3model.focus import fine_positions
from serve.client.focus import Focus, Look, coarse_lines, fine_lines, parse_focus
from serve.client.wire import chat_body, parse_route

SENT = {"coarse": 9, "fine": 144, "cells": [7, 8], "visual_tokens": 17}
READ = Focus(9, 144, (7, 8), 17)


def reply(**more: Any) -> dict[str, Any]:
    routing = {"scale": 9, "scales": [9], "visual_tokens": 17, "reason": "predicted"}
    return {"routing": routing | more}


def test_a_focus_arrives_and_a_reply_without_one_has_none() -> None:
    route = parse_route(reply(focus=SENT, p_suffices={"9": 0.5, "9+144@500x12": 0.75}))
    assert route.focus == READ
    assert route.p_suffices == {9: 0.5, "9+144@500x12": 0.75}
    for uniform in (reply(), reply(focus=None)):
        assert parse_route(uniform).focus is None
    assert parse_focus(None) is None


def test_the_action_is_a_key_of_the_predictions() -> None:
    p = {"9": 0.5, "9+144@500x12": 0.75}
    for action, key in (("9", 9), ("9+144@500x12", "9+144@500x12")):
        route = parse_route(reply(action=action, p_suffices=p))
        assert route.action == key
        assert route.p_suffices is not None
        assert route.action in route.p_suffices
    assert parse_route(reply()).action is None  # of an older service, or of several pictures


def test_focus_is_declined_and_allowed_in_so_many_words() -> None:
    assert chat_body(None, "q", {"focus": False})["routing"] == {"focus": False}
    assert chat_body(None, "q", {"focus": True})["routing"] == {"focus": True}
    assert "routing" not in chat_body(None, "q", {"focus": None, "group_id": None})
    assert chat_body(None, "q", {"group_id": "doc"})["routing"] == {"group_id": "doc"}


def test_the_look_that_counts_comes_last() -> None:
    second: dict[str, Any] = {"from": 9, "confidence": 0.5}
    assert parse_route(reply()).looks == (Look(9),)
    assert parse_route(reply(focus=SENT)).looks == (Look(9, READ),)
    again = parse_route(reply(scale=576, scales=[576], second_look=second | {"focus": SENT}))
    assert again.looks == (Look(9, READ), Look(576))
    finer = parse_route(reply(scale=9, focus=SENT, second_look=second))
    assert finer.looks == (Look(9), Look(9, READ))
    for nothing in (reply(scale=0, scales=[]), reply(scales=[9, 9])):
        assert parse_route(nothing).looks == ()


def test_the_lines_of_a_whole_picture_lie_between_its_tokens() -> None:
    assert coarse_lines(Look(1)) == []
    assert set(coarse_lines(Look(4))) == {((0.5, 0.0), (0.5, 1.0)), ((0.0, 0.5), (1.0, 0.5))}
    assert len(coarse_lines(Look(36))) == 10


def test_the_lines_of_a_cell_are_around_its_four_tokens() -> None:
    """Level 16 has four cells; the second is the upper right quarter."""
    look = Look(1, Focus(1, 16, (1,), 5))
    assert set(fine_lines(look)) == {
        ((0.5, 0.0), (0.5, 0.5)), ((0.75, 0.0), (0.75, 0.5)), ((1.0, 0.0), (1.0, 0.5)),
        ((0.5, 0.0), (1.0, 0.0)), ((0.5, 0.25), (1.0, 0.25)), ((0.5, 0.5), (1.0, 0.5)),
    }  # fmt: skip
    beside = Look(1, Focus(1, 16, (0, 1), 9))
    assert len(fine_lines(beside)) == 11  # the line between the two is drawn once
    assert fine_lines(Look(9)) == []


@pytest.mark.parametrize("fine", [16, 144, 576])
@given(data=st.data())
def test_the_fine_tokens_lie_where_the_model_takes_them_from(fine: int, data: Any) -> None:
    n_cells = fine // 4
    cells = tuple(sorted(data.draw(st.sets(st.integers(0, n_cells - 1), min_size=1, max_size=9))))
    tokens = ModelFocus(4, fine, cells).visual_tokens
    focus = Focus(4, fine, cells, tokens)
    side = 2 * focus.across
    left_edges = {
        (round(x * side), round(y * side))
        for (x, y), (_, to_y) in fine_lines(Look(4, focus))
        if to_y > y
    }
    # Every fine token of the model has a line above or at its left: none lies elsewhere.
    rows = {divmod(place, side) for place in fine_positions(fine, cells)}
    assert tokens == 4 + len(rows)
    assert {(column, row) for row, column in rows if row % 2 == 0} <= left_edges
    assert {(x - 1, y) for x, y in left_edges} | left_edges >= {(c, r - r % 2) for r, c in rows}
    assert all((y, x) in rows or (y, x - 1) in rows for x, y in left_edges)
