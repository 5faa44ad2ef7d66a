"""Pictures that are made to cost much: pixels that are promised, pixels that are there, many parts.

Knows formats as bytes.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from random import Random

from _abuse.pictures import chunk, chunks, good, png, saved, segment, tiff, with_segments
from PIL import Image

# The service decodes so much, and no more.
LARGEST, LARGEST_WEBP = (10_000, 4_900), (10_000, 2_490)


def promised(random: Random) -> bytes:
    """Return a small file whose header promises up to four thousand million pixels."""
    width = random.choice([7_100, 10_000, 16_383, 65_535, 2**31 - 1])
    height = random.choice([7_100, 10_000, 16_383, 65_535, 2**31 - 1])
    short = [min(side, 65_535) for side in (width, height)]
    webp = b"VP8X" + struct.pack("<IB3x", 10, 0) + b"".join(
        (min(side, 16_384) - 1).to_bytes(3, "little") for side in short
    )  # fmt: skip
    gif = b"GIF89a" + struct.pack("<HHBBB", *random.choice([short, [9, 9]]), 0x80, 0, 0) + bytes(6)
    jpeg = bytearray(good(random, "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", *short)
    return random.choice(
        [
            png((width, height), random.choice([1, 8]), random.choice([0, 2]), bytes(99)),
            gif + b"," + struct.pack("<HHHHB", 0, 0, *short, 0) + b"\2\1\0\0;",
            b"RIFF" + struct.pack("<I", 4 + len(webp)) + b"WEBP" + webp,
            bytes(jpeg),
        ]
    )


@cache
def _largest(number: int) -> bytes:
    kind, mode, options = [
        ("PNG", "RGB", {}), ("PNG", "1", {}), ("PNG", "RGBA", {}),
        ("JPEG", "L", {"progressive": True}), ("JPEG", "RGB", {"progressive": True}),
        ("WEBP", "RGB", {"lossless": True, "quality": 0, "method": 0}), ("GIF", "L", {}),
    ][number]  # fmt: skip
    size = LARGEST_WEBP if kind == "WEBP" else LARGEST
    return saved(Image.new(str(mode), size), str(kind), **options)  # type: ignore[arg-type]


def unfolded(random: Random) -> bytes:
    """Return a real picture of 49 million pixels; never the same twice."""
    number = random.randrange(7)
    data = _largest(number)
    mark = random.randbytes(8)
    if number < 3:
        return data[:-12] + chunk(b"mArk", mark) + data[-12:]
    return data + mark


def many_parts(random: Random) -> bytes:
    """Return a small picture in a file of very many parts, of megabytes."""
    n = random.choice([20_000, 200_000, 1_000_000])
    jpeg, gif = good(random, "JPEG"), good(random, "GIF")
    frame = gif.index(b",", 13 + 3 * 2 ** ((gif[10] & 7) + 1))
    first, *rest = chunks(good(random, "PNG"))
    grey = saved(Image.new("L", (1600, 1500), 90), "JPEG", progressive=True)
    scan = grey[grey.rindex(b"\xff\xda") : -2]
    start = b"\x89PNG\r\n\x1a\n" + first
    ways: list[Callable[[], bytes]] = [
        lambda: with_segments(jpeg, b"\xff" * n),
        lambda: with_segments(jpeg, segment(0xE5, b"") * n),
        lambda: with_segments(jpeg, *[segment(0xE1, b"Exif\0\0" + bytes(60_000))] * (n // 20_000)),
        lambda: grey[:-2] + scan * (n // 20) + grey[-2:],
        lambda: gif[:frame] + b"!\xfe" + b"\1a" * n + b"\0" + gif[frame:],
        lambda: gif[:frame] + b"!\1\1a\0" * n + gif[frame:],
        lambda: start + chunk(b"prVt") * (n // 4) + b"".join(rest),
        lambda: start + chunk(b"IDAT") * (n // 4) + b"".join(rest),
        lambda: (
            start + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000))) + b"".join(rest)
        ),
        lambda: start + chunk(b"eXIf", _greedy()) + b"".join(rest),
        lambda: with_segments(jpeg, segment(0xE1, b"Exif\0\0" + _greedy()[:60_000])),
        _frames,
    ]
    return random.choice(ways)()


def _greedy() -> bytes:
    """Return EXIF of many tags, each of which holds nearly the whole of it."""
    entries = [(n, 7, 900_000, struct.pack(">I", 8)) for n in range(4_000)]
    return tiff(*entries) + bytes(1_000_000)


@cache
def _frames() -> bytes:
    frames = [Image.new("RGB", (16, 16), (n % 256, n // 256, 0)) for n in range(3_000)]
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    return file.getvalue()


BOMBS: dict[str, Callable[[Random], bytes]] = {"promised": promised, "many_parts": many_parts}
COSTLY: dict[str, Callable[[Random], bytes]] = {"unfolded": unfolded}
