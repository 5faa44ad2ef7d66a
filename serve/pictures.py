"""Pictures from strangers: data URLs to bytes, bytes to RGB pixels, every danger refused by name.

Knows Pillow and the limits; knows nothing of models or HTTP. Size and format are read from the
header before anything is decoded, so a small file that unfolds into gigabytes costs nothing.
"""

from __future__ import annotations

import base64
import binascii
import io
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from serve.errors import BadRequest
from serve.settings import PICTURE_FORMATS, PictureLimits

_DATA_URL = re.compile(r"data:(?P<mime>[\w.+-]+/[\w.+-]+)?(?P<rest>(;[^,;]+)*),", re.IGNORECASE)
_HOW = "Send it as a data URL: data:image/png;base64,... "
_FORMAT_NAMES = "PNG, JPEG, WebP or GIF"


def bytes_of_data_url(url: str, param: str) -> bytes:
    """Return the bytes in a base64 data URL.

    Args:
        url: what the request holds.
        param: where, for the error.

    Raises:
        BadRequest: another scheme (nothing is ever fetched), another encoding, or broken base64.
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
        data = base64.b64decode("".join(payload.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest(
            f"The picture's base64 is broken ({error}). Encode the file's bytes again.",
            param, "invalid_base64",
        ) from error  # fmt: skip
    if not data:
        raise BadRequest(f"The data URL is empty. {_HOW.strip()}", param, "invalid_image")
    return data


def check_header(data: bytes, limits: PictureLimits, param: str | None = None) -> None:
    """Return if the header promises a picture within the limits; nothing is decoded.

    Raises:
        BadRequest: not an accepted format, or too many pixels.
    """
    with _open(data, limits, param):
        pass


def decode_picture(
    data: bytes, limits: PictureLimits, param: str | None = None
) -> NDArray[np.uint8]:
    """Return the pixels, (H, W, 3) uint8 RGB: first frame, turned as EXIF says, on white.

    Raises:
        BadRequest: as `check_header`, or the file is cut off or damaged.
    """
    with _open(data, limits, param) as picture:
        try:
            picture.load()
            return np.asarray(_flat_rgb(ImageOps.exif_transpose(picture)), dtype=np.uint8)
        except Exception as error:  # whatever a decoder makes of hostile bytes is the caller's
            raise BadRequest(
                "The picture is cut off or damaged and cannot be decoded. "
                f"Save it again as {_FORMAT_NAMES} and send the whole file.",
                param, "invalid_image",
            ) from error  # fmt: skip


def _open(data: bytes, limits: PictureLimits, param: str | None) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(data), formats=PICTURE_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large("The picture has far too many pixels.", limits, param) from error
    except Exception as error:
        raise BadRequest(
            f"The bytes are not a picture in an accepted format. Send {_FORMAT_NAMES}.",
            param, "invalid_image",
        ) from error  # fmt: skip
    width, height = picture.size
    if width * height > limits.max_pixels or max(width, height) > limits.max_side_px:
        picture.close()
        raise _too_large(f"The picture has {width} x {height} pixels.", limits, param)
    return picture


def _too_large(what: str, limits: PictureLimits, param: str | None) -> BadRequest:
    return BadRequest(
        f"{what} At most {limits.max_pixels:,} pixels and {limits.max_side_px:,} on a side are "
        "accepted. Scale it down and send it again.",
        param, "image_too_large",
    )  # fmt: skip


def _flat_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        # Pillow would clip 16-bit grey at 255, which turns most of it white.
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        picture = Image.alpha_composite(white, rgba)
    return picture.convert("RGB")


def check_pictures(pictures: Sequence[bytes], limits: PictureLimits, params: Sequence[str]) -> None:
    """Return if every header is fine.

    Raises:
        BadRequest: for the first that is not.
    """
    for data, param in zip(pictures, params, strict=True):
        check_header(data, limits, param)
