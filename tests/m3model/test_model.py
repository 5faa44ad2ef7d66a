"""The model's contract: scales and counts checked, strict loading, threads, generation options."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from m3model import CheckpointMismatch, M3Config, M3ForConditionalGeneration, pool_visual_tokens
from m3model.tiny import tiny_config, write_tiny_checkpoint

IMAGE = 4
ROW = [1, IMAGE, 5, 40, 41, 42, 6]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model", seed=1)


@pytest.fixture(scope="module")
def model(folder: Path) -> M3ForConditionalGeneration:
    return M3ForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randn(2, 3, 192, 192, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def grid(model: M3ForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.encode_images(pixels)


def ids(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows or [ROW])


@pytest.mark.parametrize("scale", [0, 4, 100, 577, -1, True, 9.0, "9", None, [4], [9.0]])
def test_unknown_scales_are_refused_by_name(
    model: M3ForConditionalGeneration, grid: torch.Tensor, scale: object
) -> None:
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=r"1, 9, 36, 144, 576"):
            call(input_ids=ids(), image_grids=grid[:1], scale=scale)


def test_numpy_integers_are_scales(model: M3ForConditionalGeneration, grid: torch.Tensor) -> None:
    out = model(input_ids=ids(), image_grids=grid[:1], scale=np.int64(9))
    assert out.visual_tokens.tolist() == [9]


def test_counts_must_agree(
    model: M3ForConditionalGeneration, grid: torch.Tensor, pixels: torch.Tensor
) -> None:
    with pytest.raises(ValueError, match=r"2 pictures for 1 image tokens"):
        model(input_ids=ids(), image_grids=grid, scale=9)
    with pytest.raises(ValueError, match=r"0 pictures for 1 image tokens"):
        model(input_ids=ids())
    with pytest.raises(ValueError, match=r"0 pictures for 1 image tokens"):
        model.generate(input_ids=ids(), max_new_tokens=2)
    with pytest.raises(ValueError, match=r"1 pictures for 0 image tokens"):
        model(input_ids=ids([1, 5, 40, 6]), image_grids=grid[:1], scale=9)
    with pytest.raises(ValueError, match="3 scales for 2 pictures"):
        model(input_ids=ids(ROW, ROW), image_grids=grid, scale=[1, 9, 36])
    with pytest.raises(ValueError, match="not both"):
        model(input_ids=ids(), image_grids=grid[:1], pixel_values=pixels[:1], scale=9)
    with pytest.raises(ValueError, match="without a picture"):
        model(input_ids=ids([1, 5, 40, 6]), scale=9)
    with pytest.raises(ValueError, match=r"\(pictures, 3, 192, 192\)"):
        model(input_ids=ids(), pixel_values=torch.zeros(1, 3, 96, 96), scale=9)
    with pytest.raises(ValueError, match="attention_mask has shape"):
        model(input_ids=ids(), attention_mask=torch.ones(1, 3), image_grids=grid[:1], scale=9)
    with pytest.raises(ValueError, match="vision_feature_layer"):
        model(input_ids=ids(), pixel_values=pixels[:1], scale=9, vision_feature_layer=-2)


def test_pictures_of_one_row_keep_their_order(
    model: M3ForConditionalGeneration, grid: torch.Tensor
) -> None:
    row = [1, IMAGE, 40, IMAGE, 5, 41, 6]
    with torch.no_grad():
        out = model(input_ids=ids(row), image_grids=grid, scale=[1, 36])
        embeds = torch.cat(
            [
                model.embed_text([1]),
                pool_visual_tokens(grid[0], 1),
                model.embed_text([40]),
                pool_visual_tokens(grid[1], 36),
                model.embed_text([5, 41, 6]),
            ]
        )
        by_hand = model(inputs_embeds=embeds[None])
        pools = [pool_visual_tokens(grid[0], 1), pool_visual_tokens(grid[1], 36)]
        torch.testing.assert_close(model.embed_prompt(row, pools), embeds)
    torch.testing.assert_close(out.logits, by_hand.logits)
    swapped = model(input_ids=ids(row), image_grids=grid[[1, 0]], scale=[1, 36])
    assert not torch.allclose(out.logits, swapped.logits)


def test_labels_at_pictures_are_ignored(
    model: M3ForConditionalGeneration, grid: torch.Tensor
) -> None:
    labels = ids()
    out = model(input_ids=ids(), image_grids=grid[:1], scale=9, labels=labels)
    logits = out.logits[0].float()
    targets = [-100] * 9 + ROW[2:]
    by_hand = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(targets))
    torch.testing.assert_close(out.loss, by_hand)
    with pytest.raises(ValueError, match="logits_to_keep"):
        model(input_ids=ids(), image_grids=grid[:1], scale=9, labels=labels, logits_to_keep=1)


def test_one_vision_pass(
    model: M3ForConditionalGeneration, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    handle = model.model.vision_tower.register_forward_hook(lambda *_: passes.append(1))
    try:
        model.generate(input_ids=ids(), pixel_values=pixels[:1], scale=9, max_new_tokens=4)
    finally:
        handle.remove()
    assert len(passes) == 1


def test_half_precision_pictures_are_cast(
    model: M3ForConditionalGeneration, pixels: torch.Tensor
) -> None:
    grid = model.encode_images(pixels[:1].to(torch.bfloat16))
    assert grid.dtype == torch.float32


def test_left_padded_text_equals_unpadded(model: M3ForConditionalGeneration) -> None:
    row = torch.tensor([[1, 5, 40, 41, 6]])
    padded = torch.tensor([[0, 0, 1, 5, 40, 41, 6]])
    mask = (torch.arange(7) >= 2).long()[None]
    with torch.no_grad():
        alone = model(input_ids=row).logits[0]
        inside = model(input_ids=padded, attention_mask=mask).logits[0, 2:]
    torch.testing.assert_close(inside, alone)


def test_generate_takes_the_usual_options(
    model: M3ForConditionalGeneration, grid: torch.Tensor
) -> None:
    call = {"input_ids": ids(ROW, ROW), "image_grids": grid, "scale": [1, 36]}
    greedy = model.generate(**call, max_new_tokens=6)
    assert greedy.shape[1] <= 6
    beams = model.generate(**call, max_new_tokens=4, num_beams=2, num_return_sequences=2)
    assert beams.shape[0] == 4
    torch.manual_seed(0)
    drawn = model.generate(**call, max_new_tokens=50, do_sample=True, temperature=5.0, top_k=0)
    assert not (drawn == IMAGE).any()
    for cached in (True, False):
        again = model.generate(**call, max_new_tokens=6, use_cache=cached)
        assert again.tolist() == greedy.tolist()
    text = model.generate(torch.tensor([[1, 5, 40, 6]]), max_new_tokens=3)
    assert text.shape[1] <= 3
    with pytest.raises(ValueError, match="needs input_ids"):
        model.generate(max_new_tokens=3)


def test_threads_with_different_scales(
    model: M3ForConditionalGeneration, grid: torch.Tensor
) -> None:
    def answer(scale: int) -> list[int]:
        return model.generate(
            input_ids=ids(), image_grids=grid[:1], scale=scale, max_new_tokens=8
        ).tolist()

    scales = [1, 9, 36, 144] * 2
    wanted = {scale: answer(scale) for scale in set(scales)}
    got: list[tuple[int, list[int]]] = []
    threads = [
        threading.Thread(target=lambda s=scale: got.append((s, answer(s)))) for scale in scales
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(scales)
    assert all(answer_ids == wanted[scale] for scale, answer_ids in got)
    assert "scale" not in vars(model)


def test_gradient_checkpointing_gives_the_same_gradients(
    folder: Path, grid: torch.Tensor, pixels: torch.Tensor
) -> None:
    grads = []
    for checkpointed in (False, True):
        model = M3ForConditionalGeneration.from_pretrained(folder).train()
        if checkpointed:
            model.gradient_checkpointing_enable()
        model(input_ids=ids(), pixel_values=pixels[:1], scale=9, labels=ids()).loss.backward()
        grads.append(model.model.multi_modal_projector.linear_1.weight.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_saving_and_loading_again(
    model: M3ForConditionalGeneration, grid: torch.Tensor, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    again = M3ForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert json.loads((tmp_path / "config.json").read_text())["scales"] == [1, 9, 36, 144, 576]
    with torch.no_grad():
        one = model(input_ids=ids(), image_grids=grid[:1], scale=36).logits
        two = again(input_ids=ids(), image_grids=grid[:1], scale=36).logits
    torch.testing.assert_close(one, two)


def spoil(folder: Path, target: Path, change: str) -> Path:
    """A copy of the checkpoint with one tensor taken away, renamed or cut."""
    target.mkdir()
    (target / "config.json").write_text((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    if change == "missing":
        del weights["model.multi_modal_projector.linear_2.bias"]
    elif change == "unexpected":
        weights["model.image_newline"] = torch.zeros(3)
    else:
        weights["lm_head.weight"] = weights["lm_head.weight"][:-1].clone()
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("missing", r"missing: .*linear_2\.bias"),
        ("unexpected", r"unexpected: .*image_newline"),
        ("shape", r"wrong shape: .*lm_head\.weight"),
    ],
)
def test_loading_is_strict(folder: Path, tmp_path: Path, change: str, name: str) -> None:
    with pytest.raises(CheckpointMismatch, match=name):
        M3ForConditionalGeneration.from_pretrained(spoil(folder, tmp_path / "bad", change))


def test_a_tied_head_is_not_missing(tmp_path: Path) -> None:
    config = tiny_config(64)
    config.tie_word_embeddings = True
    config.text_config.tie_word_embeddings = True
    M3ForConditionalGeneration(config).save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    again = M3ForConditionalGeneration.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.get_input_embeddings().weight


def test_config_checks() -> None:
    assert list(M3Config().scales) == [1, 9, 36, 144, 576]
    assert M3Config().text_vocab_size == 32000
    with pytest.raises(ValueError, match="outside the vocabulary"):
        tiny_config(64, image_token_id=64)
    config = tiny_config(64)
    assert (config.grid_side, config.hidden_size) == (24, 64)
    small = M3Config(
        vision_config={**config.vision_config.to_dict(), "image_size": 96},
        text_config=config.text_config.to_dict(),
        image_token_index=4,
    )
    assert list(small.scales) == [1, 9, 36, 144]


@pytest.mark.gpu
def test_on_a_gpu(folder: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    model = M3ForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).cuda().eval()
    pixels = torch.randn(2, 3, 192, 192)
    grid = model.encode_images(pixels)
    assert grid.is_cuda
    assert grid.dtype == torch.bfloat16
    rows = ids(ROW, ROW).cuda()
    out = model.generate(input_ids=rows, image_grids=grid, scale=[1, 576], max_new_tokens=4)
    assert out.shape[0] == 2
    assert torch.isfinite(model(input_ids=rows, image_grids=grid, scale=9, labels=rows).loss)
