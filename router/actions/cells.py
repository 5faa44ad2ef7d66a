"""Which cells of a picture are read finely: a pure function of the relevance map.

Relevance is quantised first and everything after that is whole numbers, with ties by index: the
service, the labelling and a replay find the same cells to the last bit. Knows arrays; knows nothing
of models, features or costs.
Notation: N patches, C cells; a cell is a square of 2x2 tokens of the fine level, row-major.
"""

from dataclasses import dataclass
from math import isqrt
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

CELL_SIDE = 2
CELL_TOKENS = CELL_SIDE * CELL_SIDE
LEVELS = 255  # of quantised relevance
PARTS = 1000  # shares are whole thousandths

Quantised = NDArray[np.int64]
Entry = TypeVar("Entry", bound=np.generic)
Around = Literal["none", "row", "ring"]


@dataclass(frozen=True)
class CellRule:
    """Cells whose mean relevance is at least a share of the greatest cell's.

    Attributes:
        share: of the greatest cell's relevance, in thousandths.
        around: what is read around such a cell: nothing, the cells left and right of it, for text
            runs in rows, or its eight neighbours.
        most: cells at most, the most relevant ones; those of the share before their neighbours.
    """

    share: int
    around: Around
    most: int

    def __post_init__(self) -> None:
        known = self.around in get_args(Around)
        if not known or not 0 < self.share <= PARTS or self.most < 1:
            raise ValueError(
                f"a rule needs a share in 1..{PARTS}, one of {get_args(Around)} around "
                f"it and at least one cell: {self}"
            )


def quantised(relevance: NDArray[np.floating]) -> Quantised:
    """Return (N,) whole numbers in 0..255 of relevance (N,) in [0, 1].

    Raises:
        ValueError: not a square map, or a value that is not finite or outside [0, 1].
    """
    r = np.asarray(relevance, dtype=np.float32)
    if r.ndim != 1 or isqrt(len(r)) ** 2 != len(r) or len(r) == 0:
        raise ValueError(f"expected the relevance (G*G,) of a grid, got {r.shape}")
    if not (r >= 0.0).all() or not (r <= 1.0).all():  # NaN fails both
        raise ValueError("relevance must lie in [0, 1]")
    whole: Quantised = np.floor(r * np.float32(LEVELS) + np.float32(0.5)).astype(np.int64)
    return whole


def cell_blocks(patches: NDArray[Entry], n_cells: int) -> NDArray[Entry]:
    """Return a map (N,) by cell: (cell rows, patches down, cell columns, patches across).

    Raises:
        ValueError: the cells do not divide the grid.
    """
    side, across = isqrt(len(patches)), isqrt(n_cells)
    if across * across != n_cells or across == 0 or side % across:
        raise ValueError(f"{n_cells} cells do not divide a grid of {side}x{side}")
    block = side // across
    return patches.reshape(across, block, across, block)


def cell_sums(relevance: Quantised, n_cells: int) -> Quantised:
    """Return (C,) the sum of the patches (N,) of each cell; raises as `cell_blocks` does."""
    sums: Quantised = cell_blocks(relevance, n_cells).sum(axis=(1, 3)).reshape(-1)
    return sums


def cells_of_map(sums: Quantised, rule: CellRule) -> tuple[int, ...]:
    """Return the cells to read finely, ascending; none where nothing is relevant at all.

    Args:
        sums: (C,) from `cell_sums`.
        rule: which of them.
    """
    greatest = int(sums.max())
    if greatest == 0:
        return ()
    chosen = sums * PARTS >= rule.share * greatest
    rank = chosen.astype(np.int64)
    if rule.around != "none":
        rank += with_neighbours(chosen, rule.around)
    kept = np.flatnonzero(rank)
    if len(kept) > rule.most:
        # Greatest rank, then relevance, then the smallest index: lexsort's last key counts first.
        order = np.lexsort((kept, -sums[kept], -rank[kept]))
        kept = np.sort(kept[order[: rule.most]])
    return tuple(kept.tolist())


def with_neighbours(cells: NDArray[np.bool_], around: Literal["row", "ring"]) -> NDArray[np.bool_]:
    """Return the cells (C,) and those left and right of each, or all eight around it."""
    across = isqrt(len(cells))
    square = cells.reshape(across, across)
    rows = square.copy()
    if around == "ring":
        rows[1:] |= square[:-1]
        rows[:-1] |= square[1:]
    grown = rows.copy()
    grown[:, 1:] |= rows[:, :-1]
    grown[:, :-1] |= rows[:, 1:]
    return grown.reshape(-1)
