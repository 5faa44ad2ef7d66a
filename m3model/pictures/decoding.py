"""Pictures from strangers: a file's bytes to RGB pixels, every danger refused by name.

The service and the offline tools read pictures here and nowhere else: a router is fitted on the
pixels that it will be asked about, and a file has one identity in traffic and in data. Knows
Pillow, formats and limits; knows nothing of models, folders or HTTP.

Size and format are read from the header before anything is decoded, so a small file that unfolds
into gigabytes costs nothing. Colours are taken as they stand: no profile is applied.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from m3model.errors import BadPicture, PictureTooLarge
from m3model.pictures.apart import decode_apart
from m3model.pictures.files import PNG, only_pixels

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
FORMAT_NAMES = "PNG, JPEG, WebP or GIF"
_ROWS_AT_ONCE = 256
# WebP is unfolded twice as far in memory as other formats, and holds up other threads meanwhile:
# a large one, which takes more than some ten milliseconds, is decoded in a process of its own.
COST_OF_WEBP = 2
APART_PIXELS = 2_500_000
# Pillow holds pixels in blocks of at most 16 MB, which the C library keeps for each thread when
# they are freed: 0.8 GB after four threads had decoded 49 million pixels. Larger ones, of which
# small pictures take what they need, it gives back. That changes no picture.
Image.core.set_block_size(2**26)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class PictureLimits:
    """What a picture may be before it is decoded.

    Beyond twice ``PIL.Image.MAX_IMAGE_PIXELS`` (179 million pixels) Pillow opens nothing. That
    number belongs to the whole process, so it is left as it is.

    Attributes:
        max_pixels: width times height; of a WebP half as many.
        max_side_px: the longer side.
    """

    max_pixels: int = 50_000_000
    max_side_px: int = 10_000


DEFAULT_LIMITS = PictureLimits()
# For files that were checked when they arrived, under limits that are known no more.
CHECKED_BEFORE = PictureLimits(max_pixels=2**40, max_side_px=2**30)


def check_header(data: bytes, limits: PictureLimits = DEFAULT_LIMITS) -> tuple[int, int]:
    """Return the width and height in the header, within the limits; nothing is decoded.

    Raises:
        BadPicture: not an accepted format.
        PictureTooLarge: too many pixels.
    """
    with _opened(data, limits) as picture:
        return picture.size


def cost_of_format(data: bytes) -> int:
    """Return how much memory a pixel takes to decode, against that of most formats."""
    return COST_OF_WEBP if _is_webp(data) else 1


def decode_picture(data: bytes, limits: PictureLimits = DEFAULT_LIMITS) -> NDArray[np.uint8]:
    """Return the pixels, (H, W, 3) uint8 RGB: first frame, turned as EXIF says, on white.

    Raises:
        BadPicture: as `check_header`, or the file is cut off or damaged.
        PictureTooLarge: as `check_header`.
    """
    size = check_header(data, limits)
    if _is_webp(data) and size[0] * size[1] > APART_PIXELS:
        try:
            return decode_apart(data, size)
        except ValueError as error:
            raise _damaged() from error
    return decode_here(data, limits)


def decode_here(data: bytes, limits: PictureLimits) -> NDArray[np.uint8]:
    """Return what `decode_picture` does, in this process whatever the format.

    Raises:
        BadPicture: as `decode_picture`.
    """
    with _opened(data, limits) as picture:
        try:
            picture.load()
            return _pixels(_turned(picture))
        except Exception as error:  # whatever a decoder makes of hostile bytes is the sender's
            raise _damaged() from error


def decoded_elsewhere(data: bytes, limits: PictureLimits) -> Iterator[NDArray[np.uint8]]:
    """Yield the pixels that other programs may have seen in a file: turned as EXIF says and as they
    lie, transparency left out, in any format that Pillow knows. To compare with, not to be served.
    """
    for way in (ImageOps.exif_transpose, lambda picture: picture):
        # Whatever a decoder makes of odd bytes: another way may do, or none.
        with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as picture:
            if picture.width * picture.height <= limits.max_pixels:
                yield np.asarray(way(picture).convert("RGB"))


def decode_stdin() -> None:
    """Write the pixels of the file on stdin to stdout, as `m3model.pictures.apart` reads them: a
    letter first, T where width and height are exchanged. The file was checked by who sent it.
    """
    data = sys.stdin.buffer.read()
    width, _ = check_header(data, CHECKED_BEFORE)
    pixels = decode_here(data, CHECKED_BEFORE)
    sys.stdout.buffer.write(b"S" if pixels.shape[1] == width else b"T")
    sys.stdout.buffer.write(pixels.data.cast("B"))
    sys.stdout.buffer.flush()


def _opened(data: bytes, limits: PictureLimits) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(only_pixels(data)), formats=FORMATS)
    except BadPicture:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large("The picture has far too many pixels.", limits) from error
    except Exception as error:
        raise BadPicture(
            f"The bytes are not a picture in an accepted format. Save it as {FORMAT_NAMES}."
        ) from error
    width, height = picture.size
    most = limits.max_pixels // cost_of_format(data)
    if width * height > most or max(width, height) > limits.max_side_px:
        picture.close()
        raise _too_large(f"The picture has {width} x {height} pixels.", limits, most)
    if data.startswith(PNG):
        _mend_transparency(picture, depth=data[_DEPTH_AT])
    return picture


def _is_webp(data: bytes) -> bool:
    return data[8:12] == b"WEBP"


def _damaged() -> BadPicture:
    return BadPicture(
        f"The picture is cut off or damaged and cannot be decoded. Save it again as {FORMAT_NAMES}."
    )


def _too_large(what: str, limits: PictureLimits, most: int | None = None) -> PictureTooLarge:
    most = limits.max_pixels if most is None else most
    if Image.MAX_IMAGE_PIXELS is not None:
        most = min(most, 2 * Image.MAX_IMAGE_PIXELS)
    return PictureTooLarge(
        f"{what} At most {most:,} pixels and {limits.max_side_px:,} on a side are "
        "accepted. Scale it down."
    )


_DEPTH_AT = 24  # signature, length and name of the first chunk, width, height


def _mend_transparency(picture: Image.Image, depth: int) -> None:
    """Put the colour that a PNG calls transparent on the scale of its pixels in Pillow.

    Pillow spreads 2 and 4 bits over 0 to 255 and keeps the upper half of 16-bit colours, but
    leaves that one colour as the file has it: two bytes, of which the lowest ``depth`` bits count.
    """
    clear = picture.info.get("transparency")
    if picture.mode == "L" and isinstance(clear, int):
        most = 2**depth - 1
        picture.info["transparency"] = (clear & most) * 255 // most
    elif picture.mode == "RGB" and isinstance(clear, tuple):
        picture.info["transparency"] = tuple(
            part >> 8 if depth == 16 else part & 255 for part in clear
        )


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _turned(picture: Image.Image) -> Image.Image:
    """Return the picture as it was held; EXIF that cannot be read turns nothing.

    `PIL.ImageOps.exif_transpose` also writes the EXIF anew, and fails on odd tags although the
    pixels are fine.
    """
    try:
        turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as in a decoder: anything may be raised, and the pixels are good
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _pixels(picture: Image.Image) -> NDArray[np.uint8]:
    """Return the RGB pixels, made in bands: each step on the way would copy the whole picture."""
    width, height = picture.size
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, _ROWS_AT_ONCE):
        bottom = min(top + _ROWS_AT_ONCE, height)
        pixels[top:bottom] = np.asarray(_flat_rgb(picture.crop((0, top, width, bottom))))
    return pixels


def _flat_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(picture)).convert("RGB")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        picture = Image.alpha_composite(white, rgba)
    return picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> NDArray[np.uint8]:
    """Return the upper half of 16-bit grey, as Pillow does with colour; by itself it would clip."""
    grey = np.asarray(picture)
    shades = (grey >> 8).astype(np.uint8)
    clear = picture.info.get("transparency")
    return shades if clear is None else np.where(grey == clear, np.uint8(255), shades)
