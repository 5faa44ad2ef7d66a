"""`ComplexityPredictor`: features of a question about a picture to P(action suffices), per action.

Knows feature matrices and labels; knows nothing of what a column means, of costs or of pictures.
Notation: n rows, F features, K actions (the scales ascending, or scales and foci), Y[i, k] in
[0, 1] whether (or how probably) action k suffices for row i. Monotonicity is never forced.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import NotFittedError

from router.errors import FeatureMismatch
from router.predictor.boosting import Alone, Binned, Labelled, binned
from router.predictor.calibration import Calibration, constant, fit_calibration
from router.predictor.forest import fitting_order, summed
from router.predictor.linear import LinearScores
from router.predictor.matrix import (
    Matrix,
    blocks,
    check_finite,
    checked,
    extent,
    in_memory,
)
from router.predictor.trees import table_of

if TYPE_CHECKING:
    import lightgbm


class ComplexityPredictor(BaseEstimator):  # type: ignore[misc,unused-ignore]  # untyped
    """One LightGBM booster per action, each followed by a calibration.

    Boosters are fitted on folds first, rows of one group (picture) always together: that tells how
    many trees serve unseen pictures, and gives every row a score by a booster that has not seen
    its picture, on which the calibration is fitted. Then each action is fitted on all rows.
    Fitting is deterministic: the same rows and parameters give the same text, byte for byte.

    Args:
        n_estimators: most trees per action.
        learning_rate, num_leaves, min_child_samples, feature_fraction, reg_lambda, max_bin: as
            LightGBM names them.
        early_stopping_rounds: trees without improvement on a fold's own groups before stopping.
        n_folds: folds over groups; fewer than 2 means no early stopping and no calibration.
            Without calibration only the first fold is needed and fitted.
        calibration: "platt" keeps the order of the scores; "isotonic" fits any monotone shape but
            makes ties; "none".
        chained: each scale's booster corrects the log odds of the next coarser scale, so that what
            is alike in neighbours is learnt once; otherwise actions are fitted independently.
        bases: (K,) in place of ``chained``: for each action the index of the one whose log odds
            its booster corrects, which may come later; -1 for none.
        seed: of the folds and of LightGBM.
        num_threads: threads of fitting.

    Attributes:
        model_texts_: K LightGBM texts, what is saved.
        boosters_: K raw ``lightgbm.Booster``, read back from the texts.
        table_: their trees as arrays, which predict; None where a `TreeTable` cannot hold them,
            and the boosters predict themselves.
        linear_: log odds that are averaged with those of the boosters; None unless it was set.
        calibrations_: K `Calibration`.
        probe_row_: (F,) float32 row within the range of the data that is nobody's own; with its
            probabilities it shows later that a saved predictor still says the same.
        bases_: (K,) the bases that ``chained`` or ``bases`` amount to.
        n_features_in_, n_scales_: F and K.
    """

    linear_: LinearScores | None = None

    def __init__(
        self,
        *,
        n_estimators: int = 600,
        learning_rate: float = 0.05,
        num_leaves: int = 15,
        min_child_samples: int = 40,
        feature_fraction: float = 0.5,
        reg_lambda: float = 5.0,
        max_bin: int = 63,
        early_stopping_rounds: int = 40,
        n_folds: int = 4,
        calibration: Literal["none", "platt", "isotonic"] = "platt",
        chained: bool = False,
        bases: Sequence[int] | None = None,
        seed: int = 0,
        num_threads: int = 1,
    ) -> None:
        self.n_estimators = n_estimators
        self.learning_rate = learning_rate
        self.num_leaves = num_leaves
        self.min_child_samples = min_child_samples
        self.feature_fraction = feature_fraction
        self.reg_lambda = reg_lambda
        self.max_bin = max_bin
        self.early_stopping_rounds = early_stopping_rounds
        self.n_folds = n_folds
        self.calibration = calibration
        self.chained = chained
        self.bases = bases
        self.seed = seed
        self.num_threads = num_threads

    def fit(
        self,
        X: Matrix,
        Y: np.ndarray,
        sample_weight: np.ndarray | None = None,
        groups: np.ndarray | Sequence[str] | None = None,
        progress: Callable[[int, int, str], None] = lambda done, total, now: None,
    ) -> "ComplexityPredictor":
        """Return self, fitted.

        Args:
            X: (n, F) finite features, an array or what is read block by block (`Matrix`).
            Y: (n, K) labels in [0, 1], bool or soft, a column for each action.
            sample_weight: (n,) not negative.
            groups: (n,) picture of each row; None takes every row as its own.
            progress: called with (boosters done, K, words) as each action's booster begins.

        Raises:
            ValueError: shapes that do not fit, values that are not finite or not in [0, 1], or
                bases that lead nowhere.
        """
        X = checked(X)
        Y = np.asarray(Y, dtype=np.float64)
        if Y.ndim != 2 or len(Y) != len(X) or Y.shape[1] == 0:
            raise ValueError(f"expected ({len(X)}, K) labels, got {Y.shape}")
        if not np.isfinite(Y).all() or Y.min() < 0.0 or Y.max() > 1.0:
            raise ValueError("labels must lie in [0, 1]")
        weight = None if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        if weight is not None and (weight.shape != (len(X),) or not (weight >= 0).all()):
            raise ValueError(f"expected ({len(X)},) weights that are not negative")
        self._bases(Y.shape[1])
        low, high = extent(X)
        bins = Bins.of(X, self.folds(len(X), groups), self.parameters(), weight)
        texts, calibrations = self.grown(bins, Y, Alone(), progress)
        self._finish(texts, calibrations, low, high)
        return self

    def grown(
        self, bins: "Bins", Y: np.ndarray, growing: Alone,
        progress: Callable[[int, int, str], None] = lambda done, total, now: None,
    ) -> tuple[list[str], list[Calibration]]:  # fmt: skip
        """Return the K boosters' texts, and their calibrations, of rows in bins.

        Args:
            Y: (n, K) labels.
            growing: where trees grow; these may be a part of the rows.
        """
        n, n_actions = Y.shape
        bases = self._bases(n_actions)
        order = fitting_order(bases)
        said = {-1: np.zeros((len(bins.folds) + 1, n))}
        texts, calibrations = [""] * n_actions, [Calibration("none")] * n_actions
        for done, k in enumerate(order):
            progress(done, n_actions, f"booster {done + 1} of {n_actions}")
            texts[k], calibrations[k], said[k] = self._fit_action(
                growing, bins, Y[:, k], said[bases[k]]
            )
            still = {bases[later] for later in order[done + 1 :]}
            said = {base: sums for base, sums in said.items() if base in still}
        return texts, calibrations

    def take_over(
        self, texts: Sequence[str], constants: Sequence[float | None], low: np.ndarray,
        high: np.ndarray,
    ) -> None:  # fmt: skip
        """Be fitted, without a calibration, by what was fitted elsewhere.

        Args:
            texts: K boosters.
            constants: (K,) the label of actions whose labels do not vary, else None.
            low, high: (F,) least and greatest features.
        """
        found = [Calibration("none") if c is None else constant(c) for c in constants]
        self._finish(texts, found, low, high)

    def _finish(
        self, texts: Sequence[str], calibrations: list[Calibration], low: np.ndarray,
        high: np.ndarray,
    ) -> None:  # fmt: skip
        self.calibrations_ = calibrations
        self.n_features_in_ = len(low)
        self.adopt(texts)
        levels = np.random.default_rng(0).random(len(low))
        low, high = low.astype(np.float64), high.astype(np.float64)
        self.probe_row_ = np.asarray(low + levels * (high - low), dtype=np.float32)

    def predict_proba(self, X: Matrix) -> np.ndarray:
        """Return (n, K) calibrated P(action suffices) of features (n, F).

        Raises:
            FeatureMismatch: another number of features than fitted.
            ValueError: a feature is NaN or infinite.
        """
        raw = self.raw_scores(X)
        columns = [calibration(raw[:, k]) for k, calibration in enumerate(self.calibrations_)]
        return np.stack(columns, axis=1)

    def raw_scores(self, X: Matrix) -> np.ndarray:
        """Return (n, K) log odds before calibration; raises as `predict_proba` does."""
        X = self._checked(X)
        said, row = [np.zeros((0, self.n_scales_))], 0
        for block in blocks(X):
            check_finite(block, row)
            said.append(self.unchecked_scores(block))
            row += len(block)
        return said[1] if len(said) == 2 else np.concatenate(said)

    def unchecked_scores(self, X: np.ndarray) -> np.ndarray:
        """Return `raw_scores` of rows that are known to be float32, finite and of the right width.

        Rows are independent: one row gives to the last bit what it gives within a batch.
        """
        if self.table_ is not None:
            said = self._summed(self.table_(X))
        else:
            columns = [b.predict(X, raw_score=True, num_threads=1) for b in self.boosters_]
            each = [np.asarray(column, dtype=np.float64) for column in columns]
            said = self._summed(np.stack(each, axis=1))
        return said if self.linear_ is None else 0.5 * (said + self.linear_(X))

    def contributions(self, X: np.ndarray) -> np.ndarray:
        """Return (n, K, F+1) TreeSHAP contributions to the raw scores; the last is the base.

        Their sum over the last axis is the raw score. Slow (milliseconds a row): for explanations.
        Raises as `predict_proba` does.
        """
        X = in_memory(self._checked(X))
        check_finite(X)
        parts = [b.predict(X, pred_contrib=True, num_threads=1) for b in self.boosters_]
        said = self._summed(np.stack([np.asarray(p, dtype=np.float64) for p in parts], axis=1))
        return said if self.linear_ is None else 0.5 * (said + self.linear_.contributions(X))

    def _summed(self, scores: np.ndarray) -> np.ndarray:
        """Return (n, K, ...) log odds of what the boosters say."""
        if self.chained:
            return scores.cumsum(axis=1)
        return scores if self.bases is None else summed(scores, self.bases_, self._order)

    def _bases(self, n_actions: int) -> tuple[int, ...]:
        """Return the base of each action."""
        if self.bases is None:
            return tuple(range(-1, n_actions - 1)) if self.chained else (-1,) * n_actions
        if self.chained:
            raise ValueError("bases say what chained says: give one of them")
        if len(self.bases) != n_actions:
            raise ValueError(f"{len(self.bases)} bases for {n_actions} actions")
        return tuple(self.bases)

    def adopt(self, texts: Sequence[str]) -> None:
        """Take over K boosters from LightGBM texts, which must be known to be whole.

        Raises:
            ValueError: bases that do not fit them.
        """
        self.bases_ = self._bases(len(texts))
        self._order = fitting_order(self.bases_)
        self.model_texts_ = list(texts)
        self.boosters_ = [booster_of(text) for text in self.model_texts_]
        self.table_ = table_of(self.model_texts_)
        self.n_scales_ = len(self.model_texts_)

    def score(self, X: np.ndarray, Y: np.ndarray, sample_weight: np.ndarray | None = None) -> float:
        """Return minus the mean log loss over rows and actions, so that greater is better."""
        p = np.clip(self.predict_proba(X), 1e-6, 1.0 - 1e-6)
        y = np.asarray(Y, dtype=np.float64)
        rows = (y * np.log(p) + (1.0 - y) * np.log(1.0 - p)).mean(axis=1)
        return float(np.average(rows, weights=sample_weight))

    def _checked(self, X: Matrix) -> Matrix:
        if not hasattr(self, "boosters_"):
            raise NotFittedError("this ComplexityPredictor is not fitted yet; call fit first")
        X = checked(X)
        if X.shape[1] != self.n_features_in_:
            raise FeatureMismatch(
                f"got {X.shape[1]} features, the predictor was fitted on {self.n_features_in_}"
            )
        return X

    def folds(self, n: int, groups: np.ndarray | Sequence[str] | None) -> list[np.ndarray]:
        """Return the rows of each fold that is fitted: one is enough without a calibration, since
        it tells how many trees serve."""
        every = self._folds(n, groups)
        return every[:1] if self.calibration == "none" else every

    def _folds(self, n: int, groups: np.ndarray | Sequence[str] | None) -> list[np.ndarray]:
        """Return row indices of each fold, no group in two; none where there are too few groups."""
        keys = np.arange(n) if groups is None else np.asarray(groups)
        if keys.shape != (n,):
            raise ValueError(f"expected ({n},) groups, got {keys.shape}")
        _, members = np.unique(keys, return_inverse=True)
        n_groups = int(members.max()) + 1
        if self.n_folds < 2 or n_groups < 2 * self.n_folds:
            return []
        fold_of_group = np.random.default_rng(self.seed).permutation(n_groups) % self.n_folds
        return [np.flatnonzero(fold_of_group[members] == fold) for fold in range(self.n_folds)]

    def _fit_action(
        self, growing: Alone, bins: "Bins", y: np.ndarray, before: np.ndarray
    ) -> tuple[str, Calibration, np.ndarray]:
        """Return the text of one booster, fitted on all rows, its calibration, and its sums.

        ``before`` (folds + 1, n) holds what the boosters that it starts from add up to: those of
        each fold, which have not seen its rows, and those fitted on all rows. The sums are the same
        with this booster added.
        """
        said, parameters = before.copy(), growing.parameters(self.parameters())
        if not growing.varies(y):
            # Nothing to learn. One tree that cannot split keeps the folder complete, and says
            # nothing to boosters that start here; the calibration holds the constant itself.
            flat = y if self.bases is None and not self.chained else np.full(len(y), 0.5)
            text = growing.boosted(Labelled(bins.whole, flat), parameters, 1).model_to_string()
            return text, constant(float(y[0])), said
        tried = []
        for fold, (learnt, held) in enumerate(bins.folds):
            part, watched = (_labelled(on, y, before[fold]) for on in (learnt, held))
            if growing.varies(part.y):
                most, patience = self.n_estimators, self.early_stopping_rounds
                made = growing.boosted(part, parameters, most, watched, patience)
                tried.append((fold, held.rows, made))
        n_trees = self.n_estimators
        if tried:
            n_trees = max(1, round(float(np.mean([made.best_iteration for *_, made in tried]))))
        whole = growing.boosted(_labelled(bins.whole, y, before[-1]), parameters, n_trees)
        told, start = [*((fold, made) for fold, _, made in tried), (-1, whole)], 0
        for block in blocks(bins.X):
            for fold, made in told:
                said[fold, start : start + len(block)] += made.predict(
                    block, raw_score=True, num_iteration=n_trees, num_threads=self.num_threads
                )
            start += len(block)
        text = whole.model_to_string()
        if self.calibration == "none" or not tried:
            return text, Calibration("none"), said
        unseen = np.concatenate([held for _, held, _ in tried])
        scores = np.concatenate([said[fold][held] for fold, held, _ in tried])
        part_weight = None if bins.weight is None else bins.weight[unseen]
        return text, fit_calibration(self.calibration, scores, y[unseen], part_weight), said

    def parameters(self) -> dict[str, Any]:
        """Return what LightGBM is told."""
        return {
            # cross_entropy, not binary: it takes soft labels, and for hard ones it is the same.
            "objective": "cross_entropy",
            "learning_rate": self.learning_rate,
            "num_leaves": self.num_leaves,
            "min_data_in_leaf": self.min_child_samples,
            "feature_fraction": self.feature_fraction,
            "lambda_l2": self.reg_lambda,
            "max_bin": self.max_bin,
            "seed": self.seed,
            "deterministic": True,
            "force_row_wise": True,
            "num_threads": self.num_threads,
            "verbosity": -1,
        }


@dataclass(frozen=True)
class Bins:
    """What all boosters are fitted on: every row, and of each fold the others and its own."""

    X: Matrix
    weight: np.ndarray | None
    whole: Binned
    folds: list[tuple[Binned, Binned]]

    @classmethod
    def of(
        cls, X: Matrix, folds: list[np.ndarray], parameters: Mapping[str, Any],
        weight: np.ndarray | None,
    ) -> "Bins":  # fmt: skip
        everyone, pairs = np.arange(len(X)), []
        for held in folds:
            learnt = binned(X, np.setdiff1d(everyone, held), parameters, weight)
            pairs.append((learnt, binned(X, held, parameters, weight, like=learnt)))
        return cls(X, weight, binned(X, everyone, parameters, weight), pairs)


def _labelled(on: Binned, y: np.ndarray, said: np.ndarray) -> Labelled:
    """Return rows with their labels and where they start, if something was said of any row."""
    return Labelled(on, y[on.rows], said[on.rows] if said.any() else None)


def booster_of(text: str) -> "lightgbm.Booster":
    """Return the booster of a LightGBM text; the text must be known to be whole."""
    import lightgbm

    return lightgbm.Booster(model_str=text)
