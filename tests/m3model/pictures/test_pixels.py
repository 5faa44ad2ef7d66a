"""Good files from strangers become the right pixels, whatever else is in them.

The truth is counted out in numpy.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from m3model.pictures import check_header, decode_picture

from .conftest import (
    GREY,
    GREY_ALPHA,
    LIMITS,
    NOISE,
    PALETTE,
    PIXELS,
    RGB,
    chunk,
    exif,
    png,
    row_of,
    saved,
    with_extensions,
    with_segments,
)


def greys(*shades: int) -> list[list[int]]:
    return [[shade] * 3 for shade in shades]


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_formats_give_the_pixels_back(kind: str) -> None:
    decoded = decode_picture(saved(Image.fromarray(PIXELS), kind, lossless=True), LIMITS)
    assert np.array_equal(decoded, PIXELS)
    assert decoded.dtype == np.uint8


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("PNG", "RGB", {}), ("PNG", "RGBA", {}), ("PNG", "LA", {}), ("PNG", "L", {}),
        ("PNG", "1", {}), ("PNG", "P", {}), ("PNG", "P", {"transparency": 7}),
        ("PNG", "P", {"transparency": bytes(range(256))}), ("PNG", "L", {"transparency": 60}),
        ("PNG", "RGB", {"transparency": (0, 128, 255)}), ("GIF", "P", {"transparency": 7}),
        ("GIF", "P", {}), ("JPEG", "RGB", {}), ("JPEG", "CMYK", {}), ("JPEG", "L", {}),
        ("WEBP", "RGBA", {"lossless": True}), ("WEBP", "RGB", {}),
    ],
)  # fmt: skip
def test_pixels_made_in_bands_are_those_of_the_whole(
    kind: str, mode: str, options: dict[str, object]
) -> None:
    random = np.random.default_rng(3)
    coarse = random.integers(0, 3, (700, 90, 4), dtype=np.uint8) * np.uint8(127)
    data = saved(Image.fromarray(coarse).convert(mode), kind, **options)
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        white = Image.new("RGBA", picture.size, "white")
        if picture.has_transparency_data:
            whole = Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
        else:
            whole = picture.convert("RGB")
    assert np.array_equal(decode_picture(data), np.asarray(whole))


@pytest.mark.parametrize(
    ("mode", "stored", "rgb"),
    [
        ("RGB", (200, 30, 60), (200, 30, 60)),
        ("L", 77, (77, 77, 77)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
    ],
)
def test_jpeg_keeps_its_colours(
    mode: str, stored: tuple[int, ...] | int, rgb: tuple[int, ...]
) -> None:
    data = saved(Image.new(mode, (16, 16), stored), "JPEG", quality=95)
    assert np.abs(decode_picture(data).astype(int) - rgb).max() <= 3


def test_few_bits_a_pixel() -> None:
    assert row_of(png((4, 1), 1, GREY, bytes([0b0101_0000]))) == greys(0, 255, 0, 255)
    assert row_of(png((4, 1), 2, GREY, bytes([0b00_01_10_11]))) == greys(0, 85, 170, 255)
    assert row_of(png((2, 1), 4, GREY, bytes([0x3F]))) == greys(51, 255)
    colours = chunk(b"PLTE", bytes([255, 0, 0, 0, 200, 0, 0, 0, 100]))
    for depth, row in ((2, bytes([0b10_00_01_00])), (4, bytes([0x20, 0x10])), (8, b"\2\0\1")):
        assert row_of(png((3, 1), depth, PALETTE, row, colours)) == [
            [0, 0, 100], [255, 0, 0], [0, 200, 0],
        ]  # fmt: skip


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64)
    grey = decode_picture(saved(Image.fromarray(values), "PNG"))
    assert np.array_equal(grey, np.repeat(values[..., None] // 256, 3, axis=2))
    row = values[0].astype(">u2")
    colour = decode_picture(png((64, 1), 16, RGB, np.repeat(row, 3).tobytes()))
    assert np.array_equal(colour[0], grey[0])  # the same shades, whichever way they are stored
    opaque = np.stack([row, np.full_like(row, 65535)], axis=1).astype(">u2")
    with_alpha = decode_picture(png((64, 1), 16, GREY_ALPHA, opaque.tobytes()))
    assert np.array_equal(with_alpha[0], grey[0])


def on_white(colour: NDArray[np.int64], alpha: NDArray[np.int64]) -> NDArray[np.float64]:
    return (colour * alpha + 255 * (255 - alpha)) / 255


def test_transparent_colours_are_laid_on_white() -> None:
    alpha, colour = np.meshgrid(np.arange(256), [0, 1, 100, 254, 255], indexing="ij")
    rgba = np.stack([colour, 255 - colour, colour // 2, alpha], axis=2).astype(np.uint8)
    truth = on_white(rgba[..., :3].astype(int), alpha[..., None])
    for kind in ("PNG", "WEBP"):
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        decoded = decode_picture(saved(Image.fromarray(rgba), kind, **options))
        assert np.abs(decoded - truth).max() < 1
        assert (decoded[0] == 255).all()
        assert np.array_equal(decoded[255], rgba[255, :, :3])


def test_transparent_greys_are_laid_on_white() -> None:
    alpha, shade = np.meshgrid(np.arange(256), [0, 100, 255], indexing="ij")
    la = np.stack([shade, alpha], axis=2).astype(np.uint8)
    decoded = decode_picture(saved(Image.fromarray(la, "LA"), "PNG"))
    assert np.abs(decoded - on_white(shade, alpha)[..., None]).max() < 1
    assert (decoded[0] == 255).all()
    half = struct.pack(">4H", 0x4000, 0xFFFF, 0x4000, 0x8000)  # 16 bits: shade 64, alpha 128
    assert row_of(png((2, 1), 16, GREY_ALPHA, half)) == greys(64, 159)


def test_transparent_entries_of_a_palette() -> None:
    colours = chunk(b"PLTE", bytes([255, 0, 0, 0, 255, 0, 0, 0, 255]))
    alphas = chunk(b"tRNS", bytes([255, 128, 0]))
    assert row_of(png((3, 1), 8, PALETTE, b"\0\1\2", colours, alphas)) == [
        [255, 0, 0], [127, 255, 127], [255, 255, 255],
    ]  # fmt: skip
    one = chunk(b"tRNS", bytes([0]))
    assert row_of(png((2, 1), 8, PALETTE, b"\0\1", colours, one)) == [[255] * 3, [0, 255, 0]]


@pytest.mark.parametrize(
    ("depth", "colour", "row", "clear", "expected"),
    [
        (1, GREY, bytes([0b0101_0000]), [0], greys(255, 255, 255, 255)),
        (1, GREY, bytes([0b0101_0000]), [1], greys(0, 255, 0, 255)),
        (2, GREY, bytes([0b00_01_10_11]), [1], greys(0, 255, 170, 255)),
        (4, GREY, bytes([0x03, 0x5F]), [3], greys(0, 255, 85, 255)),
        (8, GREY, bytes([0, 100, 101, 7]), [0x0164], greys(0, 255, 101, 7)),
        (16, GREY, struct.pack(">4H", 0, 0x4000, 0x4001, 0x8000), [0x4000],
         greys(0, 255, 64, 128)),
        (8, RGB, bytes([1, 2, 3, 1, 2, 4, 9, 9, 9, 0, 0, 0]), [0x0101, 2, 3],
         [[255] * 3, [1, 2, 4], [9] * 3, [0] * 3]),
        (16, RGB, struct.pack(">12H", 0x1234, 0, 0, 0x5678, 0, 0, *[0xFFFF] * 6), [0x1234, 0, 0],
         [[255] * 3, [0x56, 0, 0], [255] * 3, [255] * 3]),
    ],
)  # fmt: skip
def test_the_one_colour_that_a_png_calls_transparent(
    depth: int, colour: int, row: bytes, clear: list[int], expected: list[list[int]]
) -> None:
    told = chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear))
    assert row_of(png((4, 1), depth, colour, row, told)) == expected


# Where the file's first row and first column are seen (Exif 3.0, tag 274).
SIDES = {
    1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
    5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
}  # fmt: skip


def as_seen(stored: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    height, width, _ = stored.shape
    first_row, first_column = SIDES[orientation]
    upright = first_row in ("top", "bottom")
    seen = np.zeros((height, width, 3) if upright else (width, height, 3), np.uint8)
    for row in range(height):
        for column in range(width):
            along = row if first_row in ("top", "left") else height - 1 - row
            across = column if first_column in ("top", "left") else width - 1 - column
            seen[(along, across) if upright else (across, along)] = stored[row, column]
    return seen


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", SIDES)
def test_all_orientations(kind: str, orientation: int) -> None:
    picture = Image.fromarray(PIXELS)
    stored = decode_picture(saved(picture, kind, lossless=True))
    turned = decode_picture(saved(picture, kind, lossless=True, exif=exif(orientation)))
    assert np.array_equal(turned, as_seen(stored, orientation))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "I;16"])
def test_every_mode_is_turned(mode: str) -> None:
    grey = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
    picture = grey.convert("L").convert(mode) if mode != "I;16" else grey.convert("I;16")
    stored = decode_picture(saved(picture, "PNG"))
    turned = decode_picture(saved(picture, "PNG", exif=exif(6)))
    assert np.array_equal(turned, as_seen(stored, 6))


def test_older_programs_hide_the_orientation_in_text() -> None:
    row = bytes(range(6))
    raw = exif(3).tobytes()
    told = f"\nexif\n{len(raw):8}\n{raw.hex()}\n".encode()
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="3"/></x:xmpmeta>'
    for text in (
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(told)),
        chunk(b"tEXt", b"Raw profile type exif\0" + told),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
    ):
        assert row_of(png((2, 1), 8, RGB, row, text)) == [[3, 4, 5], [0, 1, 2]]


def with_exif(jpeg: bytes, tiff: bytes) -> bytes:
    body = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def tiff(*entries: tuple[int, int, int, bytes]) -> bytes:
    lines = [struct.pack(">HHI", *entry[:3]) + entry[3] for entry in entries]
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", len(lines)) + b"".join(lines) + bytes(64)


SIXTH = (0x0112, 3, 1, b"\0\6\0\0")


def test_odd_tags_beside_the_orientation_are_no_matter() -> None:
    plain = saved(Image.fromarray(PIXELS), "JPEG")
    odd = with_exif(plain, tiff(SIXTH, (0x011A, 3, 1, b"\0\1\0\0"), (0x0131, 12, 1, bytes(4))))
    with pytest.raises(Exception), Image.open(io.BytesIO(odd)) as picture:  # noqa: B017, PT011
        ImageOps.exif_transpose(picture)
    assert np.array_equal(decode_picture(odd), as_seen(decode_picture(plain), 6))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(
    "broken", [b"garbage", b"MM\0*\xff\xff\xff\xff", tiff((0x0112, 2, 2, b"a\0\0\0")), b""]
)
def test_broken_exif_turns_nothing_and_refuses_nothing(broken: bytes) -> None:
    jpeg = saved(Image.fromarray(PIXELS), "JPEG")
    assert np.array_equal(decode_picture(with_exif(jpeg, broken)), decode_picture(jpeg))
    assert row_of(png((1, 1), 8, RGB, b"\1\2\3", chunk(b"eXIf", broken))) == [[1, 2, 3]]


MEGABYTES = zlib.compress(b"x" * 1_200_000)
BESIDES = {
    "compressed text": chunk(b"zTXt", b"workflow\0\0" + MEGABYTES),
    "international text": chunk(b"iTXt", b"workflow\0\1\0\0\0" + MEGABYTES),
    "plain text": chunk(b"tEXt", b"workflow\0" + b"x" * 1_200_000),
    "much text": 70 * chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"x" * 1_000_000)),
    "text with a wrong checksum": chunk(b"tEXt", b"a\0b")[:-1] + b"!",
    "text in an unknown compression": chunk(b"zTXt", b"a\0\7b"),
    "large profile": chunk(b"iCCP", b"profile\0\0" + MEGABYTES),
    "short gamma": chunk(b"gAMA", b"1"),
    "short resolution": chunk(b"pHYs", b"1"),
    "no animation": chunk(b"acTL", bytes(8)),
    "something private": chunk(b"prVt", b"abc"),
}


@pytest.mark.parametrize("besides", BESIDES.values(), ids=BESIDES)
def test_what_a_png_says_besides_its_pixels_is_not_read(besides: bytes) -> None:
    row = bytes(range(12))
    expected = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    for data in (png((4, 1), 8, RGB, row, besides), png((4, 1), 8, RGB, row, after=besides)):
        check_header(data)
        assert row_of(data) == expected


def test_what_a_jpeg_says_besides_its_pixels_is_not_read() -> None:
    jpeg = saved(Image.fromarray(NOISE), "JPEG")
    comment = b"\xff\xfe" + struct.pack(">H", 12) + b"\xff\xda in text"[:10]
    profile = b"\xff\xe2" + struct.pack(">H", 20) + b"ICC_PROFILE\0\1\1abcd"
    for besides in (comment, profile, b"\xff" * 9, b"junk", b"\xff\xe5\0\2" * 1000):
        assert np.array_equal(decode_picture(with_segments(jpeg, besides)), decode_picture(jpeg))
    turned = with_exif(with_segments(jpeg, comment), tiff(SIXTH))
    assert np.array_equal(decode_picture(turned), as_seen(decode_picture(jpeg), 6))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_keeps_its_colours_whatever_is_dropped(mode: str) -> None:
    jpeg = saved(Image.fromarray(NOISE).convert(mode), "JPEG", quality=95, progressive=True)
    with Image.open(io.BytesIO(jpeg)) as picture:
        assert np.array_equal(decode_picture(jpeg), np.asarray(picture.convert("RGB")))


def test_what_a_gif_says_besides_its_pixels_is_not_read() -> None:
    picture = Image.fromarray(NOISE).quantize(200)
    gif = saved(picture, "GIF", transparency=3)
    assert (decode_picture(gif) == 255).all(axis=2).any()
    for besides in (
        b"!\xfe\5a,b;c\0",
        b"junk",
        b"!\xff\x0bNETSCAPE2.0\3\1\0\0\0",
        b"!\1\1a\0" * 99,
    ):
        assert np.array_equal(decode_picture(with_extensions(gif, besides)), decode_picture(gif))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "MPO"])
def test_several_frames_give_the_first(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], quality=95)
    assert decode_picture(data, LIMITS).shape == (16, 16, 3)
    assert np.abs(decode_picture(data, LIMITS).astype(int) - (255, 0, 0)).max() <= 2


def test_a_gif_may_be_transparent() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 255, 0])
    picture.putpixel((1, 0), 1)
    assert row_of(saved(picture, "GIF", transparency=1)) == [[255, 0, 0], [255] * 3]
    assert row_of(saved(picture, "GIF")) == [[255, 0, 0], [0, 255, 0]]
