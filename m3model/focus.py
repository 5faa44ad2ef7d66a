"""A picture read coarsely all over and finely in some cells: nested tokens of two levels at once.

M3's levels nest (section 3 of arXiv 2405.17430): a coarse token is the mean of the fine tokens in
its place, and no token tells its level. So a picture may be read as all tokens of a coarse level
followed by the fine tokens of the few cells a question is about. That reading is this project's,
not the paper's: how well weights read it that were not taught to is theirs to show. It knows
tensors and the numbers of a focus; which cells a question needs is the router's to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from numbers import Integral

import torch

from m3model.pooling import pool_visual_tokens

CELL_SIDE = 2  # fine tokens along one side of a cell
CELL_TOKENS = CELL_SIDE * CELL_SIDE


@dataclass(frozen=True)
class Focus:
    """All tokens of level `coarse`, then those tokens of level `fine` that lie in `cells`.

    A cell is a square of 2x2 fine tokens, so level 576 has 144 cells and level 144 has 36; cells
    are numbered row-major from 0.

    Raises:
        ValueError: levels that are not squares, a fine level that is not finer or has no whole
            cells, or cells that are repeated, not ascending, or outside the picture.
    """

    coarse: int
    fine: int
    cells: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("coarse", "fine"):
            level = getattr(self, name)
            if not _is_count(level) or isqrt(int(level)) ** 2 != level or level < 1:
                raise ValueError(f"{name} must be a square number of tokens, got {level!r}")
            object.__setattr__(self, name, int(level))
        if self.fine <= self.coarse or isqrt(self.fine) % CELL_SIDE:
            raise ValueError(
                f"a focus from {self.coarse} to {self.fine} tokens: the fine level must be finer, "
                f"with an even number of tokens a side"
            )
        cells = tuple(self.cells)
        if not all(_is_count(cell) for cell in cells):
            raise ValueError(f"cells must be whole numbers, got {list(cells)}")
        object.__setattr__(self, "cells", tuple(int(cell) for cell in cells))
        last = self.fine // CELL_TOKENS - 1
        if any(a >= b for a, b in zip(self.cells, self.cells[1:], strict=False)) or (
            self.cells and (self.cells[0] < 0 or self.cells[-1] > last)
        ):
            raise ValueError(
                f"cells of level {self.fine} must be ascending numbers in 0..{last}, "
                f"got {list(self.cells)}"
            )

    @property
    def visual_tokens(self) -> int:
        """Tokens that reach the language model."""
        return self.coarse + CELL_TOKENS * len(self.cells)


def focus_visual_tokens(grid: torch.Tensor, focus: Focus) -> torch.Tensor:
    """The picture read as `focus`: (..., focus.visual_tokens, D), dtype kept.

    Coarse tokens row-major, then the fine tokens row-major over the whole picture (not cell by
    cell). Without cells it is `pool_visual_tokens(grid, focus.coarse)`.

    Args:
        grid: (..., S*S, D) projected features of a square grid, row-major.
        focus: levels and cells.

    Raises:
        ValueError: the grid is not square, or its side is not a multiple of a level's.
    """
    fine = pool_visual_tokens(grid, focus.fine)
    places = fine_positions(focus.fine, focus.cells)
    chosen = torch.tensor(places, dtype=torch.long, device=grid.device)
    coarse = pool_visual_tokens(grid, focus.coarse)
    return torch.cat([coarse, fine.index_select(-2, chosen)], dim=-2)


def fine_positions(fine: int, cells: Sequence[int]) -> list[int]:
    """Row-major positions among `fine` tokens of those inside `cells`, ascending."""
    side = isqrt(fine)
    across = side // CELL_SIDE
    return sorted(
        (CELL_SIDE * (cell // across) + row) * side + CELL_SIDE * (cell % across) + column
        for cell in cells
        for row in range(CELL_SIDE)
        for column in range(CELL_SIDE)
    )


def _is_count(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
