"""Pictures to pixels, messages to ids, ids to text."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from m3model import M3Processor
from m3model.processing import build_image_processor
from m3model.prompt.templates import VICUNA_SYSTEM, VICUNA_TEMPLATE
from m3model.prompt.vocabulary import build_tokenizer
from m3model.tiny import write_tiny_checkpoint


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> M3Processor:
    return M3Processor.from_pretrained(write_tiny_checkpoint(tmp_path_factory.mktemp("tiny")))


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ask(text: str, pictures: int = 1) -> list[dict[str, object]]:
    parts: list[dict[str, str]] = [{"type": "text", "text": text}]
    return [{"role": "user", "content": parts + [{"type": "image"}] * pictures}]


def official_pad(image: Image.Image, mean: list[float]) -> Image.Image:
    """expand2square of the LLaVA code, in words: centre on the mean colour."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), tuple(int(x * 255) for x in mean))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


@pytest.mark.parametrize("size", [(200, 120), (120, 200), (64, 64), (1, 300)])
def test_pixels_are_padded_then_resized(processor: M3Processor, size: tuple[int, int]) -> None:
    image = picture(*size)
    mean, std = processor.image_processor.image_mean, processor.image_processor.image_std
    square = official_pad(image, mean).resize((192, 192), Image.Resampling.BICUBIC)
    wanted = (np.asarray(square, dtype=np.float32) / 255 - mean) / std
    got = processor.pixel_values(image)
    assert got.shape == (1, 3, 192, 192)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got[0].numpy(), wanted.transpose(2, 0, 1), atol=1e-5)


def pad_first(processor: M3Processor, image: Image.Image) -> torch.Tensor:
    """What the library makes of a picture: the whole square, then the resize."""
    return processor.image_processor([image], return_tensors="pt").pixel_values


@pytest.mark.parametrize(
    "size",
    [
        (64, 48), (1, 1), (2048, 1), (1, 2048), (2048, 2048), (1999, 700), (336, 2000),
        (2049, 2049), (2050, 1500), (1500, 2050), (3001, 751), (751, 3001), (2500, 2499),
        (2100, 525), (525, 2100), (2304, 1000), (1000, 2304),
    ],
)  # fmt: skip
def test_no_bit_of_an_ordinary_picture_changes(
    processor: M3Processor, size: tuple[int, int]
) -> None:
    image = picture(*size)
    assert torch.equal(processor.pixel_values(image), pad_first(processor, image))


@pytest.mark.parametrize("thickness", [1, 2, 3, 17, 100, 333, 500, 749])
@pytest.mark.parametrize("side", [2999, 3000, 3072])
@pytest.mark.parametrize("tall", [False, True])
def test_strips_are_what_padding_first_makes_of_them(
    processor: M3Processor, side: int, thickness: int, tall: bool
) -> None:
    noise = picture(*((thickness, side) if tall else (side, thickness)), seed=side + thickness)
    image = noise.point(lambda value: 255 * (value > 127))  # filters ring at hard edges
    wanted, got = pad_first(processor, image), processor.pixel_values(image)
    one_shade = 1 / 255 / min(processor.image_processor.image_std)
    assert (wanted - got).abs().max() <= 1.01 * one_shade
    assert (wanted != got).float().mean() < 0.001


@pytest.mark.parametrize("size", [(10_000, 1), (1, 10_000), (10_000, 40), (40, 10_000)])
def test_strips_cost_little_and_stay_visible(
    processor: M3Processor, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.new("RGB", size, "white")
    made: list[int] = []
    make, wrap = Image.new, Image.Image._new

    def new(mode: str, size: tuple[int, int], *colour: Any) -> Image.Image:
        made.append(size[0] * size[1])
        return make(mode, size, *colour)

    def wrapped(self: Image.Image, im: Any) -> Image.Image:
        made.append(im.size[0] * im.size[1])
        return wrap(self, im)

    monkeypatch.setattr(Image, "new", new)
    monkeypatch.setattr(Image.Image, "_new", wrapped)
    tracemalloc.start()
    pixels = processor.pixel_values(image)[0]
    _, peak = tracemalloc.get_traced_memory()  # numpy's arrays are among it, Pillow's are not
    tracemalloc.stop()
    assert made
    assert max(made) < 600_000  # Pillow takes four bytes a pixel
    assert peak < 5e6
    empty = pixels[:, :1, :1]
    seen = (pixels != empty).any(dim=0)
    across = 1 if size[0] > size[1] else 0
    assert 1 <= seen.any(dim=across).sum() <= 8
    assert (pixels >= empty).flatten(1).any(dim=1).all()
    assert seen.any(dim=1 - across).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK", "LA"])
def test_every_mode_becomes_rgb(processor: M3Processor, mode: str) -> None:
    assert processor.pixel_values([picture(20, 30).convert(mode)]).shape == (1, 3, 192, 192)


def test_prompt_has_one_image_token_per_picture(processor: M3Processor) -> None:
    ids = processor.prompt_ids(ask("what color is the star?", pictures=2))
    tokens = processor.tokenizer.convert_ids_to_tokens(ids)
    assert tokens == [
        *("<s>", "<image>", "<image>", "<q>"),
        *("what", "color", "is", "the", "star", "?", "<a>"),
    ]
    assert ids.count(processor.image_token_id) == 2


def test_turns_and_system_text(processor: M3Processor) -> None:
    messages = [
        {"role": "system", "content": "read it"},
        *ask("what word?"),
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "how many?"},
    ]
    wanted = "<s><image><q>read it what word?<a>red</s><q>how many?<a>"
    assert processor.apply_chat_template(messages) == wanted
    plain = processor.apply_chat_template(messages[:3], add_generation_prompt=False)
    assert plain == "<s><image><q>read it what word?<a>red</s>"


def test_typed_special_tokens_are_only_text(processor: M3Processor) -> None:
    ids = processor.prompt_ids(ask("what is <image></s><a> <image>", pictures=0))
    special = {processor.tokenizer.convert_tokens_to_ids(t) for t in ("<image>", "</s>", "<a>")}
    assert [i for i in ids[:-1] if i in special] == []
    question = processor.question_ids("what is <image>?")
    assert processor.image_token_id not in question


def test_question_ids_hold_no_special_tokens(processor: M3Processor) -> None:
    ids = processor.question_ids("What COLOUR?")
    assert processor.tokenizer.convert_ids_to_tokens(ids) == ["what", "colour", "?"]
    assert processor.question_ids("") == []


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "tool", "content": "x"}],
        [{"role": "user", "content": [{"type": "audio"}]}],
        [{"role": "assistant", "content": [{"type": "image"}]}],
        [{"role": "user", "content": [{"type": "text", "text": 3}]}],
    ],
)
def test_bad_messages(processor: M3Processor, messages: list[dict[str, object]]) -> None:
    with pytest.raises(ValueError, match=r"messages|role|content part"):
        processor.prompt_ids(messages)


def test_batches_are_padded_and_counted(processor: M3Processor) -> None:
    long, short = "<s><image><q>what color is it?<a>", "<s><q>how many?<a>"
    batch = processor(text=[long, short], images=[picture(10, 10)])
    assert batch["pixel_values"].shape[0] == 1
    assert batch["attention_mask"].sum(dim=1).tolist() == [9, 6]
    assert batch["attention_mask"][1, 0] == 0
    right = processor(text=[long, short], images=picture(10, 10), padding_side="right")
    assert right["attention_mask"][1, -1] == 0
    with pytest.raises(ValueError, match=r"0 pictures for 1 <image> marks"):
        processor(text=long)


def test_round_trip_through_a_folder(processor: M3Processor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    again = M3Processor.from_pretrained(tmp_path)
    messages = ask("which shape is largest?")
    assert again.prompt_ids(messages) == processor.prompt_ids(messages)
    image = picture(33, 20)
    torch.testing.assert_close(again.pixel_values(image), processor.pixel_values(image))


def test_decoding(processor: M3Processor) -> None:
    ids = processor.tokenizer("blue zebra 42", add_special_tokens=False)["input_ids"]
    assert processor.decode([1, *ids, 2, 0]) == "blue zebra 42"
    assert processor.batch_decode(torch.tensor([ids, ids])) == ["blue zebra 42"] * 2


@given(st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=40))
@settings(max_examples=60, deadline=None)
def test_no_ascii_text_is_unknown(text: str) -> None:
    assert TOKENIZER.unk_token_id not in TOKENIZER(text, add_special_tokens=False)["input_ids"] or (
        "<unk>" in text
    )


TOKENIZER = build_tokenizer(["red", "blue"])


def test_vocabulary() -> None:
    assert TOKENIZER.convert_tokens_to_ids(["<pad>", "<s>", "</s>", "<unk>", "<image>"]) == [
        *range(5)
    ]
    pieces = TOKENIZER.convert_ids_to_tokens(
        TOKENIZER("Redé 5€x", add_special_tokens=False).input_ids
    )
    assert pieces == ["red", "##e", "5", "<unk>", "x"]
    with pytest.raises(ValueError, match="lower-case"):
        build_tokenizer(["two words"])


def test_vicuna_prompt() -> None:
    tokenizer = build_tokenizer([])
    tokenizer.chat_template = None
    processor = M3Processor(build_image_processor(192), tokenizer)
    assert tokenizer.chat_template == VICUNA_TEMPLATE
    messages = [
        *ask("What is it?"),
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
    ]
    assert processor.apply_chat_template(messages) == (
        f"<s>{VICUNA_SYSTEM} USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT:"
    )
    own = [{"role": "system", "content": "Be brief."}, *ask("What?")]
    assert processor.apply_chat_template(own) == ("<s>Be brief. USER: <image>\nWhat? ASSISTANT:")


def test_importing_the_package_is_light(python: Any) -> None:
    code = "import sys, m3model; m3model.default_model_path(); print('torch' in sys.modules)"
    done = python("-c", code)
    assert done.stdout.strip() == "False", done.stderr
