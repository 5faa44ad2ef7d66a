"""Pictures from strangers: every accepted form gives the right pixels, every bad one a sentence."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from serve.errors import BadRequest
from serve.pictures import bytes_of_data_url, check_header, decode_picture
from serve.settings import PictureLimits

LIMITS = PictureLimits(max_pixels=10_000, max_side_px=200)
PIXELS = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(4, 6, 3) * 3


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of any size in 60 bytes: signature, IHDR and an empty IDAT."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_formats_give_the_pixels_back(kind: str) -> None:
    data = saved(Image.fromarray(PIXELS), kind, lossless=True)
    assert np.array_equal(decode_picture(data, LIMITS), PIXELS)


def test_jpeg_is_turned_as_its_exif_says() -> None:
    # Orientation 6: the camera was turned, rows become columns. Left half red, right half blue.
    flat = np.zeros((32, 64, 3), np.uint8)
    flat[:, :32, 0] = 255
    flat[:, 32:, 2] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode_picture(saved(Image.fromarray(flat), "JPEG", exif=exif), LIMITS)
    assert turned.shape == (64, 32, 3)
    assert turned[8, 16].argmax() == 0
    assert turned[56, 16].argmax() == 2


def test_transparency_is_laid_on_white() -> None:
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (10, 20, 30, 255)
    decoded = decode_picture(saved(Image.fromarray(rgba), "PNG"), LIMITS)
    assert decoded[0, 0].tolist() == [10, 20, 30]
    assert decoded[1, 1].tolist() == [255, 255, 255]


def test_sixteen_bit_grey_keeps_its_shades() -> None:
    grey = np.array([[0, 0x4000], [0x8000, 0xFFFF]], np.uint16)
    decoded = decode_picture(saved(Image.fromarray(grey), "PNG"), LIMITS)
    assert decoded[..., 0].tolist() == [[0, 0x40], [0x80, 0xFF]]


def test_gif_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "lime")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_picture(data, LIMITS)[2, 2].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(BadRequest, match="accepted format"):
        check_header(saved(Image.fromarray(PIXELS), kind), LIMITS)


@pytest.mark.parametrize(
    ("width", "height"), [(30_000, 30_000), (101, 100), (201, 1), (9500, 9500)]
)
def test_too_many_pixels_are_refused_before_decoding(width: int, height: int) -> None:
    with pytest.raises(BadRequest, match="Scale it down") as caught:
        check_header(png_header(width, height), LIMITS, "somewhere")
    assert (caught.value.code, caught.value.param) == ("image_too_large", "somewhere")


def test_a_picture_within_the_limits_passes() -> None:
    check_header(png_header(100, 100), LIMITS)


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_truncated_pictures_are_refused(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    data = saved(Image.fromarray(noise), kind)
    with pytest.raises(BadRequest):
        decode_picture(data[: int(len(data) * share)], LIMITS)


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0" * 9])
def test_bytes_that_are_no_picture_are_refused(data: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        decode_picture(data, LIMITS)
    assert caught.value.code == "invalid_image"


def test_data_urls_give_their_bytes() -> None:
    data = bytes(range(256))
    text = base64.b64encode(data).decode()
    for head in ("data:image/png;base64,", "DATA:image/png;charset=x;BASE64,", "data:;base64,"):
        assert bytes_of_data_url(head + text, "p") == data
    folded = "data:image/png;base64," + "\n".join(text[i : i + 60] for i in range(0, len(text), 60))
    assert bytes_of_data_url(folded, "p") == data


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://example.org/a.png", "remote_images_unsupported"),
        ("HTTPS://169.254.169.254/latest", "remote_images_unsupported"),
        ("file:///etc/passwd", "invalid_image"),
        ("a.png", "invalid_image"),
        ("", "invalid_image"),
        ("data:image/png,abc", "invalid_image"),
        ("data:image/png;base64,", "invalid_image"),
        ("data:image/png;base64,!!!!", "invalid_base64"),
        ("data:image/png;base64,AAA", "invalid_base64"),
        ("data:image/png;base64,ÄÖÜ=", "invalid_base64"),
    ],
)
def test_other_urls_are_refused(url: str, code: str) -> None:
    with pytest.raises(BadRequest) as caught:
        bytes_of_data_url(url, "p")
    assert caught.value.code == code
    assert caught.value.param == "p"
