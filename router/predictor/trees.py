"""All trees of all boosters as arrays, and the raw scores of rows from a few numpy calls.

Knows LightGBM's text format, trees and rows; knows nothing of scales, calibration or probabilities.
The scores equal ``Booster.predict(raw_score=True)`` to the last bit, in a fraction of its time.

A tree's leaves are bits, left to right. A split whose row goes right clears the bits of its left
subtree; when every split of the tree has been looked at, in any order, the lowest bit that is left
is the leaf that the row falls into (QuickScorer, Lucchese et al. 2015). So all splits of all trees
are compared at once, without a branch.

Notation: n rows, F features, K boosters, T trees of all of them, one booster's after the other's,
S splits of the largest tree, L = S+1 leaves.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MAX_LEAVES = 31  # leaves are the bits of an int32 whose sign stays free
# Blocks that stay in a core's caches, found by trial: rows, trees x rows, splits x trees x rows.
_ROWS_AT_ONCE, _TREE_ROWS_AT_ONCE, _SPLITS_AT_ONCE = 64, 2**15, 2**17
_ZERO = np.float32(1e-35)  # LightGBM takes any feature as near to zero as this for zero
_ORDINARY_SPLIT = re.compile(r"^decision_type=(?:[028]|10| )*$", re.M)


@dataclass(frozen=True)
class TreeTable:
    """Boosters as arrays; made by `table_of`. Safe to call from several threads.

    Attributes:
        feature: (S, T) which feature a split looks at.
        threshold: (S, T, 1) float32; a row goes left where its feature is not greater.
        clears: (S, T, 1) int32 bits of the leaves a row cannot reach that goes right.
        values: (T*L,) leaf values, left to right.
        first_leaf: (T, 1) where a tree's values begin, less 127.
        booster: (T,) which booster a tree is of.
        n_boosters: K.
    """

    feature: np.ndarray
    threshold: np.ndarray
    clears: np.ndarray
    values: np.ndarray
    first_leaf: np.ndarray
    booster: np.ndarray
    n_boosters: int

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """Return (n, K) float64 raw scores of X (n, F), float32, finite, of the fitted width."""
        if len(X) == 0:
            return np.zeros((0, self.n_boosters))
        if len(X) <= _ROWS_AT_ONCE:
            return self._scores(X)
        starts = range(0, len(X), _ROWS_AT_ONCE)
        return np.concatenate([self._scores(X[start : start + _ROWS_AT_ONCE]) for start in starts])

    def _scores(self, X: np.ndarray) -> np.ndarray:
        n, columns = len(X), np.ascontiguousarray(X.T)
        width, step = self.n_boosters * n, max(1, _TREE_ROWS_AT_ONCE // n)
        scores: np.ndarray = np.zeros(width)
        for start in range(0, len(self.first_leaf), step):
            trees = slice(start, start + step)
            leaf = self._lowest_leaf(columns, trees) + self.first_leaf[trees]
            values = self.values.take(leaf, mode="clip").reshape(-1)
            place = self.booster[trees]
            if n > 1:
                place = (place[:, None] * n + np.arange(n)).reshape(-1)
            if start:
                place = np.concatenate([np.arange(width), place])
                values = np.concatenate([scores, values])
            # One tree after the other, as LightGBM adds them; a sum would add in another order.
            scores = np.bincount(place, values, width)
        return scores.reshape(self.n_boosters, n).T

    def _lowest_leaf(self, columns: np.ndarray, trees: slice) -> np.ndarray:
        """Return (trees, n) 127 more than the number of the leaf that each row falls into."""
        feature = self.feature[:, trees]
        (n_splits, n_trees), n = feature.shape, columns.shape[1]
        gone = np.zeros((n_trees, n), dtype=np.int32)
        step = max(1, _SPLITS_AT_ONCE // gone.size)
        with np.errstate(over="ignore"):  # threshold - x may overflow; its sign stays right
            for start in range(0, n_splits, step):
                part = slice(start, start + step)
                x = columns.take(feature[part], axis=0, mode="clip")
                np.subtract(self.threshold[part, trees], x, out=x)
                bits = x.view(np.int32)
                np.right_shift(bits, 31, out=bits)  # all ones where x is above the threshold
                np.bitwise_and(bits, self.clears[part, trees], out=bits)
                gone |= np.bitwise_or.reduce(bits, axis=0)
        lowest = (~gone & (gone + 1)).astype(np.float32)
        # The exponent of a power of two, plus 127, is the number of its bit.
        exponents: np.ndarray = lowest.view(np.int32) >> 23
        return exponents


def table_of(texts: Sequence[str]) -> TreeTable | None:
    """Return the table of boosters (LightGBM texts that are known to be whole).

    None where they hold what a table cannot: more than `MAX_LEAVES` leaves, categorical splits,
    linear leaves, or zeros that stand for missing values.
    """
    boosters = [_Trees.parse(text) for text in texts]
    if any(booster is None for booster in boosters):
        return None
    read = [booster for booster in boosters if booster is not None]
    n_leaves = max(int(booster.n_leaves.max()) for booster in read)
    n_splits = max(n_leaves - 1, 1)
    counts = [len(booster.n_leaves) for booster in read]
    total, first_tree = sum(counts), np.cumsum([0, *counts])
    feature = np.zeros((n_splits, total), dtype=np.intp)
    threshold = np.zeros((n_splits, total, 1), dtype=np.float32)
    clears = np.zeros((n_splits, total, 1), dtype=np.int32)
    values = np.zeros((total, n_leaves))
    for begin, booster in zip(first_tree, read, strict=False):
        tree, split = booster.splits
        n_left, first, place = booster.order()
        feature[split, begin + tree] = booster.feature
        threshold[split, begin + tree, 0] = _at_or_below(booster.threshold)
        clears[split, begin + tree, 0] = ((1 << n_left) - 1) << first
        tree, leaf = booster.leaves
        values[begin + tree, place[tree, leaf]] = booster.value
    return TreeTable(
        feature=feature,
        threshold=threshold,
        clears=clears,
        values=values.reshape(-1),
        first_leaf=(np.arange(total) * n_leaves - 127)[:, None],
        booster=np.repeat(np.arange(len(read)), counts),
        n_boosters=len(read),
    )


@dataclass(frozen=True)
class _Trees:
    """The trees of one booster, all their splits one after the other, and all their leaves.

    A child is the number of a split of the same tree, or -1 - the number of a leaf.
    """

    n_leaves: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray

    @classmethod
    def parse(cls, text: str) -> "_Trees | None":
        n_leaves = _numbers(text, "num_leaves").astype(np.int64)
        ordinary = len(_ORDINARY_SPLIT.findall(text)) == len(n_leaves)
        if not ordinary or _numbers(text, "is_linear").any() or n_leaves.max() > MAX_LEAVES:
            return None
        return cls(
            n_leaves=n_leaves,
            feature=_numbers(text, "split_feature").astype(np.intp),
            threshold=_numbers(text, "threshold"),
            left=_numbers(text, "left_child").astype(np.int64),
            right=_numbers(text, "right_child").astype(np.int64),
            value=_numbers(text, "leaf_value"),
        )

    @property
    def splits(self) -> tuple[np.ndarray, np.ndarray]:
        """Tree, and number within the tree, of every split."""
        return _places(self.n_leaves - 1)

    @property
    def leaves(self) -> tuple[np.ndarray, np.ndarray]:
        """Tree, and number within the tree, of every leaf."""
        return _places(self.n_leaves)

    def order(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return for every split the leaves to its left and the place of the first of them, and
        (trees, L) the place of every leaf, counted from the left of its tree."""
        tree, split = self.splits
        at = np.full((len(self.n_leaves), int(self.n_leaves.max())), -1)
        at[tree, split] = np.arange(len(tree))
        n_left, n_both, first = np.zeros((3, len(tree)), dtype=np.int64)
        place = np.zeros_like(at)
        # A split is numbered after the one above it: children first, then parents.
        levels = [np.flatnonzero(split == number) for number in range(at.shape[1])]
        for here in reversed(levels):
            sides = [
                np.where(child[here] < 0, 1, n_both[at[tree[here], child[here]]])
                for child in (self.left, self.right)
            ]
            n_left[here], n_both[here] = sides[0], sides[0] + sides[1]
        for here in levels:
            for child, start in ((self.left, first), (self.right, first + n_left)):
                below, leaf = here[child[here] >= 0], here[child[here] < 0]
                first[at[tree[below], child[below]]] = start[below]
                place[tree[leaf], -1 - child[leaf]] = start[leaf]
        return n_left, first, place


def _numbers(text: str, name: str) -> np.ndarray:
    """Return the numbers of every line ``name=...`` one after the other."""
    lines = re.findall(rf"^{name}=(.*)$", text, re.M)
    return np.asarray(" ".join(lines).split(), dtype=np.float64)


def _places(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(np.arange(len(counts)), counts), np.arange(counts.sum()) - starts


def _at_or_below(thresholds: np.ndarray) -> np.ndarray:
    """Return the float32 thresholds that part float32 features as the float64 ones do."""
    low = np.float32(-np.inf)
    t = thresholds.astype(np.float32)
    t = np.where(t.astype(np.float64) > thresholds, np.nextafter(t, low), t)
    t = np.where((t >= -_ZERO) & (thresholds < 0), np.nextafter(-_ZERO, low), t)
    return np.where((thresholds >= 0) & (t < _ZERO), _ZERO, t)
