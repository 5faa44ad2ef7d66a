"""Whatever a file is, service and training see the same pixels in it, or both refuse it."""

from __future__ import annotations

import io
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from m3model import M3Processor
from m3model.pictures import decode_picture
from router.records import DecisionRecord, picture_id
from serve.errors import BadRequest
from serve.log.decisions import DecisionLog
from serve.settings import PictureLimits
from serve.stages.checkpoint import load_checkpoint
from serve.stages.vision import Vision
from training.errors import BadRecord
from training.finetune.conversations import LlavaDataset
from training.sources import llava_source, log_source
from training.sources.llava import read_llava

ROOT = Path(__file__).resolve().parents[2]
MODES = {
    "PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "JPEG": ["L", "RGB", "CMYK"],
    "WEBP": ["RGB", "RGBA"],
    "GIF": ["L", "P"],
    "BMP": ["RGB"],
}


@st.composite
def files(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(sorted(MODES)))
    mode = draw(st.sampled_from(MODES[kind]))
    width, height = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    noise = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    if mode == "I;16":
        picture = Image.fromarray(noise.integers(0, 2**16, (height, width), dtype=np.uint16))
    else:
        rgba = noise.integers(0, 256, (height, width, 4), dtype=np.uint8)
        picture = Image.fromarray(rgba)
        if mode not in ("RGBA", "LA"):
            picture = picture.convert("RGB")
        picture = picture.convert(mode)
    orientation = draw(st.integers(0, 9))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if kind in ("GIF", "BMP") or not orientation else {"exif": exif}
    if mode == "P" and draw(st.booleans()):
        options["transparency"] = draw(st.integers(0, 255))
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    data = buffer.getvalue()
    return data[: draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))]


@pytest.fixture(scope="module")
def vision(tiny_model: Path) -> Vision:
    return Vision(load_checkpoint(tiny_model, half="encoder", device="cpu"), PictureLimits())


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=files())
@pytest.mark.filterwarnings("ignore")
def test_service_and_training_see_the_same(
    vision: Vision, tiny_model: Path, tmp_path: Path, data: bytes
) -> None:
    (tmp_path / "a").write_bytes(data)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    record = {"id": "r7", "image": "a", "conversations": turns}
    (tmp_path / "d.json").write_text(json.dumps([record]))
    labelled = llava_source(tmp_path / "d.json", tmp_path)
    processor = M3Processor.from_pretrained(tiny_model)
    trained = LlavaDataset(read_llava(tmp_path / "d.json", tmp_path).records, processor, 1000)
    try:
        served = vision.prepare(data)
    except BadRequest as error:
        sentence = re.escape(f"record r7: cannot read the picture a: {error}")
        for read in (lambda: labelled.load(0), lambda: trained[0]):
            with pytest.raises(BadRecord, match=sentence):
                read()
        return
    assert picture_id(labelled.load(0).rgb) == served.picture_id
    assert np.array_equal(trained[0]["pixel_values"], served.pixels)


RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
GREY = (128, 128, 128)


def saved(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def held(orientation: int) -> bytes:
    """Two by one: red left, blue right as the file has it, to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.array([[RED, BLUE]], np.uint8)
    return saved(Image.fromarray(pixels), exif=exif)


def clear(mode: str) -> bytes:
    """Black throughout; its left half is transparent."""
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[:, 1, 3] = 255
    return saved(Image.fromarray(rgba).convert(mode))


def clear_palette() -> bytes:
    picture = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    picture.putpalette([*BLACK, *RED])
    return saved(picture, transparency=0)


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (2, 2), color) for color in (RED, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    return saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)


ROW, TURNED_ROW = [[RED, BLUE]], [[BLUE, RED]]
COLUMN, TURNED_COLUMN = [[RED], [BLUE]], [[BLUE], [RED]]
HALF_WHITE = [[WHITE, BLACK], [WHITE, BLACK]]
KINDS: dict[str, tuple[bytes, Any]] = {
    **{
        f"EXIF {number}": (held(number), pixels)
        for number, pixels in enumerate(
            [ROW, TURNED_ROW, TURNED_ROW, ROW, COLUMN, COLUMN, TURNED_COLUMN, TURNED_COLUMN], 1
        )
    },
    "RGBA": (clear("RGBA"), HALF_WHITE),
    "LA": (clear("LA"), HALF_WHITE),
    "P with transparency": (clear_palette(), [[WHITE, RED]]),
    "I;16": (saved(Image.fromarray(np.array([[0, 32768, 65535]], np.uint16))),
             [[BLACK, GREY, WHITE]]),
    "CMYK": (saved(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"), [[WHITE] * 8] * 8),
    "1 bit": (saved(Image.fromarray(np.array([[False, True]]))), [[BLACK, WHITE]]),
    "animated GIF": (animated("GIF"), [[RED, RED]] * 2),
    "animated PNG": (animated("PNG"), [[RED, RED]] * 2),
    "animated WebP": (animated("WEBP"), [[RED, RED]] * 2),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_sees_what_a_person_sees(
    vision: Vision, tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    """Service, its log and what is labelled from it, `collect --data`, `model --data`."""
    data, pixels = KINDS[kind]
    wanted = np.array(pixels, np.uint8)
    processor = M3Processor.from_pretrained(tiny_model)
    tensor = processor.pixel_values(Image.fromarray(wanted))
    served = vision.prepare(data)
    assert served.picture_id == picture_id(wanted)
    assert np.array_equal(served.pixels, tensor)

    (tmp_path / "a").write_bytes(data)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    told = [{"id": "7", "image": "a", "conversations": turns}]
    (tmp_path / "d.json").write_text(json.dumps(told))
    assert np.array_equal(llava_source(tmp_path / "d.json", tmp_path).load(0).rgb, wanted)
    trained = LlavaDataset(read_llava(tmp_path / "d.json", tmp_path).records, processor, 1000)
    assert np.array_equal(trained[0]["pixel_values"], tensor)

    log = DecisionLog(tmp_path / "log", log_images=True)
    decision = DecisionRecord(
        request_id="r", time_utc=datetime(2026, 11, 27, tzinfo=UTC), model="m3-auto", scale=9,
        picture_ids=(served.picture_id,), question="What?", visual_tokens=9, reason="predicted",
        audited=True,
    )  # fmt: skip
    log.append(decision, [data])
    log.close()
    assert np.array_equal(log_source(tmp_path / "log").load(0).rgb, wanted)


def test_pictures_are_opened_in_one_place() -> None:
    code = [path for room in ("m3model", "router", "serve", "training", "benchmarks")
            for path in (ROOT / room).rglob("*.py")]  # fmt: skip
    ways = re.compile(r"Image\.open\(|imread\(|pillow\.open\(|decode_(image|png|jpeg)\(")
    found = [path for path in code if ways.search(path.read_text("utf-8"))]
    assert found == [ROOT / "m3model" / "pictures" / "decoding.py"]


def test_the_identity_of_a_plain_file_never_changes() -> None:
    data = (ROOT / "serve" / "pictures" / "scene-00.png").read_bytes()
    identity = "fc48cfac186be1cd31de9a5607953ee7185d1fa456437c858b605e6b9727a6f3"
    assert picture_id(decode_picture(data)) == identity
