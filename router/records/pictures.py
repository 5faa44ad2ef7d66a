"""Who a picture is, and which part of the data it belongs to for ever.

Knows pixels and hashes; knows nothing of questions, records or what is fitted.
"""

import hashlib
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


def split_of(picture_id: str) -> Split:
    """Return the part of the data a picture belongs to, for ever: 50 / 20 / 30 %.

    A pure function of the identity: whoever collects the picture, whenever, puts it in the same
    part, so no router can have been fitted on a picture that later tests it.
    """
    # Hashed again with a salt, so that other uses of the identity's digits stay independent.
    digest = hashlib.sha256(b"m3-router split 1:" + picture_id.encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < 0.5:
        return "train"
    return "calibration" if share < 0.7 else "test"


def calibrates(picture_id: str) -> bool:
    """Return whether a calibration picture (a third of them) is one that fits probabilities.

    The others choose prices and carry certificates: a certificate needs pictures that nothing in
    the predictor has seen, its mapping from scores to probabilities included.
    """
    digest = hashlib.sha256(b"m3-router calibration 1:" + picture_id.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < 1 / 3
