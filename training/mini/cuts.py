"""Cuts to learn from: coarse pictures with fine cells, as widely as a router may ask for them.

Which cells a router will read finely depends on its rule, its price and its mistakes, so training
draws all of that at random: levels, which questions the cells serve, how they follow from the
relevance map, rings around them, cells that serve nothing. Knows arrays and a random generator;
does not know models.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from m3model.focus import CELL_TOKENS, Focus

# (coarse, fine) and how often it is drawn.
LEVELS = (
    ((1, 576), 0.08), ((9, 576), 0.24), ((36, 576), 0.32), ((144, 576), 0.08),
    ((1, 144), 0.04), ((9, 144), 0.14), ((36, 144), 0.10),
)  # fmt: skip
MOST_CELLS = (6, 12, 24, 36, 48, 64)
OTHER_QUESTIONS = 0.25  # weight of questions that the cells were not drawn for


@dataclass(frozen=True)
class Cut:
    """How one picture is read, and how much each of its questions counts: (Q,) weights."""

    focus: Focus
    weights: NDArray[np.float32]


def cell_means(relevance: NDArray[np.floating], n_cells: int) -> NDArray[np.float64]:
    """The mean relevance (n_cells,) of the patches (N,) in every cell."""
    side, across = isqrt(len(relevance)), isqrt(n_cells)
    step = side // across
    return relevance.reshape(across, step, across, step).mean(axis=(1, 3)).reshape(-1)


def cell_peaks(relevance: NDArray[np.floating], n_cells: int) -> NDArray[np.float64]:
    """The greatest relevance (n_cells,) of the patches (N,) in every cell."""
    side, across = isqrt(len(relevance)), isqrt(n_cells)
    step = side // across
    return relevance.reshape(across, step, across, step).max(axis=(1, 3)).reshape(-1)


def ring(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The cells (n,) with their eight neighbours."""
    across = isqrt(len(cells))
    padded = np.pad(cells.reshape(across, across), 1)
    grown = np.zeros((across, across), bool)
    for row in range(3):
        for column in range(3):
            grown |= padded[row : row + across, column : column + across]
    return grown.reshape(-1)


def draw_cut(
    relevance: NDArray[np.floating], truth: NDArray[np.bool_], rng: np.random.Generator
) -> Cut:
    """A random cut of one picture.

    Args:
        relevance: (Q, N) the readout's map for each of its questions, in [0, 1].
        truth: (Q, N) the patches each question is about.
    """
    coarse, fine = LEVELS[rng.choice(len(LEVELS), p=[p for _, p in LEVELS])][0]
    n_cells, count = fine // CELL_TOKENS, len(relevance)
    served = rng.choice(count, min(count, int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))), False)
    maps = truth if rng.random() < 0.15 else relevance
    pool = cell_means if rng.random() < 0.5 else cell_peaks
    values = np.stack([pool(np.asarray(maps[q], np.float64), n_cells) for q in served])
    values /= np.maximum(values.max(axis=1, keepdims=True), 1e-6)
    if rng.random() < 0.6:
        each = values >= rng.uniform(0.15, 0.6)
    else:
        each = np.stack([_share(row, rng.uniform(0.4, 0.9)) for row in values])
    chosen: NDArray[np.bool_] = np.logical_or.reduce(each, axis=0)
    best = values.max(axis=0)
    if rng.random() < 0.35:
        chosen = ring(chosen)
    if rng.random() < 0.25:
        chosen = chosen.copy()
        chosen[rng.choice(n_cells, int(rng.integers(1, 9)), False)] = True
    most = int(rng.choice(MOST_CELLS))
    order = np.argsort(-best - 0.01 * rng.random(n_cells), kind="stable")
    kept = sorted(int(cell) for cell in [c for c in order if chosen[c]][:most])
    weights = np.full(count, OTHER_QUESTIONS, np.float32)
    weights[served] = 1.0
    return Cut(Focus(coarse, fine, tuple(kept)), weights)


def _share(values: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    order = np.argsort(-values, kind="stable")
    total = np.cumsum(values[order])
    n = int(np.searchsorted(total, share * total[-1])) + 1
    chosen = np.zeros(len(values), bool)
    chosen[order[:n]] = True
    return chosen
