"""One LightGBM booster: from rows and labels to trees, from scratch or onwards from raw scores.

Features are brought into bins once; labels and starts are swapped, so that a booster per action
costs no further look at them. Rows beyond `SAMPLED` are binned block by block, by bounds from that
many of them. Knows LightGBM's calls; knows nothing of actions, folds or calibration.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from router.predictor.matrix import BLOCK, Matrix, in_memory

if TYPE_CHECKING:
    import lightgbm

# Rows that say where bins end. LightGBM needs 16 bytes a value of them for a moment: 0.3 GB of 600
# features.
SAMPLED = 30_000
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

    X: Matrix
    y: np.ndarray
    weight: np.ndarray | None = None
    start: np.ndarray | None = None


@dataclass(frozen=True)
class Binned:
    """Some rows of a matrix as LightGBM keeps them, a byte a feature, for any number of boosters.

    Attributes:
        data: the dataset.
        rows: indices of its rows in the matrix.
        weight: their weights, or None.
    """

    data: "lightgbm.Dataset"
    rows: np.ndarray
    weight: np.ndarray | None = None


@dataclass(frozen=True)
class Labelled:
    """Rows in bins, with what this booster learns of them.

    Attributes:
        on: the rows.
        y: their labels in [0, 1].
        start: their log odds so far, as in `Rows`, or None.
    """

    on: Binned
    y: np.ndarray
    start: np.ndarray | None = None


def binned(
    X: Matrix,
    rows: np.ndarray,
    parameters: Mapping[str, Any],
    weight: np.ndarray | None = None,
    like: Binned | None = None,
) -> Binned:
    """Return rows of a matrix in bins of their own, or in those of ``like``.

    Args:
        X: (n, F).
        rows: ascending indices.
        weight: (n,) or None.
    """
    import lightgbm

    params = dict(parameters)
    chosen = None if weight is None else weight[rows]

    def dataset(part: Any, labels: int, **more: Any) -> "lightgbm.Dataset":
        return lightgbm.Dataset(part, np.zeros(labels), params=params, **more)

    part = X if len(rows) == len(X) else X[rows]
    if len(rows) <= SAMPLED:
        reference = None if like is None else like.data
        data = dataset(in_memory(part), len(rows), weight=chosen, reference=reference)
        return Binned(data.construct(), rows, chosen)
    reference = dataset(sample(X, rows), SAMPLED).construct() if like is None else like.data
    data = dataset(_pieces(part), len(rows), weight=chosen, reference=reference)
    return Binned(data.construct(), rows, chosen)


def sample(X: Matrix, rows: np.ndarray) -> np.ndarray:
    """Return those of the rows (ascending indices) whose bounds of bins serve for all of them."""
    if len(rows) <= SAMPLED:
        return in_memory(X[rows])
    return in_memory(X[rows[np.arange(SAMPLED) * len(rows) // SAMPLED]])


def train(
    rows: Rows, parameters: Mapping[str, Any], n_trees: int, watched: Rows | None = None,
    patience: int = 0,
) -> "lightgbm.Booster":  # fmt: skip
    """Return a booster of ``n_trees``, or one that stopped when ``watched`` rows said so.

    Where rows have a start, the booster's raw score is what has to be added to it.

    Args:
        patience: trees without improvement on the watched rows before stopping.
    """
    on = Labelled(_all_of(rows, parameters), rows.y, rows.start)
    if watched is None:
        return boosted(on, parameters, n_trees)
    others = _all_of(watched, parameters, like=on.on)
    return boosted(on, parameters, n_trees, Labelled(others, watched.y, watched.start), patience)


def _all_of(rows: Rows, parameters: Mapping[str, Any], like: Binned | None = None) -> Binned:
    return binned(rows.X, np.arange(len(rows.y)), parameters, rows.weight, like)


def boosted(
    part: Labelled, parameters: Mapping[str, Any], n_trees: int, watched: Labelled | None = None,
    patience: int = 0,
) -> "lightgbm.Booster":  # fmt: skip
    """Return `train`'s booster for rows that are in bins already, the watched ones in the same."""
    import lightgbm

    params = dict(parameters)
    started = part.start is not None
    shift = 0.0 if part.start is None else shift_to(part.start, part.y, part.on.weight)
    stop: dict[str, Any] = {}
    set_labels(part, shift)
    if watched is not None:
        set_labels(watched, shift)
        stop["valid_sets"] = [watched.on.data]
        stop["callbacks"] = [lightgbm.early_stopping(patience, verbose=False)]
    booster = lightgbm.train(params, part.on.data, num_boost_round=n_trees, **stop)
    if started:
        add(booster, shift)
    return booster


class Alone:
    """Boosting on one machine, which has all rows."""

    def parameters(self, own: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the parameters to fit with."""
        return own

    def varies(self, y: np.ndarray) -> bool:
        """Return whether labels differ."""
        return float(np.ptp(y)) > 0.0

    def boosted(
        self, part: Labelled, parameters: Mapping[str, Any], n_trees: int,
        watched: Labelled | None = None, patience: int = 0,
    ) -> "lightgbm.Booster":  # fmt: skip
        """Return `boosted`."""
        return boosted(part, parameters, n_trees, watched, patience)


def set_labels(part: Labelled, shift: float) -> None:
    """Set labels and starts, or that there are none, of rows that other boosters may have used."""
    part.on.data.set_label(part.y)
    part.on.data.set_field("init_score", None if part.start is None else part.start + shift)


def _pieces(X: Matrix) -> Any:
    """Return the matrix as LightGBM reads it, block by block."""
    import lightgbm

    class Pieces(lightgbm.Sequence):  # type: ignore[misc,unused-ignore]
        batch_size = BLOCK

        def __len__(self) -> int:
            return len(X)

        def __getitem__(self, key: Any) -> np.ndarray:
            return np.ascontiguousarray(X[key], dtype=np.float32)

    return Pieces()


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


def add(booster: "lightgbm.Booster", shift: float) -> None:
    """Add a constant to the raw score, in the leaves of the first tree."""
    tree = booster.dump_model(num_iteration=1)["tree_info"][0]
    for leaf in range(int(tree["num_leaves"])):
        booster.set_leaf_output(0, leaf, booster.get_leaf_output(0, leaf) + shift)
