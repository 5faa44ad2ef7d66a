"""The linear half of a predictor: log odds of every action as weighted sums of features.

Boosters are noisy where the best actions are nearly alike, and the greatest of many noisy numbers
is chosen too often; the mean with a ridge regression is calmer. Knows arrays; knows nothing of
boosters, actions or files.
Notation: n rows, F features, A actions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from router.predictor.matrix import Matrix, in_memory

_EPS = 1e-6
MOST_ROWS = 30_000  # that are learnt from; more would change the last digits alone
_DIGITS = 9  # significant ones that are kept: a router's file stays small


@dataclass(frozen=True, eq=False)
class LinearScores:
    """((x - mean) / scale) @ weights.T + offset.

    Attributes:
        mean, scale: (F,) of the features.
        weights: (A, F); offset: (A,).
    """

    mean: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    offset: np.ndarray

    def __post_init__(self) -> None:
        for name in ("mean", "scale", "weights", "offset"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        n_features = self.weights.shape[-1]
        shapes = (self.mean.shape, self.scale.shape, self.offset.shape)
        wanted = ((n_features,), (n_features,), self.weights.shape[:1])
        if self.weights.ndim != 2 or shapes != wanted:
            raise ValueError(f"linear scores have arrays of shapes {shapes}, wanted {wanted}")
        arrays = (self.mean, self.scale, self.weights, self.offset)
        if not all(np.isfinite(array).all() for array in arrays) or not (self.scale > 0).all():
            raise ValueError("linear scores must be finite, their scales positive")

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """Return (n, A) log odds; a row gives to the last bit what it gives within a batch."""
        standard = (X - self.mean) / self.scale
        rows = [self.weights @ row for row in standard]  # a product of all may round otherwise
        said: np.ndarray = np.stack(rows) + self.offset
        return said

    def contributions(self, X: np.ndarray) -> np.ndarray:
        """Return (n, A, F+1): what each feature adds to the log odds, and last the offset."""
        parts = ((X - self.mean) / self.scale)[:, None, :] * self.weights
        base = np.broadcast_to(self.offset[:, None], (*parts.shape[:2], 1))
        return np.concatenate([parts, base], axis=2)

    def to_json(self) -> dict[str, Any]:
        """Return the arrays as plain JSON values, to nine digits."""
        return {
            name: _rounded(getattr(self, name)) for name in ("mean", "scale", "weights", "offset")
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "LinearScores":
        """Return what `to_json` told.

        Raises:
            ValueError, KeyError, TypeError: it is damaged.
        """
        return cls(*(np.asarray(stored[n], float) for n in ("mean", "scale", "weights", "offset")))


def fit_linear(X: Matrix, Y: np.ndarray, strength: float) -> LinearScores:
    """Return ridge logistic regressions on labels in [0, 1]: each row is partly of each class.

    Args:
        X: (n, F) features; of more than `MOST_ROWS` rows, that many evenly spaced ones are taken.
        Y: (n, A) labels.
        strength: of the ridge on standardised features, in rows.
    """
    from sklearn.linear_model import LogisticRegression

    if len(X) > MOST_ROWS:
        evenly = np.arange(MOST_ROWS) * len(X) // MOST_ROWS
        X, Y = X[evenly], Y[evenly]
    X = in_memory(X)
    mean, spread = X.mean(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64)
    scale = np.where(spread > _EPS, spread, 1.0)
    both, classes = np.empty((2 * len(X), X.shape[1])), np.repeat([1, 0], len(X))
    both[: len(X)] = (X - mean) / scale
    both[len(X) :] = both[: len(X)]
    weights, offset = [], []
    for y in Y.T:
        kept = np.clip(y, _EPS, 1.0 - _EPS)
        model = LogisticRegression(C=1.0 / strength, max_iter=300)
        model.fit(both, classes, sample_weight=np.concatenate([kept, 1.0 - kept]))
        weights.append(model.coef_[0])
        offset.append(model.intercept_[0])
    found = LinearScores(mean, scale, np.stack(weights), np.array(offset))
    return LinearScores.from_json(found.to_json())  # what is saved is what predicts


def _rounded(values: np.ndarray) -> Any:
    if values.ndim == 2:
        return [_rounded(row) for row in values]
    return [float(f"{value:.{_DIGITS}g}") for value in values.tolist()]
