"""Pictures in requests: data URLs to bytes, and what is wrong with a picture told to the caller.

Knows data URLs and the fields of a request; decoding is `m3model.pictures`, the same for training.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from m3model import pictures
from m3model.errors import BadPicture
from serve.errors import BadRequest
from serve.settings import PictureLimits

_DATA_URL = re.compile(r"data:(?P<mime>[\w.+-]+/[\w.+-]+)?(?P<rest>(;[^,;]+)*),", re.IGNORECASE)
PIECE = 4 * 2**19  # characters, some milliseconds
_HOW = "Send it as a data URL: data:image/png;base64,... "


def bytes_of_data_url(url: str, param: str) -> bytes:
    """Return the bytes in a base64 data URL.

    Args:
        url: what the request holds.
        param: where, for the error.

    Raises:
        BadRequest: another scheme (what is fetched is put in before), another encoding, or broken
            base64.
    """
    head = _DATA_URL.match(url[:300])
    if head is None:
        scheme = url.split(":", 1)[0][:20] if ":" in url[:20] else ""
        if scheme.lower() in ("http", "https"):
            raise BadRequest(
                f"This service fetches no pictures from the network. {_HOW.strip()}",
                param, "remote_images_unsupported",
            )  # fmt: skip
        raise BadRequest(f"The picture is not a data URL. {_HOW.strip()}", param, "invalid_image")
    if "base64" not in head["rest"].lower().split(";"):
        raise BadRequest(f"The data URL is not base64. {_HOW.strip()}", param, "invalid_image")
    payload = url[head.end() :]
    try:
        data = _decoded("".join(payload.split()))
    except (binascii.Error, ValueError) as error:
        raise BadRequest(
            f"The picture's base64 is broken ({error}). Encode the file's bytes again.",
            param, "invalid_base64",
        ) from error  # fmt: skip
    if not data:
        raise BadRequest(f"The data URL is empty. {_HOW.strip()}", param, "invalid_image")
    return data


def _decoded(code: str) -> bytes:
    """Return what base64 stands for; piece by piece, since a piece lets no other thread run.

    Raises:
        ValueError: it is broken.
    """
    data = bytearray()
    for start in range(0, len(code), PIECE):
        if start * 3 != len(data) * 4:
            raise binascii.Error("Excess data after padding")
        data += base64.b64decode(code[start : start + PIECE], validate=True)
    return bytes(data)


def check_header(data: bytes, limits: PictureLimits, param: str | None = None) -> tuple[int, int]:
    """Return the width and height in the header, within the limits; nothing is decoded.

    Raises:
        BadRequest: not an accepted format, or too many pixels.
    """
    with _told_to_caller(param):
        return pictures.check_header(data, _limits(limits))


def pixels_in_memory(data: bytes, limits: PictureLimits) -> int:
    """Return how many pixels are decoded, those of costly formats counted as often as they cost.

    Raises:
        BadRequest: as `check_header`.
    """
    width, height = check_header(data, limits)
    return width * height * pictures.cost_of_format(data)


def decode_picture(
    data: bytes, limits: PictureLimits, param: str | None = None
) -> NDArray[np.uint8]:
    """Return the pixels, (H, W, 3) uint8 RGB.

    Raises:
        BadRequest: as `check_header`, or the file is cut off or damaged.
    """
    with _told_to_caller(param):
        return pictures.decode_picture(data, _limits(limits))


def _limits(settings: PictureLimits) -> pictures.PictureLimits:
    return pictures.PictureLimits(**settings.model_dump())


@contextmanager
def _told_to_caller(param: str | None) -> Iterator[None]:
    try:
        yield
    except BadPicture as error:
        raise BadRequest(str(error), param, error.code) from error
