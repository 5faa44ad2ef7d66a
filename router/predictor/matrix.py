"""Feature matrices that need not lie in memory: what is asked of them, and their rows in blocks.

An array is one; so is anything that gives arrays where it is sliced, and less of itself where rows
are chosen. Knows shapes; knows nothing of files, labels or boosters.
"""

from collections.abc import Iterator
from typing import Any, Protocol, cast

import numpy as np

BLOCK = 8192  # rows that are looked at together: 20 MB of 600 features


class Matrix(Protocol):
    """(n, F) numbers: ``matrix[a:b]`` is an array, ``matrix[rows]`` holds the chosen rows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (n, F)."""

    def __len__(self) -> int:
        """Return n."""

    def __getitem__(self, key: Any, /) -> Any:
        """Return some of it."""


def blocks(X: Matrix) -> Iterator[np.ndarray]:
    """Return the rows in order, at most `BLOCK` at a time, as contiguous float32."""
    for start in range(0, len(X), BLOCK):
        yield np.ascontiguousarray(X[start : start + BLOCK], dtype=np.float32)


def in_memory(X: Matrix) -> np.ndarray:
    """Return the whole of it as contiguous float32; an array of that kind is not copied."""
    if isinstance(X, np.ndarray):
        return np.ascontiguousarray(X, dtype=np.float32)
    whole = np.empty(X.shape, dtype=np.float32)
    start = 0
    for block in blocks(X):
        whole[start : start + len(block)] = block
        start += len(block)
    return whole


def checked(X: Any) -> Matrix:
    """Return features (n, F) that can be sliced; what is no matrix yet becomes an array.

    Raises:
        ValueError: another shape.
    """
    # Tables and tensors can be sliced too, but choose rows in ways of their own.
    if isinstance(X, np.ndarray) or (hasattr(X, "shape") and not hasattr(X, "__array__")):
        matrix = cast(Matrix, X)
    else:
        matrix = np.ascontiguousarray(X, dtype=np.float32)
    if len(matrix.shape) != 2 or matrix.shape[1] == 0:
        raise ValueError(f"expected (n, F) features, got {tuple(matrix.shape)}")
    return matrix


def check_finite(block: np.ndarray, first_row: int = 0) -> None:
    """Refuse features that are not finite.

    Raises:
        ValueError: says where the first of them is.
    """
    if not np.isfinite(block).all():
        rows, columns = np.nonzero(~np.isfinite(block))
        raise ValueError(
            f"features must be finite: row {first_row + rows[0]}, column {columns[0]} is "
            f"{block[rows[0], columns[0]]} ({len(rows)} such values)"
        )


def extent(X: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return (F,) the least and the greatest value of each feature.

    Raises:
        ValueError: features that are not finite.
    """
    low = np.full(X.shape[1], np.inf, dtype=np.float32)
    high, row = -low, 0
    for block in blocks(X):
        check_finite(block, row)
        np.minimum(low, block.min(axis=0), out=low)
        np.maximum(high, block.max(axis=0), out=high)
        row += len(block)
    return low, high
