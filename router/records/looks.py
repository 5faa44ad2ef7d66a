"""What a picture looks like from afar, as a name that near copies of it share.

A picture's part of the data must never change, whoever collects it and whatever is collected later.
So its look is a function of its own pixels: 64 decisions, each of which asks whether one block of
an 8 x 9 grid is clearly brighter than its left neighbour. Nothing is clustered: a cluster that
grows with the log would join pictures of different parts. The price are copies that fall on the
other side of a decision (docs/data.md has their measured share) and other pictures of the same
look, which then count as one. Only whole numbers: every machine and version gives the same look.
Knows pixels; knows nothing of questions, records or splits.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

LOOK = "look:"  # group ids that are a look begin so; 16 hex digits follow
ROWS, COLUMNS = 8, 8  # decisions; there is one column of blocks more
_WEIGHTS = np.array([77, 150, 29], dtype=np.int64)  # luma, in 256ths
_FINE = 64  # parts of a 256th of a grey level that block means are kept to
_LEAST = 192 * _FINE  # three quarters of a level: what is flatter is flat


def look_of(rgb: NDArray[np.uint8]) -> str:
    """Return the look of a picture: copies saved again, resized or edited a little mostly share it.

    A step between blocks counts from half the root mean square of all steps on: equal neighbours,
    of which drawn pictures have many, lie far from that decision.

    Args:
        rgb: (H, W, 3) uint8, as for `picture_id`.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or rgb.size == 0:
        raise ValueError(f"expected (H, W, 3) uint8 pixels, got {rgb.shape} {rgb.dtype}")
    strips = _blocks(rgb, ROWS) @ _WEIGHTS  # (ROWS, W)
    sums = _blocks(strips.T, COLUMNS + 1).T
    means = sums * _FINE // (rgb.shape[0] * rgb.shape[1])
    steps = np.diff(means, axis=1)
    clear = max(int((steps * steps).sum()) // steps.size // 4, _LEAST**2)
    bits = (steps > 0) & (steps * steps > clear)
    return f"{LOOK}{int.from_bytes(np.packbits(bits).tobytes(), 'big'):016x}"


def _blocks(rows: NDArray[np.integer], count: int) -> NDArray[np.int64]:
    """Return (count, ...): ``count`` times the sum of each of so many equal parts of the rows.

    Parts end within rows: the same picture at another size has the same blocks.
    """
    whole, part = np.divmod(np.arange(count + 1) * len(rows), count)
    inside = [rows[a:b].sum(axis=0, dtype=np.int64) for a, b in pairwise(whole)]
    begun = rows[np.minimum(whole, len(rows) - 1)].astype(np.int64)  # the row that an edge is in
    begun *= part.reshape(-1, *[1] * (rows.ndim - 1))
    edges: NDArray[np.int64] = np.diff(begun, axis=0)
    return count * np.stack(inside) + edges
