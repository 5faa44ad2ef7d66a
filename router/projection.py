"""Wide vectors made narrow, the same way for ever.

A feature must mean the same next year, so the signs come from a hash and not from a library's
random generator, whose stream may change with a version. Knows nothing of what is projected.
"""

import hashlib
import math
from functools import cache

import numpy as np


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
