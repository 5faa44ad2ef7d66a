"""One LightGBM booster: from rows and labels to trees, from scratch or onwards from raw scores.

Knows LightGBM's training call; knows nothing of actions, folds or calibration.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import lightgbm

_WIDEST = 60.0  # log odds beyond which no shift is looked for


@dataclass(frozen=True)
class Rows:
    """n rows to learn from or to watch.

    Attributes:
        X: (n, F).
        y: (n,) labels in [0, 1].
        weight: (n,) or None.
        start: (n,) log odds that the trees only have to correct; None starts from the mean label.
    """

    X: np.ndarray
    y: np.ndarray
    weight: np.ndarray | None = None
    start: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> "Rows":
        """Return some of the rows."""
        return Rows(
            self.X[rows],
            self.y[rows],
            None if self.weight is None else self.weight[rows],
            None if self.start is None else self.start[rows],
        )


def train(
    rows: Rows, parameters: Mapping[str, Any], n_trees: int, watched: Rows | None = None,
    patience: int = 0,
) -> "lightgbm.Booster":  # fmt: skip
    """Return a booster of ``n_trees``, or one that stopped when ``watched`` rows said so.

    Where rows have a start, the booster's raw score is what has to be added to it.

    Args:
        patience: trees without improvement on the watched rows before stopping.
    """
    import lightgbm

    params = dict(parameters)
    shift = 0.0 if rows.start is None else shift_to(rows.start, rows.y, rows.weight)

    def dataset(part: Rows, **more: Any) -> "lightgbm.Dataset":
        start = None if part.start is None else part.start + shift
        return lightgbm.Dataset(
            part.X, part.y, weight=part.weight, init_score=start, params=params, **more
        )

    data = dataset(rows)
    stop: dict[str, Any] = {}
    if watched is not None:
        stop["valid_sets"] = [dataset(watched, reference=data)]
        stop["callbacks"] = [lightgbm.early_stopping(patience, verbose=False)]
    booster = lightgbm.train(params, data, num_boost_round=n_trees, **stop)
    if rows.start is not None:
        _add(booster, shift)
    return booster


def shift_to(start: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Return what added to log odds (n,) makes their mean probability that of the labels."""
    wanted = float(np.average(y, weights=weight))
    low, high = -_WIDEST, _WIDEST
    while high - low > 1e-9:
        middle = 0.5 * (low + high)
        z = np.clip(start + middle, -_WIDEST, _WIDEST)
        if float(np.average(1.0 / (1.0 + np.exp(-z)), weights=weight)) < wanted:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def _add(booster: "lightgbm.Booster", shift: float) -> None:
    """Add a constant to the raw score, in the leaves of the first tree."""
    tree = booster.dump_model(num_iteration=1)["tree_info"][0]
    for leaf in range(int(tree["num_leaves"])):
        booster.set_leaf_output(0, leaf, booster.get_leaf_output(0, leaf) + shift)
