"""Grids of cells over a grid of patches: pooling maps, and the shape of what they show.

Knows positions; knows nothing of what a map means. One matrix product pools a map to all grids.
Notation: G grid side, N = G*G patches row-major, S scales with sides k = sqrt(scale), C cells of
all grids together.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np

_EPS = 1e-6


@dataclass(frozen=True)
class Cells:
    """The cells of all grids, coarsest grid first, one after the other.

    The pooling matrix of the grids coarser than the patches turns all pooling of a map into one
    product; the patch grid, where it is a scale, is appended as it is.
    """

    sides: tuple[int, ...]
    grid_side: int
    weights: np.ndarray  # (N, cells of the coarse grids)
    starts: np.ndarray  # (S,) first cell of each grid
    of_patch: np.ndarray  # (S, N) cell that holds each patch
    rows: np.ndarray  # (N,) coordinates in [0, 1)
    columns: np.ndarray

    @property
    def n_coarse(self) -> int:
        return sum(side < self.grid_side for side in self.sides)

    def pool(self, maps: np.ndarray) -> np.ndarray:
        """Return (M, C) cell means of maps (M, N)."""
        coarse: np.ndarray = maps @ self.weights
        if self.n_coarse == len(self.sides):
            return coarse
        return np.concatenate([coarse, maps], axis=1)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Return (..., S) sums over each grid's cells of values (..., C)."""
        total: np.ndarray = np.add.reduceat(values, self.starts, axis=-1)
        return total


@cache
def cells_of(scales: tuple[int, ...], grid_side: int) -> Cells:
    """Return the cells of all scales' grids.

    Raises:
        ValueError: a scale is not a square whose side divides the grid, or they do not ascend.
    """
    sides = tuple(math.isqrt(scale) for scale in scales)
    for scale, side in zip(scales, sides, strict=True):
        if side < 1 or side * side != scale or grid_side % side:
            raise ValueError(
                f"scale {scale} is not a square whose side divides the {grid_side}x{grid_side} grid"
            )
    if list(scales) != sorted(set(scales)):
        raise ValueError(f"scales must ascend, got {scales}")
    index = np.arange(grid_side)
    of_patch, blocks, starts, start = [], [], [], 0
    for side in sides:
        along = index // (grid_side // side)
        cell = (along[:, None] * side + along[None, :]).ravel()
        of_patch.append(start + cell)
        starts.append(start)
        start += side * side
        if side < grid_side:
            block = np.zeros((grid_side**2, side * side), dtype=np.float32)
            block[np.arange(grid_side**2), cell] = (side / grid_side) ** 2
            blocks.append(block)
    centre = (index + 0.5).astype(np.float32) / grid_side
    empty = np.zeros((grid_side**2, 0), dtype=np.float32)
    return Cells(
        sides=sides,
        grid_side=grid_side,
        weights=np.concatenate(blocks, axis=1) if blocks else empty,
        starts=np.asarray(starts),
        of_patch=np.stack(of_patch),
        rows=np.repeat(centre, grid_side),
        columns=np.tile(centre, grid_side),
    )


def residual_energy(x: np.ndarray, grid_side: int, side: int) -> np.ndarray:
    """Return (N,) squared distances of patches to the mean of their cell."""
    block = grid_side // side
    cells = x.reshape(side, block, side, block, -1)
    lost = cells - cells.mean(axis=(1, 3), keepdims=True)
    energy: np.ndarray = np.einsum("aibjd,aibjd->aibj", lost, lost).reshape(-1)
    return energy


def extent(mask: np.ndarray, axis: int) -> float:
    """Return the share of an axis between the first and last marked place of a 2-D mask."""
    places = np.flatnonzero(mask.sum(axis=1 - axis))
    return 0.0 if len(places) == 0 else float(places[-1] - places[0] + 1) / mask.shape[axis]


def edge(field: np.ndarray) -> float:
    """Return the boundary of a map per unit of its mass: small parts have much of it."""
    rise = np.abs(field[1:] - field[:-1]).sum() + np.abs(field[:, 1:] - field[:, :-1]).sum()
    return float(rise / (field.sum() + _EPS))


def pieces(mask: np.ndarray) -> float:
    """Return connected parts minus holes of a mask (its Euler number): no labelling needed."""
    down, across = mask[1:] & mask[:-1], mask[:, 1:] & mask[:, :-1]
    squares = down[:, 1:] & down[:, :-1]
    return float(int(mask.sum()) - int(down.sum()) - int(across.sum()) + int(squares.sum()))
