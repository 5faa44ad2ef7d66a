"""Sources of relevance against literal loops over the model's own weights; CLIP on tiny weights."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from m3model import M3ForConditionalGeneration, M3Processor, RelevanceReadout
from m3model.errors import RelevanceUnavailable
from m3model.relevance.choice import relevance_name, relevance_sources
from m3model.relevance.source import encode_with_tower, squashed
from m3model.tiny import write_tiny_clip

QUESTION = "what colour is the star"


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return M3ForConditionalGeneration.from_pretrained(tiny_model).eval()


@pytest.fixture(scope="module")
def pixels(tiny_model: Path) -> torch.Tensor:
    noise = np.random.default_rng(0).integers(0, 255, (192, 192, 3), dtype=np.uint8)
    return M3Processor.from_pretrained(tiny_model).pixel_values(Image.fromarray(noise))


@pytest.fixture(scope="module")
def grid(model: Any, pixels: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return model.encode_images(pixels)[0].numpy()


@pytest.fixture(scope="module")
def ids(tiny_model: Path) -> list[int]:
    return M3Processor.from_pretrained(tiny_model).question_ids(QUESTION)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole tiny CLIP model whose picture half is as wide as the tiny model's tower (32)."""
    return write_tiny_clip(tmp_path_factory.mktemp("clip"), QUESTION.split())


def test_cosine_is_the_loop_over_words(model: Any, grid: np.ndarray, ids: list[int]) -> None:
    source = relevance_sources(model, "nowhere")["cosine"]
    table = model.get_input_embeddings().weight.detach().numpy()[: model.config.text_vocab_size]
    best = np.full(len(grid), -np.inf)
    for token in ids:
        word = table[token] - table.mean(axis=0)
        cosines = np.array(
            [
                float((p - grid.mean(0)) @ word)
                / np.linalg.norm(p - grid.mean(0))
                / np.linalg.norm(word)
                for p in grid
            ]
        )
        best = np.maximum(best, (cosines - cosines.mean()) / cosines.std())
    z = (best - best.mean()) / best.std()
    expected = 1 / (1 + np.exp(-2 * (z - 1)))
    found = source.score(source.project(grid, None), QUESTION, ids)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_attention_is_the_loop_over_heads_and_words(
    model: Any, grid: np.ndarray, ids: list[int]
) -> None:
    layer, heads = model.model.language_model.layers[0], 4
    table = model.get_input_embeddings().weight[: model.config.text_vocab_size]
    with torch.no_grad():
        keys = layer.self_attn.k_proj(layer.input_layernorm(torch.from_numpy(grid))).numpy()
        queries = layer.self_attn.q_proj(layer.input_layernorm(table)).numpy()
    width = keys.shape[1] // heads
    best = np.zeros(len(grid))
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for token in ids:
            q = queries[token, part] - queries[:, part].mean(axis=0)
            logits = (keys[:, part] - keys[:, part].mean(axis=0)) @ q / math.sqrt(width)
            weights = np.exp(logits) / np.exp(logits).sum()
            best = np.maximum(best, weights)
    source = relevance_sources(model, "nowhere")["attention"]
    found = source.score(source.project(grid, None), QUESTION, ids)
    np.testing.assert_allclose(found, squashed(best.astype(np.float32)), atol=2e-4)


def test_grouped_query_heads_share_their_keys() -> None:
    from m3model.tiny import redraw_weights, tiny_config

    config = tiny_config(20)
    config.text_config.num_key_value_heads = 2
    model = M3ForConditionalGeneration(config).eval()
    redraw_weights(model, 0)
    source = relevance_sources(model, "nowhere")["attention"]
    patches = np.random.default_rng(0).standard_normal((576, 64)).astype(np.float32)
    grouped = source.score(source.project(patches, None), "", [5, 6])
    # The same model with every key head written out twice.
    whole = tiny_config(20)
    double = M3ForConditionalGeneration(whole).eval()
    state = model.state_dict()
    for name, value in state.items():
        if "language_model" in name and ("k_proj" in name or "v_proj" in name):
            state[name] = value.reshape(2, 16, -1).repeat_interleave(2, dim=0).flatten(0, 1)
    double.load_state_dict(state)
    same = relevance_sources(double, "nowhere")["attention"]
    found = same.score(same.project(patches, None), "", [5, 6])
    np.testing.assert_allclose(grouped, found, atol=1e-5)


def test_no_words_mean_no_relevance(model: Any, grid: np.ndarray) -> None:
    for name in ("cosine", "attention"):
        source = relevance_sources(model, "nowhere")[name]
        assert not source.score(source.project(grid, None), "", []).any()


def test_one_pass_gives_the_grid_and_what_enters_the_last_layer(
    model: Any, pixels: torch.Tensor, grid: np.ndarray
) -> None:
    with torch.no_grad():
        grids, towers = encode_with_tower(model, pixels)
        states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states
    np.testing.assert_array_equal(grids[0].numpy(), grid)
    torch.testing.assert_close(towers, states[-2][:, 1:])


def test_clip_relevance_is_clips_own_arithmetic(
    model: Any, pixels: torch.Tensor, grid: np.ndarray, ids: list[int], clip_folder: Path
) -> None:
    from transformers import CLIPModel

    clip = CLIPModel.from_pretrained(clip_folder).eval()
    tower = model.model.vision_tower
    with torch.no_grad():
        _, towers = encode_with_tower(model, pixels)
        attention = tower.encoder.layers[-1].self_attn
        values = attention.v_proj(tower.encoder.layers[-1].layer_norm1(towers[0]))
        shared = clip.visual_projection(tower.post_layernorm(attention.out_proj(values)))
        shared = shared / shared.norm(dim=1, keepdim=True)
        shared = shared - shared.mean(dim=0)
        shared = shared / shared.norm(dim=1, keepdim=True)
        tokens = torch.tensor([[0, *range(3, 8), 1]])  # <s> what colour is the star </s>
        pooled = clip.text_model(input_ids=tokens).last_hidden_state[0, -1]
        text = clip.text_projection(pooled)
    sources = relevance_sources(model, "nowhere", clip_folder)
    name = relevance_name("nowhere", "clip", clip_folder)
    assert relevance_name("nowhere", "auto", clip_folder) == name
    source = sources[name]
    found = source.score(source.project(grid, towers[0]), QUESTION, ids)
    np.testing.assert_allclose(found, squashed((shared @ text).numpy()), atol=1e-4)
    long = source.score(source.project(grid, towers[0]), QUESTION * 9, ids)
    assert np.isfinite(long).all()


def test_a_text_encoder_that_does_not_fit_is_refused(
    model: Any, tiny_model: Path, tmp_path: Path
) -> None:
    foreign = write_tiny_clip(tmp_path / "foreign", QUESTION.split(), vision_width=48)
    with pytest.raises(RelevanceUnavailable, match=r"\(12, 48\), this model's tower needs"):
        relevance_sources(model, tiny_model, foreign)
    half = write_tiny_clip(tmp_path / "half", QUESTION.split())
    tensors = load_file(half / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, half / "model.safetensors", {"format": "pt"})
    with pytest.raises(RelevanceUnavailable, match=r"lacks visual_projection\.weight"):
        relevance_sources(model, tiny_model, half)
    for call in (relevance_sources, lambda m, *rest: relevance_name(rest[0], "clip", rest[1])):
        with pytest.raises(RelevanceUnavailable, match="holds no CLIP text encoder"):
            call(model, tiny_model, tmp_path)
    with pytest.raises(RelevanceUnavailable, match="holds no CLIP text encoder"):
        relevance_sources(model, tiny_model, tiny_model)


def test_the_best_source_at_hand_is_taken(tiny_model: Path, tmp_path: Path) -> None:
    assert relevance_name(tiny_model) == "readout"
    assert relevance_name(tiny_model, "attention") == "attention"
    assert relevance_name(tmp_path) == "attention"
    with pytest.raises(RelevanceUnavailable, match="m3-train readout"):
        relevance_name(tmp_path, "readout")
    with pytest.raises(RelevanceUnavailable, match="--text-encoder"):
        relevance_name(tmp_path, "clip")
    with pytest.raises(RelevanceUnavailable, match="unknown relevance 'masks'"):
        relevance_name(tmp_path, "masks")


def test_the_readout_is_a_source(
    model: Any, tiny_model: Path, grid: np.ndarray, ids: list[int]
) -> None:
    readout = RelevanceReadout.from_pretrained(tiny_model)
    source = relevance_sources(model, tiny_model)["readout"]
    assert readout is not None
    found = source.score(source.project(grid, None), QUESTION, ids)
    np.testing.assert_array_equal(found, readout.map(grid, ids))
