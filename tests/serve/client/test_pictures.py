"""One picture means the same pixels, whichever way it is handed over."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from m3model.pictures import decode_picture
from serve.client import M3Client
from serve.client.wire import data_url

RED, HALF_CLEAR = (255, 0, 0), (0, 0, 255, 128)
Pixels = NDArray[np.uint8]


def arrived(picture: Any) -> Pixels:
    """Return the pixels that the service reads of what the client sends."""
    header, _, payload = data_url(picture).partition(",")
    assert header.startswith("data:image/")
    return decode_picture(base64.b64decode(payload))


def colours(size: tuple[int, int] = (13, 9)) -> Image.Image:
    random = np.random.default_rng(3)
    return Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def with_alpha() -> Image.Image:
    image = colours().convert("RGBA")
    image.paste(HALF_CLEAR, (2, 2, 6, 6))
    image.paste((0, 0, 0, 0), (6, 0, 9, 9))
    return image


def sixteen_bits() -> Image.Image:
    return Image.fromarray((np.arange(117, dtype=np.uint16) * 555).reshape(9, 13))


def with_clear_colour(mode: str) -> tuple[Image.Image, dict[str, Any]]:
    image = colours().convert(mode)
    return image, {"transparency": image.getpixel((4, 4))}


def turned(orientation: int) -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


FILES: dict[str, tuple[str, Image.Image, dict[str, Any]]] = {
    "CMYK": ("JPEG", colours((64, 64)).convert("CMYK"), {"quality": 95}),
    "JPEG": ("JPEG", colours(), {}),
    "grey JPEG": ("JPEG", colours().convert("L"), {}),
    "1": ("PNG", colours().convert("1"), {}),
    "L": ("PNG", colours().convert("L"), {}),
    "LA": ("PNG", with_alpha().convert("LA"), {}),
    "P": ("PNG", colours().quantize(7), {}),
    "P of RGBA": ("PNG", with_alpha().quantize(16, method=Image.Quantize.FASTOCTREE), {}),
    "RGBA": ("PNG", with_alpha(), {}),
    "I;16": ("PNG", sixteen_bits(), {}),
    "I;16 with a clear shade": ("PNG", sixteen_bits(), {"transparency": 5550}),
    "clear grey": ("PNG", *with_clear_colour("L")),
    "clear colour": ("PNG", *with_clear_colour("RGB")),
    "GIF": ("GIF", with_alpha(), {}),
    "WebP": ("WEBP", with_alpha(), {}),
    **{f"turned {n}": ("JPEG", colours((40, 20)), turned(n)) for n in range(1, 10)},
    "turned PNG": ("PNG", colours(), turned(6)),
    "turned 16 bits": ("PNG", sixteen_bits(), turned(8)),
}


@pytest.mark.parametrize("name", FILES)
def test_path_bytes_and_image_are_one_picture(name: str, tmp_path: Path) -> None:
    kind, image, options = FILES[name]
    path = tmp_path / f"picture.{kind.lower()}"
    image.save(path, kind, **options)
    expected = decode_picture(path.read_bytes())
    with Image.open(path) as opened:
        for picture in (path, str(path), path.read_bytes(), opened):
            np.testing.assert_array_equal(arrived(picture), expected)


def test_an_image_that_its_owner_turned_is_not_turned_again(tmp_path: Path) -> None:
    colours((40, 20)).save(tmp_path / "a.jpg", **turned(6))
    with Image.open(tmp_path / "a.jpg") as image:
        upright = ImageOps.exif_transpose(image)
    assert arrived(upright).shape == (40, 20, 3)
    np.testing.assert_array_equal(arrived(upright), np.asarray(upright))


# Modes that no accepted file has: red, or its half clear blue on white, whatever it is called.
@pytest.mark.parametrize(
    ("mode", "tolerance"), [("CMYK", 0), ("YCbCr", 2), ("HSV", 0), ("RGBX", 0), ("LAB", 6)]
)
def test_colours_stay_in_modes_that_png_lacks(mode: str, tolerance: int) -> None:
    red = Image.new("RGB", (9, 7), RED)
    image = red.convert(mode)
    assert image.mode == mode
    found = arrived(image)
    assert found.shape == (7, 9, 3)
    assert np.abs(found.astype(int) - RED).max() <= tolerance


@pytest.mark.parametrize("mode", ["RGBa", "La", "PA"])
def test_transparency_lies_on_white_in_modes_that_png_lacks(mode: str) -> None:
    half, expected = Image.new("RGBA", (9, 7), HALF_CLEAR), (127, 127, 255)
    if mode == "La":  # blue is a grey of 29
        half, expected = half.convert("LA"), (141, 141, 141)
    image = half.convert(mode)
    assert image.mode == mode
    assert np.abs(arrived(image).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("mode", ["I", "F"])
def test_wide_shades_from_0_to_255_are_shades(mode: str) -> None:
    grey = colours().convert("L")
    np.testing.assert_array_equal(arrived(grey.convert(mode)), arrived(grey))
    np.testing.assert_array_equal(arrived(Image.new(mode, (9, 9))), np.zeros((9, 9, 3)))


@pytest.mark.parametrize("mode", ["I;16L", "I;16B", "I;16N"])
def test_sixteen_bits_in_either_order_are_scaled(mode: str) -> None:
    image = Image.new(mode, (9, 9))
    image.putpixel((2, 3), 40_000)
    found = arrived(image)
    assert found[3, 2].tolist() == [40_000 >> 8] * 3
    assert found.sum() == 3 * (40_000 >> 8)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (Image.new("I", (9, 9), 40_000), "I;16"), (Image.new("I", (9, 9), -1), "0 to 255"),
        (Image.new("F", (9, 9), 256.5), "0 to 255"), (Image.new("F", (9, 9), 0.5), "scale"),
        (Image.new("F", (9, 9), float("nan")), "0 to 255"), (Image.new("RGB", (0, 9)), "pixels"),
    ],
)  # fmt: skip
def test_an_image_that_cannot_be_meant_is_advice(image: Image.Image, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        data_url(image)


def test_arrays_of_every_shape_are_the_picture_that_they_show() -> None:
    colour, grey = np.asarray(colours()), np.asarray(colours().convert("L"))
    np.testing.assert_array_equal(arrived(colour), colour)
    np.testing.assert_array_equal(arrived(colour[::-1, ::2]), colour[::-1, ::2])  # a view
    for array in (grey, grey[:, :, None]):
        np.testing.assert_array_equal(arrived(array), np.repeat(grey[:, :, None], 3, axis=2))
    rgba = np.asarray(with_alpha())
    np.testing.assert_array_equal(arrived(rgba), arrived(with_alpha()))
    for tall in (np.zeros((3, 8, 3), np.uint8), np.zeros((4, 3, 4), np.uint8)):
        assert arrived(tall).shape == (*tall.shape[:2], 3)


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.zeros((3, 9, 8), np.uint8), r"transpose\(1, 2, 0\)"),
        (np.zeros((1, 9, 8), np.uint8), r"transpose\(1, 2, 0\)"),
        (np.zeros((9, 8, 3), np.float32), "uint8"), (np.zeros((9, 8), np.float64), "0..255"),
        (np.zeros((9, 8, 3), np.int64), "uint8"), (np.zeros((9, 8), bool), "uint8"),
        (np.zeros((2, 9, 8, 3), np.uint8), "one picture at a time"),
        (np.zeros((9, 8, 5), np.uint8), r"\(H, W, 3\)"), (np.zeros((9,), np.uint8), "one picture"),
        (np.zeros((0, 8, 3), np.uint8), "pixels"), (np.uint8(3), "H, W"), (3, "a picture is"),
    ],
)  # fmt: skip
def test_an_array_that_cannot_be_meant_is_advice(array: Any, says: str) -> None:
    with pytest.raises(TypeError, match=says):
        data_url(array)


def test_a_print_gets_one_answer_both_ways(running: Any, tmp_path: Path) -> None:
    path = tmp_path / "print.jpg"
    Image.new("CMYK", (64, 64), (0, 255, 255, 0)).save(path, quality=95)
    with M3Client(running.url) as client, Image.open(path) as image:
        texts = [client.ask(each, "what colour?", max_tokens=6).text for each in (path, image)]
    assert texts[0] == texts[1]
