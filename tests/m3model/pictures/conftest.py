"""Files of pictures made by hand where Pillow would not write them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from m3model.pictures import PictureLimits, decode_picture

LIMITS = PictureLimits(max_pixels=10_000, max_side_px=200)
PIXELS = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6  # colour types of PNG


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes = b"") -> bytes:
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


def png(
    size: tuple[int, int], depth: int, colour: int, row: bytes = b"", *before: bytes,
    after: bytes = b"",
) -> bytes:  # fmt: skip
    """A PNG of equal rows, with chunks before and after its pixels."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    rows = zlib.compress(size[1] * (b"\0" + row) if row else b"")
    pixels = chunk(b"IDAT", rows)
    signature = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return signature + b"".join(before) + pixels + after + chunk(b"IEND")


def row_of(data: bytes) -> list[list[int]]:
    """The pixels of a picture that is one row high."""
    (row,) = decode_picture(data).tolist()
    return row


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def with_extensions(gif: bytes, extensions: bytes) -> bytes:
    frame = gif.index(b",", 13 + 3 * 2 ** ((gif[10] & 7) + 1))
    return gif[:frame] + extensions + gif[frame:]


NOISE = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
