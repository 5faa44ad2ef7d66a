"""One feature vector a question, from by-products of the one encode. Numpy only.

Wide vectors are made narrow by signs from a hash and not from a library's generator, whose stream
may change with a version: a feature must mean the same next year.

Knows projected patches, a relevance map and the question's text; knows nothing of models, of
where relevance comes from, of labels or scales that were chosen. The core is question-conditioned
relevance: how pure and how full the cells of each coarse grid are around the patches that answer to
the question's words.

Notation: G grid side, N = G*G patches row-major, D patch dimensions, E embedding dimensions,
S scales with sides k = sqrt(scale), C cells of all grids together, r[p] relevance of patch p.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from router.errors import FeatureMismatch
from router.features.cells import cells_of, edge, extent, pieces, residual_energy
from router.features.schema import FeatureSchema
from router.features.words import EMBEDDING_DIMS, word_features

PATCH_DIMS = 256  # wider patches are folded first: a 7B model costs the same
LOST_SHARES = (0.5, 0.9, 1.0)  # of the relevant patches, by detail lost
_EPS = 1e-6


@dataclass(frozen=True)
class PictureFeatures:
    """What one picture gives to every question about it; computed once, may be cached.

    Attributes:
        scales, grid_side: as in the schema.
        patches: (N, D) the grid itself, by reference.
        residual: (R, N) detail lost at each patch when it is pooled, for the R scales coarser than
            the grid; 1 is the mean distance of patches to the picture's mean.
        foreground: (N,) in [0, 1): how far a patch is from the picture's median patch.
        foreground_cells: (C,) mean foreground of every cell, all grids one after the other.
        vector: features of the groups "picture" and "statistics", in schema order.
    """

    scales: tuple[int, ...]
    grid_side: int
    patches: np.ndarray
    residual: np.ndarray
    foreground: np.ndarray
    foreground_cells: np.ndarray
    vector: np.ndarray


def picture_features(grid: np.ndarray, scales: Sequence[int]) -> PictureFeatures:
    """Return what a picture gives to every question about it.

    Args:
        grid: (N, D) projected patches, row-major; any float type.
        scales: ascending.

    Raises:
        ValueError: the grid is not square, or a scale does not divide it.
    """
    patches = np.asarray(grid, dtype=np.float32)
    side = math.isqrt(patches.shape[0]) if patches.ndim == 2 else 0
    if patches.ndim != 2 or side * side != patches.shape[0] or side == 0:
        raise ValueError(f"expected a (G*G, D) grid of patches, got {patches.shape}")
    cells = cells_of(tuple(scales), side)
    x = folded(patches, PATCH_DIMS)
    centred = x - x.mean(axis=0)
    variance = float(np.einsum("pd,pd->", centred, centred)) / len(x)
    unit = max(variance, _EPS)

    lost = [residual_energy(x, side, k) for k in cells.sides if k < side]
    residual = np.asarray(lost, dtype=np.float32).reshape(-1, side * side) / np.float32(unit)
    # Every second row and column is enough for a median, and four times as quick.
    seen = x.reshape(side, side, -1)[::2, ::2].reshape(-1, x.shape[1])
    away = x - np.median(seen, axis=0)
    distance = np.einsum("pd,pd->p", away, away)
    foreground = distance / (distance + unit)
    pooled = cells.pool(foreground[None])[0]
    norms = np.sqrt(np.einsum("pd,pd->p", x, x))
    weight = foreground.sum() + _EPS
    vector = np.concatenate(
        [
            residual.mean(axis=1),
            np.quantile(residual, 0.9, axis=1),
            cells.sums(pooled * pooled) / (cells.sums(pooled) + _EPS),
            residual @ foreground / weight,
            [
                math.log(float(norms.mean()) + _EPS),
                float(norms.std() / (norms.mean() + _EPS)),
                math.log(variance + _EPS),
                float(foreground.mean()),
                float(foreground.std()),
                edge(foreground.reshape(side, side)),
            ],
        ]
    ).astype(np.float32)
    return PictureFeatures(
        scales=tuple(scales),
        grid_side=side,
        patches=patches,
        residual=residual,
        foreground=foreground.astype(np.float32),
        foreground_cells=pooled.astype(np.float32),
        vector=vector,
    )


def question_features(
    picture: PictureFeatures,
    relevance: np.ndarray,
    question: str,
    question_embedding: np.ndarray,
) -> np.ndarray:
    """Return the (F,) float32 features of one question about one picture, as in `feature_schema`.

    Args:
        picture: from `picture_features`.
        relevance: (N,) in [0, 1], how strongly each patch answers to the question, from the source
            that the schema names.
        question: the bare question.
        question_embedding: (E,) mean embedding of the question's tokens.

    Raises:
        ValueError: relevance of another length than the grid, or an embedding that is not a vector.
    """
    embedding = np.asarray(question_embedding, dtype=np.float32)
    if embedding.ndim != 1:
        raise ValueError(f"expected one (E,) question embedding, got {embedding.shape}")
    r = np.asarray(relevance, dtype=np.float32)
    if r.shape != picture.foreground.shape:
        raise ValueError(f"expected relevance {picture.foreground.shape}, got {r.shape}")
    return np.concatenate(
        [
            picture.vector,
            _relevance_groups(picture, r),
            word_features(question),
            reduced(embedding, EMBEDDING_DIMS),
        ],
        dtype=np.float32,
    )


def _relevance_groups(picture: PictureFeatures, r: np.ndarray) -> np.ndarray:
    """Return the groups relevance_area, relevance_cells and relevance_detail, in this order."""
    side = picture.grid_side
    cells = cells_of(picture.scales, side)
    peak = float(r.max())
    # A readout leaks a little everywhere: the second map keeps only what is near its peak.
    mask = r >= max(0.5 * peak, _EPS)
    maps = np.stack([r, r * mask])  # (2, N)
    pooled = cells.pool(maps)  # (2, C)
    mass = cells.sums(pooled) + _EPS  # (2, S)
    purity = cells.sums(pooled * pooled) / mass
    share = pooled / np.maximum(np.maximum(picture.foreground_cells, pooled), _EPS)
    fill = cells.sums(pooled * share) / mass
    total = maps.sum(axis=1)  # (2,)
    lost = picture.residual @ maps.T / (total + _EPS)  # (R, 2)
    weight = r / (total[0] + _EPS)
    y, x = float(weight @ cells.rows), float(weight @ cells.columns)
    mask_2d = mask.reshape(side, side)
    n_marked = int(mask.sum())
    area = [
        float(r.mean()),
        n_marked / len(r),
        peak,
        float(total[0] ** 2 / (float(r @ r) + _EPS)) / len(r),
        math.sqrt(max(float(weight @ cells.rows**2) - y * y, 0.0)),
        math.sqrt(max(float(weight @ cells.columns**2) - x * x, 0.0)),
        extent(mask_2d, 0),
        extent(mask_2d, 1),
        edge(r.reshape(side, side)),
        edge(mask_2d.astype(np.float32)),
        pieces(mask_2d),
    ]
    in_cells = [
        purity.ravel(),
        fill.ravel(),
        np.maximum.reduceat(pooled[0], cells.starts),
        pooled[0][cells.of_patch[:, int(r.argmax())]],
    ]
    here = float(weight @ picture.foreground)
    # A word beside a shape is a small part of what the question marks: the mean hides its detail.
    spread = np.zeros((len(LOST_SHARES), len(picture.residual)), dtype=np.float32)
    if n_marked:
        ranks = [int(share * (n_marked - 1)) for share in LOST_SHARES]
        spread = np.sort(picture.residual[:, mask], axis=1)[:, ranks].T
    return np.concatenate(
        [area, *in_cells, lost.T.ravel(), spread.ravel(), [here]], dtype=np.float32
    )


def checked_rows(schema: FeatureSchema, features: np.ndarray) -> np.ndarray:
    """Return features (F,) or (n, F) as (n, F) float32.

    Raises:
        FeatureMismatch: another width, or no row.
        ValueError: a feature is not finite.
    """
    rows = np.asarray(features, dtype=np.float32)
    if rows.ndim == 1:
        rows = rows[None]
    if rows.ndim != 2 or rows.shape[1] != len(schema.names) or len(rows) == 0:
        raise FeatureMismatch(
            f"expected (pictures, {len(schema.names)}) features, got {np.shape(features)}"
        )
    if not np.isfinite(rows).all():
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=0))
        raise ValueError(f"feature {schema.names[bad[0]]} is not finite")
    return rows


def folded(patches: np.ndarray, width: int) -> np.ndarray:
    """Return (N, width or fewer): dimensions ``width`` apart summed up with fixed signs.

    A count sketch: squared distances are kept on average, at a fiftieth of the time of a dense
    projection. Patches that are narrow enough come back as they are.
    """
    n, wide = patches.shape
    if wide <= width:
        return patches
    signs = fixed_signs(-(-wide // width), width)
    if wide < signs.size:
        patches = np.pad(patches, ((0, 0), (0, signs.size - wide)))
    narrow: np.ndarray = np.einsum("pfd,fd->pd", patches.reshape(n, *signs.shape), signs)
    return narrow


def reduced(vector: np.ndarray, width: int) -> np.ndarray:
    """Return (width or fewer,): a dense projection that keeps lengths on average."""
    if vector.shape[0] <= width:
        return vector
    narrow: np.ndarray = vector @ fixed_signs(vector.shape[0], width) / math.sqrt(width)
    return narrow


@cache
def fixed_signs(rows: int, columns: int) -> np.ndarray:
    """Return (rows, columns) of -1 and 1, float32, as random as a hash."""
    size = rows * columns
    stream = hashlib.shake_256(f"m3-router signs {rows}x{columns}".encode()).digest(-(-size // 8))
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), count=size)
    return (2.0 * bits - 1.0).astype(np.float32).reshape(rows, columns)
