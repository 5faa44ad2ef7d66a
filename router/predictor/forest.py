"""Which booster starts from which: scores of one action are corrections of another action's.

Knows indices and sums; knows nothing of boosters, features or what an action is.
Notation: A actions; the base of an action is the index of the one it starts from, -1 for none.
"""

from collections.abc import Sequence

import numpy as np


def fitting_order(bases: Sequence[int]) -> tuple[int, ...]:
    """Return all A indices, every action after its base, else in their own order.

    Raises:
        ValueError: a base that is no action, or actions that start from each other in a circle.
    """
    if not all(-1 <= base < len(bases) for base in bases):
        raise ValueError(f"bases must be indices of {len(bases)} actions or -1, got {bases}")
    order: list[int] = []
    for action in range(len(bases)):
        line: list[int] = []  # from the action down to the first base that has its place
        while action >= 0 and action not in order:
            if action in line:
                raise ValueError(f"actions start from each other in a circle: {bases}")
            line.append(action)
            action = bases[action]
        order += reversed(line)
    return tuple(order)


def summed(scores: np.ndarray, bases: Sequence[int], order: Sequence[int]) -> np.ndarray:
    """Return what scores (n, A, ...) add up to along the bases.

    Args:
        scores: what each booster says by itself.
        bases: (A,).
        order: `fitting_order` of them.
    """
    if len(scores) == 1 and scores.ndim == 2:
        # A plain loop: for one row it is several times faster than numpy.
        row = scores[0].tolist()
        for action in order:
            if bases[action] >= 0:
                row[action] += row[bases[action]]
        return np.array([row])
    sums = scores.copy()
    for action in order:
        if bases[action] >= 0:
            sums[:, action] += sums[:, bases[action]]
    return sums
