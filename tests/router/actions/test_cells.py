"""Which cells a map asks for, against the rule said cell by cell."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.actions import CellRule, cells_of_map, quantised
from router.actions.cells import cell_blocks, cell_sums, with_neighbours

maps = st.lists(st.integers(0, 8), min_size=36, max_size=36).map(np.array)
rules = st.builds(
    CellRule, st.integers(1, 1000), st.sampled_from(["none", "row", "ring"]), st.integers(1, 40)
)


def by_hand(sums: list[int], rule: CellRule) -> tuple[int, ...]:
    """The cells of the share, then their neighbours; the most relevant first, then by index."""
    across, peak = 6, max(sums)
    if peak == 0:
        return ()
    inner = [c for c, found in enumerate(sums) if found * 1000 >= rule.share * peak]
    ring = [
        c
        for c in range(len(sums))
        if c not in inner
        and any(
            abs(c // across - i // across) <= (rule.around == "ring")
            and abs(c % across - i % across) <= 1
            for i in inner
        )
    ]
    wanted = [
        *sorted(inner, key=lambda c: (-sums[c], c)),
        *(sorted(ring, key=lambda c: (-sums[c], c)) if rule.around != "none" else ()),
    ]
    return tuple(sorted(wanted[: rule.most]))


@settings(deadline=None)
@given(maps, rules)
def test_cells_are_those_of_the_share_then_their_ring(sums: np.ndarray, rule: CellRule) -> None:
    found = cells_of_map(sums, rule)
    assert found == by_hand(sums.tolist(), rule)
    assert len(found) <= rule.most
    assert sums.max() == 0 or int(sums.argmax()) in found


def test_cells_worked_by_hand() -> None:
    sums = np.zeros(36, dtype=np.int64)
    sums[[7, 28]] = 10, 5
    assert cells_of_map(sums, CellRule(500, "none", 40)) == (7, 28)
    assert cells_of_map(sums, CellRule(501, "none", 40)) == (7,)
    assert cells_of_map(sums, CellRule(1000, "ring", 40)) == (0, 1, 2, 6, 7, 8, 12, 13, 14)
    assert cells_of_map(sums, CellRule(1000, "row", 40)) == (6, 7, 8)
    assert cells_of_map(sums, CellRule(1000, "ring", 3)) == (
        0,
        1,
        7,
    )  # by index: all are 0
    assert cells_of_map(np.zeros(36, dtype=np.int64), CellRule(1, "ring", 9)) == ()


def test_relevance_is_quantised_to_the_nearest_of_255_steps() -> None:
    assert quantised(np.array([0.0, 1.0, 0.5, 0.4999 / 255])).tolist() == [0, 255, 128, 0]
    assert quantised(np.full(4, 0.5 / 255, dtype=np.float64)).tolist() == [1, 1, 1, 1]
    for wrong in (np.zeros(3), np.zeros((2, 2)), np.zeros(0), np.full(4, np.nan), np.full(4, 1.1)):
        with pytest.raises(ValueError, match="relevance"):
            quantised(wrong)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_maps_a_step_apart_or_less_ask_for_the_same_cells(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = rng.integers(0, 256, 144)
    shaken = np.clip(steps / 255 + rng.uniform(-0.0019, 0.0019, 144), 0.0, 1.0)
    rule = CellRule(500, "ring", 12)
    one, other = (cells_of_map(cell_sums(quantised(m), 36), rule) for m in (steps / 255, shaken))
    assert one == other  # bf16 or float32, batch or alone: the same bits


def test_cells_sum_their_patches() -> None:
    grid = np.arange(16).reshape(4, 4)
    assert cell_sums(grid.reshape(-1), 4).tolist() == [10, 18, 42, 50]
    assert cell_blocks(grid.reshape(-1), 4)[0, :, 1].tolist() == [[2, 3], [6, 7]]
    for wrong in (9, 3, 0, 64):
        with pytest.raises(ValueError, match="do not divide"):
            cell_sums(grid.reshape(-1), wrong)


def test_a_corner_has_three_neighbours_one_of_them_in_its_row() -> None:
    corner = np.zeros(16, bool)
    corner[0] = True
    assert np.flatnonzero(with_neighbours(corner, "ring")).tolist() == [0, 1, 4, 5]
    assert np.flatnonzero(with_neighbours(corner, "row")).tolist() == [0, 1]


@pytest.mark.parametrize(
    "wrong", [(0, "none", 3), (1001, "row", 3), (500, "ring", 0), (500, "star", 3)]
)
def test_a_rule_is_checked(wrong: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="a rule needs"):
        CellRule(*wrong)
