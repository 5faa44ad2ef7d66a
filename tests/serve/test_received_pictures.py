"""Pictures in requests: data URLs give their bytes, a bad picture its field, code and advice.

Which pixels a file has is tested in tests/m3model/pictures.
"""

from __future__ import annotations

import base64
import io
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from m3model import pictures
from serve.errors import BadRequest
from serve.received_pictures import bytes_of_data_url, check_header, decode_picture
from serve.settings import PictureLimits

LIMITS = PictureLimits(max_pixels=10_000, max_side_px=200)


def saved(picture: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8))


def test_a_good_picture_gives_its_pixels() -> None:
    data = saved(NOISE, "PNG")
    check_header(data, LIMITS, "p")
    assert np.array_equal(decode_picture(data, LIMITS, "p"), np.asarray(NOISE))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"hello", "invalid_image"),
        (saved(NOISE, "BMP"), "invalid_image"),
        (saved(Image.new("L", (101, 100)), "PNG"), "image_too_large"),
        (saved(Image.new("L", (201, 1)), "GIF"), "image_too_large"),
    ],
    ids=["no picture", "other format", "many pixels", "long side"],
)
def test_a_bad_header_is_told_with_its_field(data: bytes, code: str) -> None:
    for read in (check_header, decode_picture):
        with pytest.raises(BadRequest, match=r"(Save it|Scale it).*\.$") as caught:
            read(data, LIMITS, "messages.0")
        assert (caught.value.code, caught.value.param) == (code, "messages.0")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_truncated_picture_is_told_with_its_field(kind: str) -> None:
    data = saved(NOISE, kind)
    with pytest.raises(BadRequest) as caught:
        decode_picture(data[: len(data) * 7 // 10], LIMITS, "messages.0")
    assert (caught.value.code, caught.value.param) == ("invalid_image", "messages.0")


def test_the_settings_are_the_limits_of_the_decoder() -> None:
    assert PictureLimits().model_dump() == asdict(pictures.PictureLimits())


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


def test_base64_is_decoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.received_pictures.PIECE", 8)
    for n in range(1, 40):
        data = bytes(range(n))
        code = base64.b64encode(data).decode()
        assert bytes_of_data_url("data:;base64," + code, "p") == data
        for at in range(len(code)):
            broken = code[:at] + "=" + code[at + 1 :]
            try:
                expected = base64.b64decode(broken, validate=True)
            except ValueError:
                with pytest.raises(BadRequest, match="broken"):
                    bytes_of_data_url("data:;base64," + broken, "p")
            else:
                assert bytes_of_data_url("data:;base64," + broken, "p") == expected
