"""A picture read coarsely with some cells fine: against a loop, stock LLaVA, and one at a time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import LlavaForConditionalGeneration

from m3model import (
    Focus,
    M3Config,
    M3ForConditionalGeneration,
    focus_visual_tokens,
    pool_visual_tokens,
    request_cost,
)
from m3model.capacity import plan
from m3model.config import llava_shape
from m3model.convert.checkpoint import convert
from m3model.cost import HARDWARE
from m3model.tiny import write_tiny_checkpoint

PARITY = Path(__file__).parents[1] / "data" / "parity"
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
IMAGE = 4
FOCI = [
    Focus(1, 576, (0, 143)),
    Focus(36, 576, (5, 6, 17, 18, 40)),
    Focus(9, 144, (2, 3)),
    Focus(9, 576, ()),
]


def loop_tokens(grid: np.ndarray, level: int) -> list[np.ndarray]:
    """The tokens of a level, row-major: each the mean of the patches in its place."""
    side, across = int(len(grid) ** 0.5), int(level**0.5)
    block = side // across
    square = grid.reshape(side, side, -1)
    return [
        np.mean(
            [square[r, c] for r in range(row * block, (row + 1) * block)
             for c in range(column * block, (column + 1) * block)],
            axis=0,
        )
        for row in range(across)
        for column in range(across)
    ]  # fmt: skip


def loop_focus(grid: np.ndarray, coarse: int, fine: int, cells: set[int]) -> np.ndarray:
    """Every fine token in row-major order, asked which cell it lies in."""
    across = int(fine**0.5)
    kept = [
        token
        for place, token in enumerate(loop_tokens(grid, fine))
        if (place // across) // 2 * (across // 2) + (place % across) // 2 in cells
    ]
    return np.stack(loop_tokens(grid, coarse) + kept)


@st.composite
def readings(draw: st.DrawFn) -> tuple[np.ndarray, Focus]:
    side = draw(st.sampled_from([4, 6, 8, 12]))
    levels = [part * part for part in range(1, side + 1) if side % part == 0]
    fine = draw(st.sampled_from([level for level in levels if level**0.5 % 2 == 0]))
    coarse = draw(st.sampled_from([level for level in levels if level < fine]))
    cells = draw(st.sets(st.integers(0, fine // 4 - 1)))
    seed = draw(st.integers(0, 2**16))
    grid = np.random.default_rng(seed).normal(size=(side * side, 3))
    return grid, Focus(coarse, fine, tuple(sorted(cells)))


@given(readings())
@settings(max_examples=60, deadline=None)
def test_tokens_are_those_of_a_loop(case: tuple[np.ndarray, Focus]) -> None:
    grid, focus = case
    read = focus_visual_tokens(torch.from_numpy(grid)[None], focus)[0]
    wanted = loop_focus(grid, focus.coarse, focus.fine, set(focus.cells))
    assert read.shape == (focus.visual_tokens, 3)
    np.testing.assert_allclose(read.numpy(), wanted, atol=1e-12)


@given(readings())
@settings(max_examples=30, deadline=None)
def test_no_cell_is_the_scale_and_all_cells_both_scales(case: tuple[np.ndarray, Focus]) -> None:
    grid, focus = torch.from_numpy(case[0]), case[1]
    coarse, fine = pool_visual_tokens(grid, focus.coarse), pool_visual_tokens(grid, focus.fine)
    assert focus_visual_tokens(grid, Focus(focus.coarse, focus.fine, ())).equal(coarse)
    every = Focus(focus.coarse, focus.fine, tuple(range(focus.fine // 4)))
    assert focus_visual_tokens(grid, every).equal(torch.cat([coarse, fine]))


def test_layout_of_a_small_grid() -> None:
    """4x4 patches, worked by hand: the mean, then the right half's tokens row by row."""
    grid = torch.arange(16.0)[:, None]
    read = focus_visual_tokens(grid, Focus(1, 16, (1, 3)))[:, 0]
    assert read.tolist() == [7.5, 2, 3, 6, 7, 10, 11, 14, 15]


def test_keeps_dtype_and_leading_dimensions() -> None:
    read = focus_visual_tokens(torch.randn(2, 3, 576, 4, dtype=torch.float16), FOCI[0])
    assert (read.shape, read.dtype) == ((2, 3, 9, 4), torch.float16)


@pytest.mark.parametrize(
    ("focus", "says"),
    [
        ((2, 576, ()), "coarse must be a square"),
        ((True, 576, ()), "coarse must be a square"),
        ((9, 36.0, ()), "fine must be a square"),
        ((36, 9, ()), "must be finer"),
        ((36, 36, ()), "must be finer"),
        ((1, 9, ()), "even number"),
        ((9, 576, (144,)), r"0\.\.143"),
        ((9, 144, (36,)), r"0\.\.35"),
        ((9, 576, (-1,)), r"0\.\.143"),
        ((9, 576, (3, 2)), "ascending"),
        ((9, 576, (3, 3)), "ascending"),
        ((9, 576, (True,)), "whole numbers"),
        ((9, 576, (1.0,)), "whole numbers"),
    ],
)
def test_what_is_no_focus_is_refused(focus: tuple[Any, Any, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Focus(*focus)


def test_numbers_of_numpy_become_plain_ones() -> None:
    focus = Focus(np.int64(9), np.int64(144), tuple(np.array([1, 5])))  # type: ignore[arg-type]
    assert focus == Focus(9, 144, (1, 5))
    assert all(type(number) is int for number in (focus.coarse, focus.fine, *focus.cells))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> M3ForConditionalGeneration:
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model", seed=1)
    return M3ForConditionalGeneration.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def grids(model: M3ForConditionalGeneration) -> torch.Tensor:
    pixels = torch.randn(5, 3, 192, 192, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.encode_images(pixels)


@pytest.mark.parametrize("side", ["left", "right"])
def test_any_mix_in_a_batch_equals_one_at_a_time(
    model: M3ForConditionalGeneration, grids: torch.Tensor, side: str
) -> None:
    """Scales and foci, two pictures in a row, a row without: logits, counts, loss, answers."""
    rows = [
        [1, IMAGE, 5, 40, 41, 42, 6],
        [1, IMAGE, 40, IMAGE, 5, 41, 6],
        [1, 5, 40, 6],
        [1, IMAGE, 6],
        [1, IMAGE, 5, 43, 44, 6],
    ]
    scales: list[int | Focus] = [FOCI[1], 36, FOCI[0], FOCI[2], 144]
    owner = [slice(0, 1), slice(1, 3), slice(0, 0), slice(3, 4), slice(4, 5)]
    longest = max(map(len, rows))
    ids, mask = torch.zeros(5, longest, dtype=torch.long), torch.zeros(5, longest, dtype=torch.long)
    for i, row in enumerate(rows):
        span = slice(0, len(row)) if side == "right" else slice(longest - len(row), longest)
        ids[i, span], mask[i, span] = torch.tensor(row), 1
    batch = {"input_ids": ids, "attention_mask": mask, "image_grids": grids, "scale": scales}
    with torch.no_grad():
        mixed = model(**batch)
    assert mixed.visual_tokens.tolist() == [56, 45, 0, 17, 144]
    together = model.generate(**batch, max_new_tokens=5).tolist()
    for i, row in enumerate(rows):
        own: dict[str, Any] = {"input_ids": torch.tensor([row])}
        if i != 2:
            own |= {"image_grids": grids[owner[i]], "scale": scales[owner[i]]}
        with torch.no_grad():
            single = model(**own)
        real = mixed.logits[i][mixed.attention_mask[i].bool()]
        torch.testing.assert_close(real, single.logits[0], **CLOSE)
        alone = model.generate(**own, max_new_tokens=5)[0].tolist()
        assert together[i][: len(alone)] == alone


def test_one_focus_serves_all_pictures_and_none_is_the_scale(
    model: M3ForConditionalGeneration, grids: torch.Tensor
) -> None:
    ids = torch.tensor([[1, IMAGE, 5, 40, 6]] * 2)
    with torch.no_grad():
        every = model(input_ids=ids, image_grids=grids[:2], scale=FOCI[2])
        each = model(input_ids=ids, image_grids=grids[:2], scale=[FOCI[2], FOCI[2]])
        empty = model(input_ids=ids, image_grids=grids[:2], scale=FOCI[3])
        uniform = model(input_ids=ids, image_grids=grids[:2], scale=9)
    assert every.logits.equal(each.logits)
    assert empty.logits.equal(uniform.logits)


def test_levels_must_be_scales_of_the_model(
    model: M3ForConditionalGeneration, grids: torch.Tensor
) -> None:
    ids = torch.tensor([[1, IMAGE, 5, 6]])
    for call in (model, model.generate):
        for focus in (Focus(4, 576, ()), Focus(9, 64, (1,))):
            with pytest.raises(ValueError, match=r"unknown level .* knows 1, 9, 36, 144, 576"):
                call(input_ids=ids, image_grids=grids[:1], scale=focus)
        with pytest.raises(ValueError, match="without a picture"):
            call(input_ids=torch.tensor([[1, 5, 6]]), scale=FOCI[0])


def test_costs_are_those_of_its_tokens() -> None:
    shape, focus = llava_shape("7b"), Focus(36, 576, tuple(range(27)))
    assert focus.visual_tokens == 144
    hardware = HARDWARE["NVIDIA H200"]
    assert request_cost(shape, focus.visual_tokens) == request_cost(shape, 144)
    assert plan(shape, hardware, {focus: 1.0}) == plan(shape, hardware, {144: 1.0})
    mixed = plan(shape, hardware, {focus: 1.0, 144: 1.0, 9: 2.0})
    assert mixed.mean_visual_tokens == (144 + 9) / 2
    with pytest.raises(ValueError, match="unknown level 4 "):
        plan(shape, hardware, {Focus(4, 144, ()): 1.0})


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> M3ForConditionalGeneration:
    """The tiny checkpoint in LLaVA-1.5's own format, converted."""
    folder = tmp_path_factory.mktemp("parity")
    meta = json.loads((PARITY / "meta.json").read_text())
    source = folder / "official"
    source.mkdir()
    shutil.copy(
        PARITY / "llava15_tiny_official_state_dict.safetensors", source / "model.safetensors"
    )
    config = {**meta["llava15_config"], "model_type": "llava_llama"}
    (source / "config.json").write_text(json.dumps(config))
    (folder / "vision.json").write_text(json.dumps(meta["vision_config"]))
    convert(source, folder / "ours", folder / "vision.json")
    return M3ForConditionalGeneration.from_pretrained(folder / "ours").eval()


@pytest.mark.parametrize("focus", FOCI)
def test_official_weights_read_a_focus_as_stock_llava_the_same_features(
    official: M3ForConditionalGeneration, focus: Focus
) -> None:
    """The features are the official code's own pooled ones; the language model is stock."""
    vectors = load_file(PARITY / "llava15_tiny_vectors.safetensors")
    coarse = vectors[f"pooled_img0_scale{focus.coarse}"]
    fine = vectors[f"pooled_img0_scale{focus.fine}"]
    across = int(focus.fine**0.5)
    kept = [
        place
        for place in range(focus.fine)
        if (place // across) // 2 * (across // 2) + (place % across) // 2 in focus.cells
    ]
    features = torch.cat([coarse, fine[kept]])
    stock = LlavaForConditionalGeneration(_as_llava(official.config)).eval()
    stock.load_state_dict(official.state_dict())
    ids = vectors["input_ids"].masked_fill(
        vectors["input_ids"] == -200, official.config.image_token_id
    )
    (row,) = ids.tolist()
    at = row.index(official.config.image_token_id)
    table = stock.get_input_embeddings()
    embeds = torch.cat(
        [table(torch.tensor(row[:at])), features, table(torch.tensor(row[at + 1 :]))]
    )
    pixels = vectors["pixel_values_u8"][:1].float() / 127.5 - 1
    with torch.no_grad():
        wanted = stock(inputs_embeds=embeds[None]).logits
        found = official(input_ids=ids, pixel_values=pixels, scale=focus)
    assert found.visual_tokens.tolist() == [len(features)]
    torch.testing.assert_close(found.logits[..., :96], wanted[..., :96], **CLOSE)


def _as_llava(config: M3Config) -> Any:
    from transformers import LlavaConfig

    told = config.to_dict()
    return LlavaConfig(**{key: told[key] for key in LlavaConfig().to_dict() if key in told})
