"""Against the official code: its tiny weights converted, its numbers met (tests/data/parity)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from m3model import M3ForConditionalGeneration, pool_visual_tokens
from m3model.convert.checkpoint import convert

DATA = Path(__file__).parents[1] / "data" / "parity"
SCALES = (1, 9, 36, 144, 576)
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> M3ForConditionalGeneration:
    folder = tmp_path_factory.mktemp("parity")
    meta = json.loads((DATA / "meta.json").read_text())
    source = folder / "official"
    source.mkdir()
    shutil.copy(DATA / "llava15_tiny_official_state_dict.safetensors", source / "model.safetensors")
    official = {
        **meta["llava15_config"],
        "model_type": "llava_llama",
        "matryoshka_vis_token_scale": [576, 144, 36, 9, 1],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    (source / "config.json").write_text(json.dumps(official))
    (folder / "vision.json").write_text(json.dumps(meta["vision_config"]))
    convert(source, folder / "ours", folder / "vision.json")
    return M3ForConditionalGeneration.from_pretrained(folder / "ours").eval()


@pytest.fixture(scope="module")
def vectors() -> dict[str, torch.Tensor]:
    return load_file(DATA / "llava15_tiny_vectors.safetensors")


@pytest.fixture(scope="module")
def pixels(vectors: dict[str, torch.Tensor]) -> torch.Tensor:
    return vectors["pixel_values_u8"].float() / 127.5 - 1


@pytest.fixture(scope="module")
def grid(model: M3ForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.encode_images(pixels)


def with_our_image_id(ids: torch.Tensor, model: M3ForConditionalGeneration) -> torch.Tensor:
    return ids.masked_fill(ids == -200, model.config.image_token_id)


def test_config(model: M3ForConditionalGeneration) -> None:
    assert list(model.config.scales) == list(SCALES)
    assert model.config.image_token_id == model.config.text_vocab_size == 96
    assert model.config.vision_feature_layer == -2


def test_vision_features(
    model: M3ForConditionalGeneration, pixels: torch.Tensor, vectors: dict[str, torch.Tensor]
) -> None:
    with torch.no_grad():
        hidden = model.model.vision_tower(pixels[:1], output_hidden_states=True).hidden_states[-2]
    torch.testing.assert_close(hidden[0, 1:], vectors["vision_features_img0"], **CLOSE)


def test_projected_and_pooled(grid: torch.Tensor, vectors: dict[str, torch.Tensor]) -> None:
    torch.testing.assert_close(grid[0], vectors["projected_features_img0"], **CLOSE)
    for scale in SCALES:
        pooled = pool_visual_tokens(grid, scale)[0]
        torch.testing.assert_close(pooled, vectors[f"pooled_img0_scale{scale}"], **CLOSE)


@pytest.mark.parametrize("scale", SCALES)
def test_logits(
    model: M3ForConditionalGeneration,
    pixels: torch.Tensor,
    vectors: dict[str, torch.Tensor],
    scale: int,
) -> None:
    ids = with_our_image_id(vectors["input_ids"], model)
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=pixels[:1], scale=scale)
    torch.testing.assert_close(out.logits[0, :, :96], vectors[f"logits_scale{scale}"], **CLOSE)
    assert (out.logits[0, :, 96] == torch.finfo(torch.float32).min).all()
    assert out.visual_tokens.tolist() == [scale]


@pytest.mark.parametrize("scale", SCALES)
def test_greedy(
    model: M3ForConditionalGeneration,
    grid: torch.Tensor,
    vectors: dict[str, torch.Tensor],
    scale: int,
) -> None:
    out = model.generate(
        input_ids=with_our_image_id(vectors["input_ids"], model),
        image_grids=grid[:1],
        scale=scale,
        max_new_tokens=8,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert out.sequences[0].tolist() == vectors[f"greedy8_scale{scale}"][-8:].tolist()
    steps = torch.cat(out.logits)[:, :96]
    torch.testing.assert_close(steps, vectors[f"greedy8_step_logits_scale{scale}"], **CLOSE)


@pytest.fixture(scope="module")
def train_batch() -> dict[str, torch.Tensor]:
    return load_file(DATA / "llava15_tiny_train.safetensors")


def losses_of(
    model: M3ForConditionalGeneration, pixels: torch.Tensor, batch: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The five losses from ONE vision pass."""
    grid = model.encode_images(pixels)
    return torch.stack(
        [
            model(
                input_ids=with_our_image_id(batch["input_ids"], model),
                attention_mask=batch["attention_mask"],
                labels=batch["labels"],
                image_grids=grid,
                scale=scale,
            ).loss
            for scale in SCALES
        ]
    )


def test_training_loss_and_gradients(
    model: M3ForConditionalGeneration, pixels: torch.Tensor, train_batch: dict[str, torch.Tensor]
) -> None:
    losses = losses_of(model, pixels, train_batch)
    torch.testing.assert_close(losses, train_batch["loss_per_scale"], **CLOSE)
    loss = losses.mean()
    torch.testing.assert_close(loss, train_batch["loss"].squeeze(), **CLOSE)
    model.zero_grad()
    loss.backward()
    inner = model.model
    ours = {
        "lm_head.weight": model.lm_head.weight,
        "model.mm_projector.0.weight": inner.multi_modal_projector.linear_1.weight,
        "model.mm_projector.2.bias": inner.multi_modal_projector.linear_2.bias,
        "model.layers.0.self_attn.q_proj.weight": (
            inner.language_model.layers[0].self_attn.q_proj.weight
        ),
        "model.embed_tokens.weight": inner.language_model.embed_tokens.weight,
    }
    for name, parameter in ours.items():
        wanted = train_batch[f"grad.{name}"]
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad[: len(wanted)], wanted, **CLOSE)
        assert not parameter.grad[len(wanted) :].any(), f"{name}: the added row was trained"
    model.zero_grad()


def test_mixed_batch_equals_singles(
    model: M3ForConditionalGeneration, grid: torch.Tensor, vectors: dict[str, torch.Tensor]
) -> None:
    ids = with_our_image_id(vectors["input_ids"], model)[0]
    rows = [ids, ids[:7], torch.tensor([1, 5, 9, 11])]
    scales, grids = [144, 9], grid[[1, 0]]
    for side in ("right", "left"):
        batch = torch.zeros(3, 10, dtype=torch.long)
        mask = torch.zeros_like(batch)
        for i, row in enumerate(rows):
            span = slice(0, len(row)) if side == "right" else slice(10 - len(row), 10)
            batch[i, span], mask[i, span] = row, 1
        with torch.no_grad():
            mixed = model(input_ids=batch, attention_mask=mask, image_grids=grids, scale=scales)
        assert mixed.visual_tokens.tolist() == [144, 9, 0]
        for i, row in enumerate(rows):
            pictures = {"image_grids": grids[i : i + 1], "scale": scales[i]} if i < 2 else {}
            with torch.no_grad():
                single = model(input_ids=row[None], **pictures)
            real = mixed.logits[i][mixed.attention_mask[i].bool()]
            torch.testing.assert_close(real, single.logits[0], **CLOSE)
            alone = model.generate(input_ids=row[None], max_new_tokens=5, **pictures)[0].tolist()
            together = model.generate(
                input_ids=batch,
                attention_mask=mask,
                image_grids=grids,
                scale=scales,
                max_new_tokens=5,
            )[i].tolist()
            assert together[: len(alone)] == alone
