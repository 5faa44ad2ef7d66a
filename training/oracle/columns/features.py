"""Features of which only what is looked at is in memory: rows of float32 in a file.

The file has no name, so it goes with the process, however that ends. Features are a
`router.predictor.matrix.Matrix`: a slice of them is an array, a choice of rows or columns is
features again. Knows rows and columns; knows nothing of what they mean.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from training.errors import MixedData, TrainingError

IN_MEMORY = 128 * 2**20  # bytes of features that are held as an array
_SPREAD = 4  # rows are read in one go, and some of them dropped, up to so many for each wanted one


@dataclass(frozen=True, eq=False)
class RowFile:
    """Rows of ``width`` float32 numbers in a file, which is closed with the last of its features.

    Not buffered: rows come in blocks, and a full disk is told at once.
    """

    file: IO[bytes]
    width: int

    def __post_init__(self) -> None:
        weakref.finalize(self, self.file.close)

    def append(self, rows: NDArray[np.float32]) -> None:
        """Write further rows."""
        left = np.ascontiguousarray(rows, np.float32).data.cast("B")
        while left:
            left = left[self.file.write(left) :]

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows ``start`` to ``stop``, which there must be."""
        rows = np.empty((stop - start, self.width), np.float32)
        left, at = rows.data.cast("B"), start * self.width * 4
        while left:
            got = os.preadv(self.file.fileno(), [left], at)
            if not got:
                raise OSError(f"row {stop - 1} is beyond the end of the file of features")
            left, at = left[got:], at + got
        return rows

    def rows(self, wanted: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the wanted rows, in any order."""
        if not len(wanted):
            return np.empty((0, self.width), np.float32)
        low, high = int(wanted.min()), int(wanted.max()) + 1
        if high - low <= _SPREAD * len(wanted):
            return self.read(low, high)[wanted - low]
        return np.concatenate([self.read(row, row + 1) for row in wanted.tolist()])


@dataclass(frozen=True, eq=False)
class Features:
    """(n, F) float32 numbers in a file; see above.

    Attributes:
        file: all rows that were written.
        rows: (n,) which of them these are.
        columns: (F,) which columns; None: all.
    """

    file: RowFile
    rows: NDArray[np.int64]
    columns: NDArray[np.intp] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Return (n, F)."""
        return len(self.rows), self.file.width if self.columns is None else len(self.columns)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: Any, /) -> Any:
        """Return an array of a slice of rows, the row of a number, or the features of a choice.

        A second index chooses columns.
        """
        if isinstance(key, tuple):
            rows, columns = key
            every = np.arange(self.file.width) if self.columns is None else self.columns
            return replace(self, columns=every[columns])[rows]
        if isinstance(key, (int, np.integer)):
            return self._read(self.rows[int(key)][None])[0]
        whole = isinstance(key, slice) and key == slice(None)
        if isinstance(key, slice) and not whole:
            return self._read(self.rows[key])
        return self if whole else replace(self, rows=self.rows[np.asarray(key)])

    def _read(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        found = self.file.rows(rows)
        return found if self.columns is None else np.ascontiguousarray(found[:, self.columns])


class Collecting:
    """Rows that come block by block, into an array where they are few and a file where not."""

    def __init__(self, n_rows: int, width: int, in_memory: int = IN_MEMORY) -> None:
        self._filled, self._width, self._bytes = 0, width, 4 * n_rows * width
        self._array: NDArray[np.float32] | None = None
        if self._bytes <= in_memory:
            self._array = np.empty((n_rows, width), np.float32)
        else:
            file = tempfile.TemporaryFile(prefix="m3-features-", buffering=0)  # noqa: SIM115
            self._file = RowFile(file, width)

    def add(self, block: NDArray[np.float32]) -> None:
        """Take further rows.

        Raises:
            MixedData: another number of features.
            TrainingError: there is no room for them on disk.
        """
        if block.shape[1] != self._width:
            raise MixedData(
                f"rows of {block.shape[1]} features where the manifest's schema has {self._width}"
            )
        if self._array is not None:
            self._array[self._filled : self._filled + len(block)] = block
        else:
            try:
                self._file.append(block)
            except OSError as error:
                raise TrainingError(
                    f"no room for {self._bytes / 1e9:.1f} GB of features in "
                    f"{tempfile.gettempdir()} ({error.strerror}): set TMPDIR to a folder that has "
                    "it"
                ) from error
        self._filled += len(block)

    def done(self) -> NDArray[np.float32] | Features:
        """Return all rows."""
        if self._array is not None:
            return self._array[: self._filled]
        return Features(self._file, np.arange(self._filled))
