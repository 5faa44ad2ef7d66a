"""What a run may ask for: honoured as it says, or refused by name."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m3model import Sampling
from m3model.pictures import decode_picture
from training.lmms.conversation import asked_of, pixels_of, question_of, sampling_of
from training.lmms.told import Told
from training.lmms.wishes import answerer_of, batch_of

PICTURE = Image.new("RGB", (8, 8), "red")


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, Sampling(1024)),
        ({"max_new_tokens": 16, "until": ["\n\n"]}, Sampling(16, stop=("\n\n",))),
        ({"max_new_tokens": 16, "until": "Q:"}, Sampling(16, stop=("Q:",))),
        # As most tasks say "greedy": the rest then means nothing.
        ({"do_sample": False, "temperature": 0, "top_p": 1.0, "num_beams": 1}, Sampling(1024)),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0}, Sampling(1024)),
        ({"temperature": 0, "top_p": None, "num_beams": None}, Sampling(1024)),
        ({"temperature": 0.2, "top_p": 0.9}, Sampling(1024, 0.2, 0.9)),
        ({"do_sample": True, "seed": 3}, Sampling(1024, 1.0, seed=3)),
        ({"image_aspect_ratio": "pad"}, Sampling(1024)),
    ],
)  # fmt: skip
def test_settings_of_a_task_are_honoured(settings: dict[str, Any], wanted: Sampling) -> None:
    assert sampling_of(settings) == wanted


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_beams": 5}, "num_beams=5; --gen_kwargs num_beams=1 drops it"),
        ({"image_aspect_ratio": "original"}, "--gen_kwargs image_aspect_ratio=pad drops it"),
        ({"visual_cot": True}, "visual_cot=True"),
        ({"max_new_tokens": -1}, "max_new_tokens must be at least 1"),
        ({"temperature": -1}, "temperature must be >= 0"),
        ({"max_new_tokens": "many"}, "settings"),
    ],
)
def test_settings_that_cannot_be_honoured_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sampling_of(settings)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([{"type": "video", "url": "a.mp4"}], "no video: choose another task"),
        ([{"type": "audio", "url": "a.wav"}], "no audio"),
        ([{"type": "image", "url": np.zeros((2, 2))}, {"type": "text", "text": "?"}], "a ndarray"),
        ([{"type": "image", "url": "/nowhere.png"}], "cannot be read"),
        ([{"type": "image", "url": PICTURE}], "no text"),
    ],
)
def test_what_cannot_be_asked_is_refused(parts: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        asked_of([{"role": "user", "content": parts}], {})


def test_the_question_is_the_last_text_of_the_user() -> None:
    shown, text = {"type": "image"}, {"type": "text", "text": " Now? "}
    earlier = {"role": "user", "content": [{"type": "text", "text": "Before?"}]}
    said = {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]}
    assert question_of([earlier, said, {"role": "user", "content": [shown, text, text]}]) == (
        "Now? \n Now?"
    )
    assert question_of([earlier, said, {"role": "user", "content": [shown]}]) == "Before?"
    with pytest.raises(ValueError, match="not the user's"):
        question_of([earlier, said])
    with pytest.raises(ValueError, match="knows no role 'tool'"):
        asked_of([{"role": "tool", "content": "x"}], {})
    refused = [{"role": "assistant", "content": [{"type": "image", "url": PICTURE}]}]
    with pytest.raises(ValueError, match="of the role assistant"):
        asked_of(refused, {})


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "YCbCr"])
def test_pictures_are_seen_as_the_service_would_see_their_png(mode: str) -> None:
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    if mode == "I;16":
        picture = Image.fromarray(random.integers(0, 2**16, (9, 7), dtype=np.uint16))
    elif mode in ("LA", "RGBA"):
        picture = picture.convert("RGBA")
        picture.putalpha(picture.convert("L"))
        picture = picture.convert(mode)
    else:
        picture = picture.convert(mode)
    sent, file = picture if mode not in ("CMYK", "YCbCr") else picture.convert("RGB"), io.BytesIO()
    sent.save(file, "PNG")
    np.testing.assert_array_equal(pixels_of(picture), decode_picture(file.getvalue()))


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"scale": 100}, "no scale 100: this model has 1, 9, 36, 144, 576, and auto"),
        ({"scale": True}, "no scale True"),
        ({"focus": "1+2"}, "no focus '1.2': this model has 1.144@500x6"),
        ({"focus": "1+144@500x6", "scale": 9}, "not both"),
        ({"scale": 9, "router": "somewhere"}, "with scale=auto only"),
        ({}, "scale=auto needs the router of .*: give router=DIR"),
        ({"scale": "auto", "router": "nowhere"}, "give router=DIR"),
    ],
)
def test_wishes_that_contradict_the_model_are_refused(
    wishes: dict[str, Any], words: str, tiny_model: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        answerer_of(str(tiny_model), **wishes)


def test_a_router_of_another_model_is_refused(
    tiny_model: Path, make_focus_router: Any, tmp_path: Path
) -> None:
    router = make_focus_router(tmp_path / "router", "36")
    other = router.with_policy(router.policy, {"model_hash": "0123456789abcdef"})
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match=r"fitted on the answers of another model .model_hash"):
        answerer_of(str(tiny_model), "auto", router=str(tmp_path / "other"))
    with pytest.raises(ValueError, match="not a model folder: give pretrained=DIR"):
        answerer_of(str(tmp_path))


def test_a_focus_reads_one_picture(tiny_model: Path) -> None:
    answerer = answerer_of(str(tiny_model), focus="36+144@350wx12")
    content = [{"type": "image", "url": PICTURE}] * 2 + [{"type": "text", "text": "Same?"}]
    with pytest.raises(ValueError, match="one picture, this question shows 2"):
        answerer.answer([asked_of([{"role": "user", "content": content}], {})])
    answerer.close()


@pytest.mark.parametrize(("told", "size"), [(1, 1), ("8", 8), ("auto", 32)])
def test_so_many_questions_are_in_flight(told: int | str, size: int) -> None:
    assert batch_of(told) == size


@pytest.mark.parametrize("told", [0, "many", -3])
def test_a_batch_is_a_number(told: int | str) -> None:
    with pytest.raises(ValueError, match="batch_size must be"):
        batch_of(told)


def test_what_is_told_comes_back() -> None:
    messages = ({"role": "user", "content": [{"type": "image"}]},)
    told = Told("9", ("9",), 9, ("ab",), 0.5, "r-float32-6", messages)
    assert Told.from_json({"input_tokens": 3, **told.to_json()}) == told
    damaged = told.to_json()
    damaged["m3"]["confidence"] = 2.0
    with pytest.raises(ValueError, match=r"confidence of 2\.0"):
        Told.from_json(damaged)
