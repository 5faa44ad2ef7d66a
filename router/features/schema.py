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

from router.features.cells import cells_of
from router.features.words import EMBEDDING_DIMS, WORD_NAMES

FEATURES_VERSION = 3  # raise it with any change in what a number means: old routers then refuse
GROUPS = (
    *("picture", "statistics"),
    *("relevance_area", "relevance_cells", "relevance_detail"),
    "question",
)
DEFAULT_RELEVANCE = "readout"


@dataclass(frozen=True)
class FeatureSchema:
    """Names and groups of the features, in order, for one grid and set of scales.

    Attributes:
        names: (F,) unique names.
        groups: (F,) one of ``GROUPS`` for each name.
        scales: ascending.
        grid_side: G.
        embedding_dim: E, dimensions of the question embedding as the model gives it.
        relevance: name of the source of the relevance maps: other sources give other numbers.
        version: ``FEATURES_VERSION`` the features were computed with.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    scales: tuple[int, ...]
    grid_side: int
    embedding_dim: int
    relevance: str = DEFAULT_RELEVANCE
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
            "relevance": self.relevance,
            "names": list(self.names),
            "groups": list(self.groups),
        }


def feature_schema(
    scales: Sequence[int],
    grid_side: int,
    embedding_dim: int,
    relevance: str = DEFAULT_RELEVANCE,
) -> FeatureSchema:
    """Return the schema of `router.features.question_features` for a grid and its scales.

    Args:
        scales: ascending.
        grid_side: G.
        embedding_dim: E, dimensions of the question embedding.
        relevance: name of the source of the relevance maps.

    Raises:
        ValueError: a scale is not a square whose side divides the grid, or they do not ascend.
    """
    return _schema(tuple(scales), grid_side, embedding_dim, relevance)


@cache
def _schema(
    scales: tuple[int, ...], grid_side: int, embedding_dim: int, relevance: str
) -> FeatureSchema:
    cells = cells_of(scales, grid_side)
    coarse = [scale for scale, side in zip(scales, cells.sides, strict=True) if side < grid_side]
    parts = {
        "picture": [
            *_each(("detail_mean", "detail_p90"), coarse),
            *_each(("foreground_purity",), scales),
            *_each(("foreground_detail",), coarse),
        ],
        "statistics": [
            *("norm_log_mean", "norm_cv", "variance_log"),
            *("foreground_mean", "foreground_std", "foreground_edge"),
        ],
        "relevance_area": [
            *("area", "area_peak", "relevance_max", "effective_patches"),
            *("spread_y", "spread_x", "extent_y", "extent_x"),
            *("edge", "edge_peak", "pieces"),
        ],
        "relevance_cells": _each(
            ("purity", "purity_peak", "fill", "fill_peak", "cell_max", "cell_at_peak"), scales
        ),
        "relevance_detail": [
            *_each(("lost", "lost_peak", "lost_p50", "lost_p90", "lost_max"), coarse),
            "foreground_here",
        ],
        "question": [
            *WORD_NAMES,
            *(f"embedding_{i:02d}" for i in range(min(embedding_dim, EMBEDDING_DIMS))),
        ],
    }
    return FeatureSchema(
        names=tuple(name for group in GROUPS for name in parts[group]),
        groups=tuple(group for group in GROUPS for _ in parts[group]),
        scales=scales,
        grid_side=grid_side,
        embedding_dim=embedding_dim,
        relevance=relevance,
    )


def _each(names: Sequence[str], scales: Sequence[int]) -> list[str]:
    return [f"{name}_{scale}" for name in names for scale in scales]
