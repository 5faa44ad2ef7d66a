"""Bad and too large files from strangers are refused with a sentence, and decoding harms nobody."""

from __future__ import annotations

import copy
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m3model.errors import BadPicture, PictureTooLarge
from m3model.pictures import CHECKED_BEFORE, PictureLimits, check_header, decode_picture, decoding

from .conftest import (
    LIMITS,
    NOISE,
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

ROOT = Path(__file__).resolve().parents[3]


def test_files_of_more_parts_than_pictures_have_are_refused() -> None:
    small = Image.fromarray(NOISE)
    jpeg, gif = saved(small, "JPEG"), saved(small.quantize(200), "GIF")
    grey = saved(Image.new("L", (64, 64), 90), "JPEG", progressive=True)
    scan = grey[grey.rindex(b"\xff\xda") : -2]
    for bomb in (
        with_segments(jpeg, b"\xff\xe5\0\2" * 60_000),
        with_extensions(gif, b"!\xfe" + b"\1a" * 60_000 + b"\0"),
        with_extensions(gif, b" " + b"!\xfe\1a\0" * 60_000),
        png((2, 1), 8, RGB, bytes(6), chunk(b"prVt") * 60_000),
        grey[:-2] + scan * 100 + grey[-2:],
    ):
        for read in (check_header, decode_picture):
            with pytest.raises(BadPicture, match="more parts than") as caught:
                read(bomb)
            assert caught.value.code == "invalid_image"
    assert decode_picture(grey[:-2] + scan * 50 + grey[-2:]).shape == (64, 64, 3)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_truncated_pictures_are_refused(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), kind)
    with pytest.raises(BadPicture, match="Save it") as caught:
        decode_picture(data[: int(len(data) * share)], LIMITS)
    assert caught.value.code == "invalid_image"


def test_a_png_that_is_cut_off_in_a_text_behind_its_pixels_is_refused() -> None:
    whole = png((1, 1), 8, RGB, b"\1\2\3", after=chunk(b"tEXt", b"a\0" + b"b" * 1000))
    assert row_of(whole) == [[1, 2, 3]]
    with pytest.raises(BadPicture, match="cut off"):
        decode_picture(whole[:-500])


def test_damaged_pixels_are_refused() -> None:
    good = png((4, 1), 8, RGB, bytes(range(12)))
    at = good.index(b"IDAT") + 6
    with pytest.raises(BadPicture, match="damaged"):
        decode_picture(good[:at] + b"\xff" * 4 + good[at + 4 :])


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(BadPicture, match="accepted format"):
        check_header(saved(Image.fromarray(PIXELS), kind), LIMITS)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" * 9])
def test_bytes_that_are_no_picture_are_refused(data: bytes) -> None:
    with pytest.raises(BadPicture) as caught:
        decode_picture(data, LIMITS)
    assert caught.value.code == "invalid_image"


@pytest.mark.parametrize("size", [(30_000, 30_000), (101, 100), (201, 1), (9500, 9500)])
def test_too_many_pixels_are_refused_before_decoding(size: tuple[int, int]) -> None:
    bomb = png(size, 8, RGB)  # without one pixel: decoding it would fail otherwise
    for read in (check_header, decode_picture):
        with pytest.raises(PictureTooLarge, match="Scale it down") as caught:
            read(bomb, LIMITS)
        assert caught.value.code == "image_too_large"


def test_too_large_in_every_format() -> None:
    colours = bytes(6)
    gif = b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0x80, 0, 0) + colours
    frame = b"," + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0) + b"\2\1\0\0;"
    webp = b"VP8X" + struct.pack("<IB3x", 10, 0) + 2 * (16_382).to_bytes(3, "little")
    for bomb in (
        gif + frame,
        b"RIFF" + struct.pack("<I", 4 + len(webp)) + b"WEBP" + webp,
        saved(Image.new("L", (201, 2)), "JPEG"),
    ):
        with pytest.raises(PictureTooLarge):
            check_header(bomb, LIMITS)


def test_limits_that_are_just_met() -> None:
    assert decode_picture(saved(Image.new("L", (100, 100)), "PNG"), LIMITS).shape == (100, 100, 3)
    assert decode_picture(saved(Image.new("L", (200, 50)), "PNG"), LIMITS).shape == (50, 200, 3)
    tall = saved(Image.new("1", (1, 20_000)), "PNG")
    assert decode_picture(tall, CHECKED_BEFORE).shape == (20_000, 1, 3)
    with pytest.raises(PictureTooLarge, match="10,000 on a side"):
        decode_picture(tall)


def test_errors_travel_between_processes() -> None:
    for error in (BadPicture("Save it again."), PictureTooLarge("Scale it down.")):
        again = copy.copy(error)  # by the same protocol as between processes
        assert (type(again), str(again), again.code) == (type(error), str(error), error.code)
        assert isinstance(again, ValueError)


def test_importing_is_light_and_leaves_pillow_as_it_was() -> None:
    code = """
import io, sys
from PIL import Image, ImageFile, PngImagePlugin

def state():
    return (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES,
            PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)

before = state()
from m3model.pictures import decode_picture
buffer = io.BytesIO()
Image.new("RGB", (2, 2)).save(buffer, "PNG")
decode_picture(buffer.getvalue())
assert state() == before, state()
assert not {"torch", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_large_webp_is_decoded_in_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    small = Image.fromarray(random.integers(0, 256, (50, 70, 3), dtype=np.uint8))
    plain = saved(small, "WEBP", lossless=True)
    turned = saved(small, "WEBP", lossless=True, exif=exif(6))
    here = [decode_picture(data) for data in (plain, turned)]
    monkeypatch.setattr(decoding, "APART_PIXELS", 100)
    monkeypatch.setattr(decoding, "decode_here", None)  # here it is not done
    for data, expected in zip((plain, turned), here, strict=True):
        assert np.array_equal(decode_picture(data), expected)
    for data in (plain[: len(plain) // 2], plain[:30] + b"\xff" * 60 + plain[90:]):
        with pytest.raises(BadPicture, match="Save it"):
            decode_picture(data)


def test_a_webp_may_have_half_the_pixels() -> None:
    limits = PictureLimits(max_pixels=100, max_side_px=100)
    assert decode_picture(saved(Image.new("L", (10, 5)), "WEBP"), limits).shape == (5, 10, 3)
    with pytest.raises(PictureTooLarge, match="At most 50 pixels"):
        decode_picture(saved(Image.new("L", (51, 1)), "WEBP"), limits)
    assert decode_picture(saved(Image.new("L", (10, 10)), "PNG"), limits).shape == (10, 10, 3)
