"""Who a picture is, what it belongs to, and which part of the data that is in for ever.

A unit is what no split may divide, and what counts once where chance is reckoned with: a document,
a video, pictures that look alike, or a picture by itself. Knows pixels and hashes; knows nothing of
questions, records or what is fitted.
"""

import hashlib
from collections.abc import Iterable
from typing import Literal

import numpy as np

Split = Literal["train", "calibration", "test"]


def picture_id(rgb: np.ndarray) -> str:
    """Return the identity of a picture: sha256 over b"WxH" and its decoded RGB pixels.

    Args:
        rgb: (H, W, 3) uint8. Two files of one picture (PNG, BMP) have one identity.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
        raise ValueError(f"expected (H, W, 3) uint8 pixels, got {rgb.shape} {rgb.dtype}")
    height, width, _ = rgb.shape
    digest = hashlib.sha256(f"{width}x{height}".encode())
    digest.update(np.ascontiguousarray(rgb).data)
    return digest.hexdigest()


def units_of(picture_ids: Iterable[str], group_ids: Iterable[str | None]) -> list[str]:
    """Return what each row's picture belongs to: the group that its first row tells, or itself.

    The first row, because logs only grow at their end: a picture that is known stays where it is,
    whatever later rows (of another session, say) tell of it.
    """
    first: dict[str, str] = {}
    return [
        first.setdefault(picture, picture if group is None else group)
        for picture, group in zip(picture_ids, group_ids, strict=True)
    ]


def split_of(unit: str) -> Split:
    """Return the part of the data a unit (see `units_of`) belongs to, for ever: 50 / 20 / 30 %.

    A pure function of its name: whoever collects the picture, whenever, puts it in the same part,
    so no router can have been fitted on a picture that later tests it.
    """
    # Hashed again with a salt, so that other uses of the identity's digits stay independent.
    digest = hashlib.sha256(b"m3-router split 1:" + unit.encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < 0.5:
        return "train"
    return "calibration" if share < 0.7 else "test"


def calibrates(unit: str) -> bool:
    """Return whether a calibration unit (a third of them) is one that fits probabilities.

    The others choose prices and carry certificates: a certificate needs pictures that nothing in
    the predictor has seen, its mapping from scores to probabilities included.
    """
    digest = hashlib.sha256(b"m3-router calibration 1:" + unit.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < 1 / 3
