"""Bootstrap by picture: intervals that know that questions about one picture hang together.

Sums are taken per picture once; every resample is then a row of counts, so any number of means is
one matrix product. Knows arrays; does not know policies, metrics or reports.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEVEL = (2.5, 97.5)
_AT_ONCE = 8_000_000  # counts that are multiplied at once, as float64 (64 MB)
_KEPT = 512_000_000  # counts kept, a byte each; more are drawn anew for every interval


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """Return ``{"mean", "low", "high"}``."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class Resampler:
    """Draws whole pictures with replacement, the same ones for everything that is compared.

    Args:
        pictures: (n,) integers, the picture of each question.
        resamples: R.
        seed: of the draws.
    """

    pictures: NDArray[np.int64]
    resamples: int = 2000
    seed: int = 0

    @cached_property
    def _order(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return (questions sorted by picture, where each picture starts)."""
        order = np.argsort(self.pictures, kind="stable")
        starts = np.flatnonzero(np.diff(self.pictures[order], prepend=-1))
        return order, starts

    @cached_property
    def n_questions(self) -> Array:
        """Return (R,): how many questions each resample holds."""
        return self.totals(np.ones((len(self.pictures), 1)))[:, 0]

    def totals(self, columns: NDArray[np.floating]) -> Array:
        """Return (R, M): the sum over each resample of columns (n, M)."""
        order, starts = self._order
        sums = np.add.reduceat(np.asarray(columns, np.float64)[order], starts, axis=0)
        return np.concatenate([counts @ sums for counts in self._counts()])

    def means(self, columns: NDArray[np.floating]) -> Array:
        """Return (R, M): the mean over the questions of each resample of columns (n, M)."""
        return self.totals(columns) / self.n_questions[:, None]

    def interval(self, values: NDArray[np.floating]) -> Interval:
        """Return the mean of values (n,) over the questions, and its interval."""
        low, high = np.percentile(self.means(values[:, None])[:, 0], LEVEL)
        return Interval(float(values.mean()), float(low), float(high))

    def _counts(self) -> Iterator[Array]:
        n_pictures = len(self._order[1])
        if self.resamples * n_pictures <= _AT_ONCE:
            yield self._all_counts
        elif self.resamples * n_pictures <= _KEPT:
            yield from (block.astype(np.float64) for block in self._kept_blocks)
        else:
            yield from self._blocks()

    def _blocks(self) -> Iterator[Array]:
        n_pictures = len(self._order[1])
        rows = max(1, _AT_ONCE // n_pictures)
        rng = np.random.default_rng(self.seed)
        for start in range(0, self.resamples, rows):
            yield _draw(rng, min(rows, self.resamples - start), n_pictures)

    @cached_property
    def _kept_blocks(self) -> list[NDArray[np.uint8]]:
        # That one picture is drawn 256 times among thousands does not happen.
        return [block.astype(np.uint8) for block in self._blocks()]

    @cached_property
    def _all_counts(self) -> Array:
        return _draw(np.random.default_rng(self.seed), self.resamples, len(self._order[1]))


def _draw(rng: np.random.Generator, rows: int, n_pictures: int) -> Array:
    """Return (rows, n_pictures): how often each picture is drawn."""
    drawn = rng.integers(0, n_pictures, size=(rows, n_pictures))
    drawn += np.arange(rows)[:, None] * n_pictures
    counts = np.bincount(drawn.ravel(), minlength=rows * n_pictures)
    return counts.reshape(rows, n_pictures).astype(np.float64)


def clustered_interval(
    values: Array, clusters: NDArray[np.int64], resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the mean of ``values`` (n,) and its 95 % interval, resampling whole clusters.

    Args:
        values: one number per question (for a paired comparison: the difference).
        clusters: (n,) integers, the picture of each question.
    """
    return Resampler(clusters, resamples, seed).interval(values)


def percentiles(values: Array) -> tuple[float | None, float | None]:
    """Return the 95 % interval of values (R,), None for an end where they are infinite."""
    low, high = np.percentile(values, LEVEL, method="nearest")
    return tuple(float(end) if np.isfinite(end) else None for end in (low, high))  # type: ignore[return-value]
