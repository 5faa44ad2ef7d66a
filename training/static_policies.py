"""Policies that take one scale for everything alike: the cheapest that loses little in training.

One choice per dataset is the bar that published routers often do not pass; one per dataset and
question type is stronger. Knows groups and scores; does not know prices, routers or reports.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.metrics import Array, Picks

TOLERANCE = 0.01


def datasets_of(groups: NDArray[np.str_]) -> NDArray[np.str_]:
    """Return (n,): the dataset of each "dataset/kind"."""
    return np.array([group.partition("/")[0] for group in groups.tolist()], dtype=np.str_)


def cheapest_within(
    keys: NDArray[np.str_], scores: Array, tolerance: float = TOLERANCE
) -> dict[str, int]:
    """Return for each key the coarsest scale's index whose mean is within the tolerance of the
    finest scale's; the key "" is for questions of no known key.

    Args:
        keys: (n,) of training questions.
        scores: (n, K).
    """

    def choose(part: Array) -> int:
        means = part.mean(axis=0)
        return int(np.argmax(means >= means[-1] - tolerance))

    return {"": choose(scores)} | {key: choose(scores[keys == key]) for key in np.unique(keys)}


def picks_of(choices: dict[str, int], keys: NDArray[np.str_]) -> Picks:
    """Return (n,) the index of the scale that each question gets."""
    return np.array([choices.get(key, choices[""]) for key in keys.tolist()], dtype=np.intp)
