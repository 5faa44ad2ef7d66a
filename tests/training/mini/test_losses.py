"""The losses of m3-mini: packed questions equal single ones, and the exported folder agrees."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from m3model import (
    Focus,
    M3ForConditionalGeneration,
    M3Processor,
    RelevanceReadout,
)
from training.mini.batch import BlockTokens, make_batch, pack_scenes, patch_weights
from training.mini.losses import (
    answer_loss,
    answer_states,
    draw_cuts,
    exact_matches,
)
from training.mini.model import MiniModel, export, grow, mini_scales
from training.scenes.scene import generate_scene

from .conftest import SHAPE


def test_packed_question_gets_the_logits_it_gets_alone(model, tokenizer) -> None:
    scenes = [generate_scene(seed, namespace="validation", size_px=96) for seed in range(2)]
    batch = pack_scenes(scenes, tokenizer, BlockTokens.of(tokenizer))
    image_id = model.m3.config.image_token_id
    with torch.no_grad():
        grid = model.grid(batch.pixels)
        packed, _ = answer_states(model, grid, batch, 9)
        alone = []
        for i, scene in enumerate(scenes):
            for question in scene.questions:
                ids = tokenizer(
                    f"<q>{question.text}<a>{question.answer}", add_special_tokens=False
                )["input_ids"]
                row = torch.tensor([[tokenizer.bos_token_id, image_id, *ids]])
                n_answer = (
                    len(tokenizer(question.answer, add_special_tokens=False)["input_ids"]) + 1
                )
                out = model.m3(input_ids=row, image_grids=grid[i : i + 1], scale=9)
                alone.append(out.logits[0, -n_answer:])
    known = [i for i in range(len(tokenizer)) if i != image_id]
    torch.testing.assert_close(packed[:, known], torch.cat(alone)[:, known], atol=2e-4, rtol=1e-3)


@pytest.fixture(scope="module")
def cut_scenes(tokenizer):
    scenes = [generate_scene(seed, namespace="validation", size_px=96) for seed in range(3)]
    foci = [Focus(9, 36, (0, 5, 8)), Focus(1, 144, (35,)), Focus(36, 144, ())]
    return scenes, pack_scenes(scenes, tokenizer, BlockTokens.of(tokenizer)), foci


def losses_alone(model, tokenizer, scenes, grid, foci) -> list[list[torch.Tensor]]:
    """The cross entropy of every answer token, one question at a time: [picture][question]."""
    image_id = model.m3.config.image_token_id
    found = []
    for i, scene in enumerate(scenes):
        found.append([])
        for question in scene.questions:
            ids, answer = (
                tokenizer(text, add_special_tokens=False)["input_ids"]
                for text in (f"<q>{question.text}<a>{question.answer}", question.answer)
            )
            row = torch.tensor([[tokenizer.bos_token_id, image_id, *ids]])
            out = model.m3(input_ids=row, image_grids=grid[i : i + 1], scale=foci[i])
            target = torch.tensor([*answer, tokenizer.eos_token_id])
            logits = out.logits[0, -len(target) :]
            found[-1].append(torch.nn.functional.cross_entropy(logits, target, reduction="none"))
    return found


def test_packed_cuts_of_any_length_cost_what_they_cost_alone(model, tokenizer, cut_scenes) -> None:
    """Prefixes of 21, 5 and 36 tokens in one batch: what pads the shorter ones is not seen."""
    scenes, batch, foci = cut_scenes
    weights = torch.rand(batch.question_mask.shape[:2], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        grid = model.grid(batch.pixels)
        alone = losses_alone(model, tokenizer, scenes, grid, foci)
        packed = answer_loss(model, grid, batch, foci)
        weighed = answer_loss(model, grid, batch, foci, weights)
        shorter = answer_loss(model, grid[:2], _first(batch, 2), foci[:2])
    every = torch.cat([each for picture in alone for each in picture])
    torch.testing.assert_close(packed, every.mean(), atol=1e-4, rtol=1e-4)
    some = torch.cat([each for picture in alone[:2] for each in picture])
    torch.testing.assert_close(shorter, some.mean(), atol=1e-4, rtol=1e-4)
    pairs = [
        (row[question], each)
        for row, picture in zip(weights, alone, strict=True)
        for question, each in enumerate(picture)
    ]
    total = sum(w * each.sum() for w, each in pairs) / sum(w * len(each) for w, each in pairs)
    torch.testing.assert_close(weighed, total, atol=1e-4, rtol=1e-4)


def _first(batch, n: int):
    tensors = {k: v[:n] for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
    return replace(batch, **tensors)


def test_gradients_reach_no_picture_through_the_padding(model, tokenizer, cut_scenes) -> None:
    _, batch, foci = cut_scenes
    grid = model.grid(batch.pixels).detach().requires_grad_()
    logits, _ = answer_states(model, grid, batch, foci)
    per_row = [(batch.target[i] != -100).sum() for i in range(3)]
    logits[: per_row[0]].sum().backward()
    touched = grid.grad.abs().sum(dim=(1, 2)) > 0
    assert touched.tolist() == [True, False, False]


def test_a_cut_follows_from_the_scenes_seed_alone(model, tokenizer) -> None:
    def cuts(seeds: range):
        with torch.no_grad():
            batch = make_batch(seeds, "model", 96, tokenizer)
            return draw_cuts(model, model.grid(batch.pixels), batch, seeds)

    together, weights = cuts(range(40, 44))
    again, same = cuts(range(40, 44))
    assert together == again
    assert weights.equal(same)
    halves = [cuts(range(40, 42)), cuts(range(42, 44))]  # as two workers split the step
    assert [focus for part, _ in halves for focus in part] == together
    for rows, (_, own) in zip(weights.split(2), halves, strict=True):
        assert rows[:, : own.shape[1]].equal(own)
    assert len({*together, *cuts(range(44, 48))[0]}) > 4  # others are cut otherwise
    scales = mini_scales(12)
    assert all({focus.coarse, focus.fine} <= set(scales) for focus in together)


def test_weights_are_of_the_questions_there_are(model, tokenizer) -> None:
    seeds = range(8)
    batch = make_batch(seeds, "model", 96, tokenizer)
    with torch.no_grad():
        _, weights = draw_cuts(model, model.grid(batch.pixels), batch, seeds)
    for row, asked in zip(weights, batch.question_mask.any(-1), strict=True):
        assert (row[~asked] == 0).all()
        assert 1 <= (row[asked] == 1).sum() <= 3
        assert ((row[asked] == 1) | (row[asked] == 0.25)).all()


def test_exact_matches_agree_with_generate_on_the_exported_folder(
    model, tokenizer, tmp_path: Path
) -> None:
    export(model, tokenizer, tmp_path)
    loaded = M3ForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    processor = M3Processor.from_pretrained(tmp_path)
    scenes = [generate_scene(seed, namespace="validation", size_px=96) for seed in range(4)]
    batch = pack_scenes(scenes, tokenizer, BlockTokens.of(tokenizer))
    found = []
    rounded = MiniModel(SHAPE, tokenizer, 12)
    rounded.load_state_dict({k: v.half().float() for k, v in model.state_dict().items()})
    for i, scene in enumerate(scenes):
        for question in scene.questions:
            content = [{"type": "image"}, {"type": "text", "text": question.text}]
            ids = torch.tensor([processor.prompt_ids([{"role": "user", "content": content}])])
            new = loaded.generate(
                input_ids=ids, pixel_values=batch.pixels[i : i + 1], scale=36, max_new_tokens=8
            )
            found.append(processor.decode(new[0]) == question.answer)
    with torch.no_grad():
        packed = exact_matches(rounded, rounded.grid(batch.pixels), batch, 36)
    assert packed.tolist() == found
    assert RelevanceReadout.from_pretrained(tmp_path) is not None


def test_relevance_of_training_equals_the_shipped_readout(model, tokenizer, tmp_path: Path) -> None:
    export(model, tokenizer, tmp_path)
    readout = RelevanceReadout.from_pretrained(tmp_path)
    batch = make_batch([3], "validation", 96, tokenizer)
    with torch.no_grad():
        grid = model.grid(batch.pixels)
        logits = model.relevance_logits(grid, batch.question_ids, batch.question_mask)
    ids = batch.question_ids[0, 0][batch.question_mask[0, 0]].tolist()
    np.testing.assert_allclose(
        readout.map(grid[0].numpy(), ids), logits[0, 0].sigmoid().numpy(), atol=1e-5
    )


def test_patch_weights_give_small_objects_the_say_of_large_ones() -> None:
    instance = np.array([[0, 0, 1], [0, 0, 2], [0, 0, 2]])
    weights = patch_weights(instance).reshape(3, 3)
    assert weights.sum() == pytest.approx(1.0)
    assert weights[instance == 1].sum() == pytest.approx(weights[instance == 2].sum())
    assert weights[instance == 0].sum() == pytest.approx(0.2)


def test_growing_keeps_the_weights_and_refines_the_grid(model, tokenizer) -> None:
    fine = grow(model, tokenizer, 24)
    same = {
        k
        for k, v in fine.state_dict().items()
        if v.equal(model.state_dict().get(k, torch.empty(0)))
    }
    assert set(fine.state_dict()) - same == {
        "m3.model.vision_tower.embeddings.position_embedding.weight"
    }
    assert list(fine.m3.config.scales) == [1, 9, 36, 144, 576]


def test_a_card_promises_no_cuts_that_were_not_taught(model, tokenizer, tmp_path: Path) -> None:
    export(model, tokenizer, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "Focus(coarse, fine, cells)" not in card
    assert "taught it no cuts" in card
