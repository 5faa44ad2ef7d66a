"""Ways to choose the cells that are read finely, each with a dial that trades tokens for detail.

The first is the kind that ships (`router.actions.CellRule`); the others stand beside it to be
compared. Knows relevance maps and pooled grids; knows nothing of models, questions or accuracy.
Notation: N patches, C cells of the fine level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
import torch
from _focus.asking import Cut, cut_of_focus
from numpy.typing import NDArray

from m3model import pool_visual_tokens
from m3model.focus import CELL_TOKENS, Focus, fine_positions
from router.actions import CellRule, cells_of_map, quantised
from router.actions.cells import LEVELS, Around, cell_blocks, cell_sums

Values = NDArray[np.int64]  # (C,) whole, not negative: what reading a cell finely promises
ValueOf = Callable[[NDArray[np.floating], torch.Tensor, int], Values]
COARSE, MIDDLE, FINE = 36, 144, 576
TWO_LEVELS_COARSE = 9
MOST = 96  # cells, so that no cut takes as many tokens as the finest scale


@dataclass(frozen=True)
class Setting:
    """One rule at one setting of its dial.

    Attributes:
        family: the rule; settings of one family lie on one line.
        dial: the setting, for people.
        cut: (relevance (N,), grid (N, D)) -> what is read.
    """

    family: str
    dial: float
    cut: Callable[[NDArray[np.floating], torch.Tensor], Cut]


def mean_relevance(relevance: NDArray[np.floating], grid: torch.Tensor, n_cells: int) -> Values:
    """Return the summed relevance of each cell's patches."""
    return cell_sums(quantised(relevance), n_cells)


def greatest_relevance(relevance: NDArray[np.floating], grid: torch.Tensor, n_cells: int) -> Values:
    """Return the greatest relevance of each cell's patches."""
    values: Values = cell_blocks(quantised(relevance), n_cells).max(axis=(1, 3)).reshape(-1)
    return values


def lost_detail(relevance: NDArray[np.floating], grid: torch.Tensor, n_cells: int) -> Values:
    """Return relevance times what the cell's mean forgets of its tokens: their variance's root."""
    fine = pool_visual_tokens(grid, CELL_TOKENS * n_cells)
    across = isqrt(n_cells)
    width = fine.shape[-1]
    square = fine.reshape(across, 2, across, 2, width)
    spread = square.var(dim=(1, 3), correction=0).sum(dim=-1).sqrt().reshape(-1).numpy()
    weighed = mean_relevance(relevance, grid, n_cells) * (spread / max(float(spread.max()), 1e-9))
    whole: Values = np.rint(LEVELS * weighed).astype(np.int64)
    return whole


def of_peak(values: Values, share: float, around: Around, most: int = MOST) -> tuple[int, ...]:
    """Return the cells of at least a share of the greatest value: the rule that ships."""
    return cells_of_map(values, CellRule(round(1000 * share), around, most))


def of_mass(values: Values, share: float, around: Around) -> tuple[int, ...]:
    """Return the fewest cells that hold a share of all value; ties go to the first."""
    if not values.any():
        return ()
    order = np.argsort(-values, kind="stable")
    held = np.cumsum(values[order])
    # Up to the first that brings them to the share; a cell of no value is never needed.
    count = int(np.searchsorted(held, share * held[-1])) + 1
    return grown(values, order[:count], around)


def of_budget(values: Values, count: float, around: Around) -> tuple[int, ...]:
    """Return the cells of greatest value, so many; ties go to the first."""
    return grown(values, np.argsort(-values, kind="stable")[: int(count)], around)


def grown(values: Values, cells: NDArray[np.intp], around: Around) -> tuple[int, ...]:
    """Return the cells ascending, with the neighbours that are read too, at most `MOST`.

    The rule that ships draws those: cells marked 1 are those of the greatest value.
    """
    marked = np.zeros_like(values)
    marked[cells] = 1
    return of_peak(marked, 1.0, around)


Chooser = Callable[[Values, float, Around], tuple[int, ...]]


def one_level(
    value_of: ValueOf, choose: Chooser, dial: float, around: Around
) -> Callable[..., Cut]:
    """Return the cut of coarse tokens and the chosen cells of the finest level."""

    def cut(relevance: NDArray[np.floating], grid: torch.Tensor) -> Cut:
        values = value_of(relevance, grid, FINE // CELL_TOKENS)
        return cut_of_focus(Focus(COARSE, FINE, choose(values, dial, around)))

    return cut


def two_levels(share: float) -> Callable[..., Cut]:
    """Return the cut of few coarse tokens, relevant cells of the middle level, and the finest.

    The middle level is read at half the share of the finest: a wide margin in half the detail.
    """

    def cut(relevance: NDArray[np.floating], grid: torch.Tensor) -> Cut:
        layers: Cut = ((TWO_LEVELS_COARSE, None),)
        for level, least in ((MIDDLE, share / 2), (FINE, share)):
            values = mean_relevance(relevance, grid, level // CELL_TOKENS)
            most = MOST if level == FINE else level // CELL_TOKENS
            cells = of_peak(values, least, "none", most)
            if cells:
                layers = (*layers, (level, tuple(fine_positions(level, cells))))
        return layers

    return cut


def settings() -> list[Setting]:
    """Return every rule at every setting, the shipped kind first."""
    found: list[Setting] = []

    def line(name: str, value: ValueOf, choose: Chooser, plain: Sequence[float],
             ringed: Sequence[float]) -> None:  # fmt: skip
        for around, dials in (("none", plain), ("row", plain), ("ring", ringed)):
            end = "" if around == "none" else f", {around}"
            found.extend(
                Setting(name + end, dial, one_level(value, choose, dial, around)) for dial in dials
            )

    narrow, wide = (0.15, 0.25, 0.35, 0.5, 0.7), (0.35, 0.5, 0.7, 0.9)
    line("share of the peak, mean", mean_relevance, of_peak, narrow, wide)
    line("share of the peak, max", greatest_relevance, of_peak, narrow, wide)
    line("share of the peak, lost detail", lost_detail, of_peak, narrow, wide)
    line(
        "share of the mass", mean_relevance, of_mass, (0.5, 0.65, 0.8, 0.9), (0.2, 0.35, 0.5, 0.65)
    )
    line("budget", mean_relevance, of_budget, (4, 8, 16, 24, 36), (1, 2, 4, 8))
    found.extend(
        Setting("two levels", share, two_levels(share)) for share in (0.25, 0.35, 0.5, 0.7)
    )
    return found
