"""Cuts to learn from: coarse pictures with fine cells, as widely as a router may ask for them.

Which cells a router will read finely depends on its rule, its price and its mistakes, so training
draws all of that at random: levels, which questions the cells serve, how they follow from the
relevance map, rings around them, cells that serve nothing. Knows arrays and a random generator;
does not know models.
Notation: Q questions about a picture, N patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from m3model.focus import CELL_SIDE, CELL_TOKENS, Focus
from router.actions.cells import cell_blocks, with_neighbours

# How often a pair of levels is drawn: (how many levels the fine one lies below the finest, how many
# the coarse one lies below the fine). Of five scales the first is 36 + 576, the last 1 + 144.
SHARES = {
    (0, 2): 0.32, (0, 3): 0.24, (0, 1): 0.08, (0, 4): 0.08,
    (1, 2): 0.14, (1, 1): 0.10, (1, 3): 0.04,
}  # fmt: skip
MOST_CELLS = (6, 12, 24, 36, 48, 64)
CUT_STREAM = 13  # keeps the randomness of cuts apart from everything else that is seeded
OTHER_QUESTIONS = 0.25  # weight of questions that the cells were not drawn for


@dataclass(frozen=True)
class Cut:
    """How one picture is read, and how much each of its questions counts: (Q,) weights."""

    focus: Focus
    weights: NDArray[np.float32]


def level_shares(scales: Sequence[int]) -> dict[tuple[int, int], float]:
    """Return how often each (coarse, fine) pair of a model's ascending scales is drawn.

    Raises:
        ValueError: no scale is coarser than another one that has whole cells.
    """
    finest_first = list(scales)[::-1]
    found = {
        (coarse, fine): SHARES[below, steps]
        for below, fine in enumerate(finest_first)
        for steps, coarse in reversed(list(enumerate(finest_first[below + 1 :], start=1)))
        if (below, steps) in SHARES and isqrt(fine) % CELL_SIDE == 0
    }
    if not found:
        raise ValueError(
            f"scales {', '.join(map(str, scales))} leave no room for a cut: it needs a coarse one "
            "and a finer one with an even number of tokens a side"
        )
    total = sum(found.values())
    return {levels: share / total for levels, share in found.items()}


def draw_cut(
    relevance: NDArray[np.floating],
    scales: Sequence[int],
    rng: np.random.Generator,
    truth: NDArray[np.bool_] | None = None,
) -> Cut:
    """Return a random cut of one picture.

    Args:
        relevance: (Q, N) the map of each of its questions, in [0, 1].
        scales: of the model, ascending.
        truth: (Q, N) the patches each question is about, where they are known.

    Raises:
        ValueError: as `level_shares`.
    """
    shares = level_shares(scales)
    coarse, fine = list(shares)[rng.choice(len(shares), p=list(shares.values()))]
    n_cells, count = fine // CELL_TOKENS, len(relevance)
    served = rng.choice(count, min(count, int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))), False)
    told = rng.random() < 0.15
    maps = truth if told and truth is not None else relevance
    pool = np.mean if rng.random() < 0.5 else np.max
    blocks = [cell_blocks(np.asarray(maps[q], np.float64), n_cells) for q in served]
    values = np.stack([pool(each, axis=(1, 3)).reshape(-1) for each in blocks])
    values /= np.maximum(values.max(axis=1, keepdims=True), 1e-6)
    if rng.random() < 0.6:
        each = values >= rng.uniform(0.15, 0.6)
    else:
        each = np.stack([_share(row, rng.uniform(0.4, 0.9)) for row in values])
    chosen: NDArray[np.bool_] = np.logical_or.reduce(each, axis=0)
    best = values.max(axis=0)
    if rng.random() < 0.35:
        chosen = with_neighbours(chosen, "ring")
    if rng.random() < 0.25:
        chosen = chosen.copy()
        chosen[rng.choice(n_cells, min(n_cells, int(rng.integers(1, 9))), False)] = True
    most = int(rng.choice(MOST_CELLS))
    order = np.argsort(-best - 0.01 * rng.random(n_cells), kind="stable")
    kept = sorted(int(cell) for cell in [c for c in order if chosen[c]][:most])
    weights = np.full(count, OTHER_QUESTIONS, np.float32)
    weights[served] = 1.0
    return Cut(Focus(coarse, fine, tuple(kept)), weights)


def _share(values: NDArray[np.float64], share: float) -> NDArray[np.bool_]:
    """Return the greatest values that make up this share of the sum."""
    order = np.argsort(-values, kind="stable")
    total = np.cumsum(values[order])
    n = int(np.searchsorted(total, share * total[-1])) + 1
    chosen = np.zeros(len(values), bool)
    chosen[order[:n]] = True
    return chosen
