"""Picture objects as PNG: the pixels that the service would read from the picture's file.

Knows Pillow and numpy, which load only when a picture of their kind is sent; knows no connection.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

ORIENTATION = 0x0112  # the EXIF tag


def png_of(picture: Image | np.ndarray[Any, Any]) -> bytes:
    """Return a Pillow image of any mode, or an array, as PNG.

    An image that is to be turned, as EXIF says, is sent with that tag: the service turns it.

    Raises:
        TypeError: what is meant cannot be known; the message says what to do.
    """
    from PIL import Image as pillow

    image = picture if isinstance(picture, pillow.Image) else _image_of(picture)
    if not image.width or not image.height:
        raise TypeError("a picture needs pixels; this one has none")
    exif: pillow.Exif | bytes = b""
    if (orientation := _orientation(image)) != 1:
        exif = pillow.Exif()
        exif[ORIENTATION] = orientation
    buffer = io.BytesIO()
    _as_png_holds_it(image).save(buffer, format="PNG", exif=exif, icc_profile=None)
    return buffer.getvalue()


def _image_of(picture: Any) -> Image:
    from PIL import Image as pillow

    if not hasattr(picture, "__array_interface__"):
        raise TypeError(
            "a picture is a path, bytes, a PIL image or a (H, W, 3) uint8 array, "
            f"not {type(picture).__name__}"
        )
    if str(picture.dtype) != "uint8":
        raise TypeError(
            f"a picture array must be uint8 in 0..255, not {picture.dtype}; scale it to 0..255 and "
            "use .astype('uint8')"
        )
    if picture.ndim == 3 and picture.shape[2] == 1:
        picture = picture[:, :, 0]
    if picture.ndim != 2 and (picture.ndim != 3 or picture.shape[2] not in (3, 4)):
        shape = tuple(picture.shape)
        channels_first = picture.ndim == 3 and shape[0] in (1, 3, 4)
        raise TypeError(
            f"a picture array is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), not {shape}"
            + ("; use .transpose(1, 2, 0)" if channels_first else "; send one picture at a time")
        )
    return pillow.fromarray(picture)


def _orientation(image: Image) -> int:
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # as in the service: EXIF that cannot be read turns nothing
        return 1
    return orientation if orientation in range(2, 9) else 1


def _as_png_holds_it(image: Image) -> Image:
    """Return the image in a mode that PNG has, converted as the service converts a file's."""
    if image.mode.startswith("I;16"):
        return image if image.mode == "I;16" else _native(image)
    if image.mode in ("I", "F"):
        _check_range(image)
        return image.convert("L")
    if image.mode == "La":  # Pillow knows only this way out of it
        image = image.convert("LA")
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("1", "L", "RGB") else image.convert("RGB")


def _native(image: Image) -> Image:
    """Return 16-bit shades in this machine's order of bytes; Pillow would clip them at 255."""
    import numpy as np
    from PIL import Image as pillow

    return pillow.fromarray(np.asarray(image).astype(np.uint16))


def _check_range(image: Image) -> None:
    """Return if 32-bit shades are meant as 0 to 255: no file says what others mean."""
    import numpy as np

    shades = np.asarray(image)
    low, high = shades.min(), shades.max()
    fractions = image.mode == "F" and 0 < high <= 1
    if fractions or not (low >= 0 and high <= 255):  # neither holds for nan
        raise TypeError(
            f"a picture of Pillow's mode {image.mode} must have shades from 0 to 255, not from "
            f"{low:g} to {high:g}; scale them" + (", or use mode I;16" * (image.mode == "I"))
        )
