"""Names, groups and order of the features, and the hash that ties a router to them.

Knows names; `router.features` computes the numbers in the same order.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np

from router.cells import cells_of
from router.question_text import EMBEDDING_DIMS, WORD_NAMES

FEATURES_VERSION = 1  # raise it with any change in what a number means: old routers then refuse
GROUPS = ("picture", "statistics", "relevance", "question")


@dataclass(frozen=True)
class FeatureSchema:
    """Names and groups of the features, in order, for one grid and set of scales.

    Attributes:
        names: (F,) unique names.
        groups: (F,) one of ``GROUPS`` for each name.
        scales: ascending.
        grid_side: G.
        embedding_dim: E, dimensions of the question embedding as the model gives it.
        version: ``FEATURES_VERSION`` the features were computed with.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    scales: tuple[int, ...]
    grid_side: int
    embedding_dim: int
    version: int = FEATURES_VERSION

    @cached_property
    def hash(self) -> str:
        """Short hash of everything that gives a column its meaning."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]

    def columns(self, *groups: str) -> np.ndarray:
        """Return the indices of the features in any of the groups, for ablations."""
        unknown = set(groups) - set(GROUPS)
        if unknown:
            raise ValueError(f"unknown groups {sorted(unknown)}; there are {', '.join(GROUPS)}")
        return np.flatnonzero([group in groups for group in self.groups])

    def to_json(self) -> dict[str, Any]:
        """Return the schema as plain JSON values."""
        return {
            "version": self.version,
            "scales": list(self.scales),
            "grid_side": self.grid_side,
            "embedding_dim": self.embedding_dim,
            "names": list(self.names),
            "groups": list(self.groups),
        }


def feature_schema(scales: Sequence[int], grid_side: int, embedding_dim: int) -> FeatureSchema:
    """Return the schema of `router.features.question_features` for a grid and its scales.

    Args:
        scales: ascending.
        grid_side: G.
        embedding_dim: E, dimensions of the question embedding.

    Raises:
        ValueError: a scale is not a square whose side divides the grid, or they do not ascend.
    """
    return _schema(tuple(scales), grid_side, embedding_dim)


@cache
def _schema(scales: tuple[int, ...], grid_side: int, embedding_dim: int) -> FeatureSchema:
    cells = cells_of(scales, grid_side)
    coarse = [scale for scale, side in zip(scales, cells.sides, strict=True) if side < grid_side]
    picture = [f"detail_mean_{s}" for s in coarse] + [f"detail_p90_{s}" for s in coarse]
    picture += [f"foreground_purity_{s}" for s in scales]
    picture += [f"foreground_detail_{s}" for s in coarse]
    statistics = [
        "norm_log_mean",
        "norm_cv",
        "variance_log",
        "foreground_mean",
        "foreground_std",
        "foreground_edge",
    ]
    relevance = [
        f"{name}_{s}"
        for name in ("purity", "purity_peak", "fill", "fill_peak", "cell_max", "cell_at_peak")
        for s in scales
    ]
    relevance += [f"{name}_{s}" for name in ("lost", "lost_peak") for s in coarse]
    relevance += [
        "relevance_source",
        "area",
        "area_peak",
        "relevance_max",
        "effective_patches",
        "foreground_here",
        "spread_y",
        "spread_x",
        "extent_y",
        "extent_x",
        "edge",
        "edge_peak",
        "pieces",
    ]
    question = list(WORD_NAMES)
    question += [f"embedding_{i:02d}" for i in range(min(embedding_dim, EMBEDDING_DIMS))]
    parts = dict(zip(GROUPS, (picture, statistics, relevance, question), strict=True))
    return FeatureSchema(
        names=tuple(name for part in parts.values() for name in part),
        groups=tuple(group for group, part in parts.items() for _ in part),
        scales=scales,
        grid_side=grid_side,
        embedding_dim=embedding_dim,
    )
