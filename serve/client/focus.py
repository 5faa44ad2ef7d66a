"""What each look read of a picture: coarse tokens everywhere, fine ones in some cells, and where.

Knows the numbers of a reply and the unit square that the padded picture is; knows no pixels and no
connection.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, TypeAlias

CELL_SIDE = 2  # fine tokens along one side of a cell
CELL_TOKENS = CELL_SIDE * CELL_SIDE
Segment: TypeAlias = tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Focus:
    """All tokens of the level ``coarse``, and those tokens of the level ``fine`` within ``cells``.

    A cell is a square of 2x2 fine tokens. Cells are numbered row by row from 0 over the picture,
    padded to a square.
    """

    coarse: int
    fine: int
    cells: tuple[int, ...]
    visual_tokens: int

    @property
    def across(self) -> int:
        """Cells along each side of the picture."""
        return isqrt(self.fine) // CELL_SIDE


@dataclass(frozen=True)
class Look:
    """One reading of a picture; ``scale`` is that of the whole of it, of a focus the coarse one."""

    scale: int
    focus: Focus | None = None

    @property
    def cells(self) -> tuple[int, ...]:
        """Cells that were read finely."""
        return self.focus.cells if self.focus else ()


def parse_focus(body: Mapping[str, Any] | None) -> Focus | None:
    """Return the focus in a reply; None where the whole picture was read at one scale."""
    if body is None:
        return None
    return Focus(
        coarse=int(body["coarse"]),
        fine=int(body["fine"]),
        cells=tuple(map(int, body["cells"])),
        visual_tokens=int(body["visual_tokens"]),
    )


def coarse_lines(look: Look) -> list[Segment]:
    """Return the lines between the tokens of the whole picture; the picture is 1 x 1."""
    side = isqrt(look.scale)
    return [
        line for n in range(1, side) for at in [n / side]
        for line in (((at, 0.0), (at, 1.0)), ((0.0, at), (1.0, at)))
    ]  # fmt: skip


def fine_lines(look: Look) -> list[Segment]:
    """Return the lines around and between the fine tokens, each once."""
    if look.focus is None:
        return []
    across = look.focus.across
    return list(dict.fromkeys(_lines_of_cells(look.cells, across)))


def _lines_of_cells(cells: Iterable[int], across: int) -> Iterable[Segment]:
    side = across * CELL_SIDE
    for cell in cells:
        row, column = divmod(cell, across)
        left, right = column / across, (column + 1) / across
        top, bottom = row / across, (row + 1) / across
        for step in range(CELL_SIDE + 1):
            x, y = (column * CELL_SIDE + step) / side, (row * CELL_SIDE + step) / side
            yield (x, top), (x, bottom)
            yield (left, y), (right, y)
