"""Whatever a file is, service and training see the same pixels in it, or both refuse it."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from m3model import M3Processor
from m3model.pictures import decode_picture
from router.records import picture_id
from serve.errors import BadRequest
from serve.settings import PictureLimits
from serve.stages.checkpoint import load_checkpoint
from serve.stages.vision import Vision
from training.errors import BadRecord
from training.finetune.conversations import LlavaDataset
from training.sources import llava_source
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


def test_the_identity_of_a_plain_file_never_changes() -> None:
    data = (ROOT / "serve" / "pictures" / "scene-00.png").read_bytes()
    identity = "fc48cfac186be1cd31de9a5607953ee7185d1fa456437c858b605e6b9727a6f3"
    assert picture_id(decode_picture(data)) == identity
