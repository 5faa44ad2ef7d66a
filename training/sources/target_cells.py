"""What the true mask of a question's target says about every grid: the ceiling's best features.

The same shapes that the router reads off predicted relevance (how pure and how full the coarse
cells around the target are), from the scene's own masks. Knows masks and cells; does not know
scenes, models or routers. Only what generated the picture has such masks: nothing here can serve.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from router.features.cells import cells_of, edge, extent, pieces

SCALES = (1, 9, 36, 144, 576)  # the grids whose cells are described
METADATA_KEY = "target_cells"
SHAPES = (
    "foreground_share", "spread_rows", "spread_columns", "extent_rows", "extent_columns", "edge",
    "pieces",
)  # fmt: skip
DECIMALS = 4


def names(scales: Sequence[int] = SCALES) -> tuple[str, ...]:
    """Return what each number of `target_cells` is, in order."""
    return (
        *(f"{what}_{scale}" for what in ("purity", "fill", "peak") for scale in scales),
        *SHAPES,
    )


def target_cells(
    target: NDArray[np.bool_], foreground: NDArray[np.bool_], scales: Sequence[int] = SCALES
) -> list[float]:
    """Return the statistics of a target among everything drawn, as `names` lists them.

    ``purity``: the target's share of the area of its cells; ``fill``: its share of what is drawn
    in them (both weighted by where the target lies); ``peak``: its share of its best cell.

    Args:
        target: (G, G) patches of what is asked about, at least one.
        foreground: (G, G) patches that hold anything drawn; the target counts as drawn.
        scales: squares whose side divides G.

    Raises:
        ValueError: masks that are no grid, an empty target, or a scale that does not divide it.
    """
    t = np.asarray(target, dtype=np.float32)
    if t.ndim != 2 or t.shape[0] != t.shape[1] or t.shape != np.shape(foreground):
        raise ValueError(f"expected two (G, G) masks, got {t.shape} and {np.shape(foreground)}")
    if not t.any():
        raise ValueError("the target mask is empty")
    cells = cells_of(tuple(scales), t.shape[0])
    drawn = np.maximum(np.asarray(foreground, dtype=np.float32), t)
    pooled, around = cells.pool(np.stack([t.ravel(), drawn.ravel()]))  # (C,) each
    mass = cells.sums(pooled)
    share = np.divide(pooled, around, out=np.zeros_like(pooled), where=around > 0)
    weight = t.ravel() / t.sum()
    y, x = float(weight @ cells.rows), float(weight @ cells.columns)
    numbers = [
        *(cells.sums(pooled * pooled) / mass),
        *(cells.sums(pooled * share) / mass),
        *np.maximum.reduceat(pooled, cells.starts),
        float(drawn.mean()),
        math.sqrt(max(float(weight @ cells.rows**2) - y * y, 0.0)),
        math.sqrt(max(float(weight @ cells.columns**2) - x * x, 0.0)),
        extent(t > 0, 0),
        extent(t > 0, 1),
        edge(t),
        pieces(t > 0),
    ]
    return [round(float(number), DECIMALS) for number in numbers]
