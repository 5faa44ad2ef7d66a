"""Spaces of actions: what fits into one, what a plan reads, and JSON that comes back the same."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.actions import Action, ActionSpace, CellRule, Reading, default_space, uniform_space

SPACE = ActionSpace(
    (
        Action("1", 1),
        Action("9", 9, base="1"),
        Action("9+144@500x12", 9, 144, CellRule(500, "none", 12), "9"),
        Action("36", 36, base="9"),
        Action("36+576@250rx48", 36, 576, CellRule(250, "ring", 48), "36"),
        Action("144", 144, base="36"),
        Action("576", 576, base="144"),
    )
)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.floats(0, 12))
def test_a_plan_reads_the_coarse_tokens_and_four_a_cell(seed: int, sharp: float) -> None:
    relevance = np.random.default_rng(seed).random(576) ** sharp
    plan = SPACE.plan(relevance)
    assert len(plan.tokens) == len(plan.cells) == len(SPACE)
    for place, action in enumerate(SPACE.actions):
        cells, reading = plan.cells[place], SPACE.reading(place, plan)
        assert plan.tokens[place] == action.coarse + 4 * len(cells) == reading.visual_tokens
        assert plan.tokens[place] <= action.most_tokens
        assert (reading.action, reading.scale, reading.fine) == (
            action.name,
            action.coarse,
            action.fine,
        )
        assert list(cells) == sorted(set(cells))
        if action.fine is None:
            assert cells == ()
        else:
            assert all(0 <= cell < action.fine // 4 for cell in cells)
            assert plan.tokens[place] < SPACE.anchor.coarse
    assert SPACE.plan(relevance.astype(np.float32)) == plan


def test_a_spot_is_read_where_it_is() -> None:
    relevance = np.zeros((24, 24))
    relevance[4:8, 8:12] = 1.0  # a cell of level 144, and four of level 576
    plan = SPACE.plan(relevance.reshape(-1))
    assert plan.cells[2] == (1 * 6 + 2,)
    ring = {row * 12 + column for row in range(1, 5) for column in range(3, 7)}
    assert set(plan.cells[4]) == ring
    assert plan.tokens == (1, 9, 13, 36, 36 + 64, 144, 576)
    assert SPACE.reading(4, plan).words == "36 with 16 cells at 576"
    assert SPACE.reading(2, plan).words == "9 with 1 cell at 144"
    assert SPACE.reading(5).words == "144"


def test_what_a_space_knows_of_itself() -> None:
    assert SPACE.scales == (1, 9, 36, 144, 576)
    assert SPACE.uniform == (0, 1, 3, 5, 6)
    assert SPACE.bases == (-1, 0, 1, 1, 3, 3, 5)
    assert (SPACE.anchor.name, SPACE.is_uniform, len(SPACE)) == ("576", False, 7)
    assert [action.key for action in SPACE.actions][1:3] == [9, "9+144@500x12"]
    alone = uniform_space((1, 9, 36))
    assert (alone.bases, alone.uniform, alone.is_uniform) == ((-1, 0, 1), (0, 1, 2), True)
    assert alone.reading(1) == Reading.uniform(9)
    with pytest.raises(ValueError, match="needs a plan"):
        SPACE.reading(2)


def test_json_comes_back_the_same_and_the_hash_counts_every_number() -> None:
    back = ActionSpace.from_json(json.loads(json.dumps(SPACE.to_json())))
    assert back == SPACE
    assert back.hash == SPACE.hash
    focus = SPACE.actions[2]
    for other in (
        replace(focus, rule=CellRule(501, "none", 12)),
        replace(focus, rule=CellRule(500, "ring", 12)),
        replace(focus, rule=CellRule(500, "none", 11)),
        replace(focus, base="1"),
    ):
        changed = (*SPACE.actions[:2], other, *SPACE.actions[3:])
        assert ActionSpace(changed).hash != SPACE.hash


FOCUS = Action("f", 9, 144, CellRule(500, "none", 12), "9")
TOO_DEAR = replace(FOCUS, rule=CellRule(500, "none", 34))


@pytest.mark.parametrize(
    ("actions", "said"),
    [
        ((), "finest must come last"),
        ((Action("9", 9), Action("1", 1)), "must ascend"),
        ((Action("9", 9), FOCUS), "finest must come last"),
        ((Action("9", 9), Action("9", 9)), "two actions of one name"),
        ((Action("nine", 9),), "named by its scale"),
        ((Action("9", 9, base="1"),), "which is not here"),
        ((Action("9", 9), TOO_DEAR, Action("144", 144)), "as many as the anchor"),
        ((Action("9", 9), replace(FOCUS, fine=145), Action("576", 576)), "must be squares"),
        ((Action("9", 9), replace(FOCUS, coarse=0), Action("144", 144)), "must be squares"),
        ((Action("9", 9), replace(FOCUS, name="a|b"), Action("144", 144)), "needs a name"),
        ((Action("9", 9), replace(FOCUS, name=""), Action("144", 144)), "needs a name"),
        ((Action("9", 9), replace(FOCUS, name="57"), Action("144", 144)), "needs a name"),
        ((Action("9", 9), replace(FOCUS, rule=None), Action("144", 144)), "needs a rule"),
        ((Action("9", 9), replace(FOCUS, fine=9), Action("144", 144)), "needs a rule"),
        ((Action("9", 9), replace(FOCUS, fine=225), Action("225", 225)), "whole cells"),
    ],
)
def test_a_space_is_checked(actions: tuple[Action, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ActionSpace(actions)


@pytest.mark.parametrize(
    "wrong",
    [
        {"coarse": 9.0}, {"fine": 144.0}, {"name": 7}, {"base": None}, {"rule": 3},
        {"rule": {"share": 500, "around": False, "most": 12}}, {"more": 1},
        {"rule": {"share": 500, "around": "none", "most": True}},
    ],
)  # fmt: skip
def test_damaged_actions_are_refused_when_they_are_read(wrong: dict[str, object]) -> None:
    stored = SPACE.to_json()
    stored[2] |= wrong
    with pytest.raises((ValueError, TypeError)):
        ActionSpace.from_json(json.loads(json.dumps(stored)))


@pytest.mark.parametrize("side", [1, 2, 3, 4, 6, 8, 12, 16, 24, 27, 32])
def test_every_grid_has_a_default_space(side: int) -> None:
    """All the scales that divide a grid, its last two, and its finest alone."""
    scales = tuple(k * k for k in range(1, side + 1) if side % k == 0)
    relevance = np.random.default_rng(side).random(side * side)
    for some in (scales, scales[-2:], scales[-1:]):
        space = default_space(some)
        assert space.scales == some
        plan = space.plan(relevance)
        assert max(plan.tokens) == plan.tokens[-1] == some[-1]
        nothing = space.plan(np.zeros(side * side))
        assert nothing.tokens == tuple(action.coarse for action in space.actions)
