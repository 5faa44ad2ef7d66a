"""Converting official checkpoints: what comes out, and that nothing does when anything is off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from m3model import M3ForConditionalGeneration, M3Processor
from m3model.config import CLIP_L_336_VISION
from m3model.convert.checkpoint import convert
from m3model.convert.official import CLIP_L_336, config_from_official, our_key, scales_of
from m3model.convert.tokenizer import load_tokenizer
from m3model.errors import CheckpointMismatch, ConversionError

DATA = Path(__file__).parents[1] / "data" / "parity"
META = json.loads((DATA / "meta.json").read_text())
Weights = dict[str, torch.Tensor]


def official_config(**changes: Any) -> dict[str, Any]:
    config = {
        **META["llava15_config"],
        "model_type": "llava_llama",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "mm_vision_tower": "clip",
        **changes,
    }
    return {name: value for name, value in config.items() if value is not None}


@pytest.fixture(scope="module")
def weights() -> Weights:
    return load_file(DATA / "llava15_tiny_official_state_dict.safetensors")


@pytest.fixture
def source(tmp_path: Path, weights: Weights) -> Path:
    """An official folder whose `mm_vision_tower` names a folder inside it."""
    folder = tmp_path / "official"
    (folder / "clip").mkdir(parents=True)
    (folder / "clip" / "config.json").write_text(
        json.dumps({"model_type": "clip", "vision_config": META["vision_config"]})
    )
    (folder / "config.json").write_text(json.dumps(official_config()))
    save_file(weights, folder / "model.safetensors")
    return folder


def rewrite(source: Path, change: Callable[[Weights], None]) -> None:
    weights = load_file(source / "model.safetensors")
    change(weights)
    save_file(weights, source / "model.safetensors")


def test_single_file(source: Path, tmp_path: Path, weights: Weights) -> None:
    config = convert(source, tmp_path / "new" / "ours")
    ours = load_file(tmp_path / "new" / "ours" / "model.safetensors")
    assert len(ours) == len(weights)
    for key, tensor in weights.items():
        name = our_key(key)
        assert name is not None
        assert torch.equal(ours[name][: len(tensor)], tensor)
    assert ours["lm_head.weight"].shape == (97, 64)
    assert not ours["lm_head.weight"][96].any()
    assert list(config.scales) == [1, 9, 36, 144, 576]
    model = M3ForConditionalGeneration.from_pretrained(tmp_path / "new" / "ours")
    assert (model.config.image_token_id, model.config.text_vocab_size) == (96, 96)
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (2, 0)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["ours"]


def shard(source: Path, parts: int) -> None:
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    weight_map = {}
    for part in range(parts):
        name = f"model-{part + 1:05d}-of-{parts:05d}.safetensors"
        chunk = dict(list(weights.items())[part::parts])
        save_file(chunk, source / name)
        weight_map |= dict.fromkeys(chunk, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))


def test_sharded_and_half_precision(source: Path, tmp_path: Path, weights: Weights) -> None:
    def halve(tensors: Weights) -> None:
        for key in tensors:
            tensors[key] = tensors[key].to(torch.bfloat16)

    rewrite(source, halve)
    shard(source, 3)
    convert(source, tmp_path / "ours")
    assert len(list((tmp_path / "ours").glob("model-*.safetensors"))) == 3
    model = M3ForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert model.dtype == torch.bfloat16
    wanted = weights["model.layers.1.mlp.up_proj.weight"].to(torch.bfloat16)
    assert torch.equal(model.model.language_model.layers[1].mlp.up_proj.weight, wanted)


def test_vision_names_without_a_level_and_dropped_buffers(source: Path, tmp_path: Path) -> None:
    def rename(tensors: Weights) -> None:
        for key in list(tensors):
            if ".vision_model." in key:
                tensors[key.replace(".vision_model.", ".")] = tensors.pop(key)
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(8)
        tensors["model.vision_tower.vision_tower.vision_model.embeddings.position_ids"] = (
            torch.arange(577)[None]
        )

    rewrite(source, rename)
    convert(source, tmp_path / "ours")
    M3ForConditionalGeneration.from_pretrained(tmp_path / "ours")


def take_vision_away(tensors: Weights) -> None:
    for key in [key for key in tensors if "vision_tower" in key]:
        del tensors[key]


def cut_the_head(tensors: Weights) -> None:
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:90].clone()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
            "missing (1): model.language_model.layers.1.mlp.up_proj.weight",
        ),
        (
            lambda t: t.update({"model.image_newline": torch.zeros(64)}),
            "unexpected (1): model.image_newline",
        ),
        (cut_the_head, "wrong shape (1): lm_head.weight [90, 64] instead of [96, 64]"),
        (take_vision_away, "vision tower's weights must be inside"),
    ],
)
def test_anything_off_ends_with_2_and_writes_nothing(
    source: Path, tmp_path: Path, command: Any, change: Callable[[Weights], None], words: str
) -> None:
    rewrite(source, change)
    target = tmp_path / "out" / "ours"
    result = command("m3model.convert", "--src", source, "--dst", target)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert result.stdout == ""
    assert not target.parent.exists()


def test_a_crash_while_writing_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="no space"):
        convert(source, tmp_path / "out" / "ours")
    assert list((tmp_path / "out").iterdir()) == []


def test_pickled_weights_are_refused(source: Path, tmp_path: Path) -> None:
    (source / "model.safetensors").unlink()
    (source / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ConversionError, match=r"\.bin weights only"):
        convert(source, tmp_path / "ours")
    (source / "pytorch_model.bin").unlink()
    with pytest.raises(ConversionError, match=r"no model\.safetensors"):
        convert(source, tmp_path / "ours")


def test_a_target_in_use_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    convert(source, tmp_path / "ours")
    with pytest.raises(ConversionError, match="not empty"):
        convert(source, tmp_path / "ours")


def test_damaged_sources(source: Path, tmp_path: Path) -> None:
    shard(source, 2)
    lost = source / "model-00002-of-00002.safetensors"
    whole = lost.read_bytes()
    lost.write_bytes(whole[:100])
    with pytest.raises(ConversionError, match="not a readable safetensors file"):
        convert(source, tmp_path / "ours")
    lost.unlink()
    with pytest.raises(ConversionError, match=r"model-00002-of-00002\.safetensors"):
        convert(source, tmp_path / "ours")
    (source / "config.json").write_text("[1")
    with pytest.raises(ConversionError, match="not a JSON object"):
        convert(source, tmp_path / "ours")
    with pytest.raises(ConversionError, match="does not exist"):
        convert(tmp_path / "nowhere", tmp_path / "ours")


def test_a_tensor_in_two_shards_is_refused(source: Path, tmp_path: Path) -> None:
    shard(source, 2)
    first, second = sorted(source.glob("model-*.safetensors"))
    key, tensor = next(iter(load_file(second).items()))
    save_file({**load_file(first), key: tensor}, first)
    with pytest.raises(CheckpointMismatch, match="doubled"):
        convert(source, tmp_path / "ours")


@pytest.mark.parametrize(
    ("stored", "scales"),
    [
        ([576, 144, 36, 9, 1], [1, 9, 36, 144, 576]),
        ([64, 4], [4, 64]),
        (36, [36]),
        (None, [1, 9, 36, 144, 576]),
    ],
)
def test_scales(stored: object, scales: list[int]) -> None:
    assert scales_of({"matryoshka_vis_token_scale": stored}) == scales
    config = config_from_official(
        official_config(matryoshka_vis_token_scale=stored), META["vision_config"]
    )
    assert list(config.scales) == scales


def test_the_built_in_vision_config() -> None:
    source = official_config(mm_vision_tower=CLIP_L_336, hidden_size=4096)
    config = config_from_official(source, CLIP_L_336_VISION)
    assert (config.vision_config.num_hidden_layers, config.grid_side) == (24, 24)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mm_projector_type": "linear"}, "mm_projector_type"),
        ({"mm_projector_type": None}, "mm_projector_type"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature"),
        ({"image_aspect_ratio": "anyres"}, "LLaVA-NeXT"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type"),
        ({"vocab_size": None}, "vocab_size"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps"),
        ({"mm_vision_tower": "somewhere/else"}, "--vision-config"),
        ({"matryoshka_vis_token_scale": [2]}, "24x24"),
    ],
)
def test_other_kinds_are_refused(
    source: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    (source / "config.json").write_text(json.dumps(official_config(**changes)))
    with pytest.raises(ValueError, match=words):
        convert(source, tmp_path / "ours")


def test_rope_settings_survive() -> None:
    source = official_config(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0})
    rope = config_from_official(source, META["vision_config"]).text_config.rope_parameters
    assert (rope["rope_theta"], rope["rope_type"], rope["factor"]) == (5e5, "linear", 2.0)


def test_pictures_are_padded_as_the_source_says(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "pad")
    preprocessor = json.loads((tmp_path / "pad" / "preprocessor_config.json").read_text())
    assert preprocessor["do_pad"] is True
    assert preprocessor["crop_size"] == {"height": 336, "width": 336}
    (source / "config.json").write_text(json.dumps(official_config(image_aspect_ratio="square")))
    convert(source, tmp_path / "crop")
    preprocessor = json.loads((tmp_path / "crop" / "preprocessor_config.json").read_text())
    assert preprocessor["do_pad"] is False


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
PIECES += ["▁", "r", "e", "d", "a", "t", "▁r", "ed", "▁red", "\n", ":", "U", "S", "E", "R"]


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def sentencepiece_model(pieces: list[str]) -> bytes:
    """A SentencePiece protocol buffer with these pieces (field 1: piece, score, type)."""
    blob = b""
    for index, piece in enumerate(pieces):
        kind = 2 if index == 0 else 3 if index < 3 else 6 if piece.startswith("<0x") else 1
        text = piece.encode()
        entry = b"\x0a" + varint(len(text)) + text + b"\x15\0\0\0\0" + b"\x18" + bytes([kind])
        blob += b"\x0a" + varint(len(entry)) + entry
    return blob + b"\x12\x02\x18\x02"


def test_a_sentencepiece_tokenizer_is_read(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(PIECES))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"legacy": False, "bos_token": {"content": "<s>"}, "pad_token": None})
    )
    tokenizer = load_tokenizer(tmp_path, len(PIECES))
    assert tokenizer is not None
    assert tokenizer.convert_tokens_to_ids("<image>") == len(PIECES)
    assert tokenizer.tokenize("red") == ["▁red"]
    assert tokenizer.tokenize("red tad") == ["▁red", "▁", "t", "a", "d"]
    assert tokenizer.decode(tokenizer("red é")["input_ids"], skip_special_tokens=True) == "red é"
    assert tokenizer.pad_token == "<unk>"
    with pytest.raises(ConversionError, match="do not belong together"):
        load_tokenizer(tmp_path, 32000)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\xff\xff")
    with pytest.raises(ConversionError, match="SentencePiece"):
        load_tokenizer(tmp_path, len(PIECES))


def test_a_tokenizer_file_travels_with_the_model(source: Path, tmp_path: Path) -> None:
    words = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"w{i}" for i in range(96 - len(words))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(source)
    convert(source, tmp_path / "ours")
    processor = M3Processor.from_pretrained(tmp_path / "ours")
    model = M3ForConditionalGeneration.from_pretrained(tmp_path / "ours")
    assert processor.image_token_id == model.config.image_token_id == 96
    content = [{"type": "image"}, {"type": "text", "text": "a b"}]
    ids = processor.prompt_ids([{"role": "user", "content": content}])
    assert (ids[0], ids.count(96)) == (1, 1)
    pixels = processor.pixel_values(Image.new("RGB", (40, 20), "red"))
    out = model.generate(
        input_ids=torch.tensor([ids]), pixel_values=pixels, scale=9, max_new_tokens=3
    )
    assert 96 not in out


def test_as_a_command(source: Path, tmp_path: Path, command: Any, python: Any) -> None:
    assert "--vision-config" in python("-m", "m3model.convert", "--help").stdout
    words = ("--src", source, "--dst", tmp_path / "ours")
    done = command("m3model.convert", *words)
    assert done.returncode == 0, done.stderr
    assert "image token id 96" in done.stdout
    again = command("m3model.convert", *words)
    assert again.returncode == 2
    assert "not empty" in again.stderr
