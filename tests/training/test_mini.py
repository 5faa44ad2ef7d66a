"""The m3-mini trainer: packed questions equal single ones, runs resume exactly, workers split."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from m3model import (
    Focus,
    M3ForConditionalGeneration,
    M3Processor,
    RelevanceReadout,
    default_model_path,
)
from training.errors import ParametersDiffer, TrainingError
from training.mini.batch import BlockTokens, make_batch, pack_scenes, patch_weights
from training.mini.losses import (
    answer_loss,
    answer_states,
    draw_cuts,
    exact_matches,
    register_attention,
)
from training.mini.model import MiniModel, MiniShape, export, grow, mini_scales, mini_tokenizer
from training.mini.optimizer import Muon, orthogonal
from training.mini.precision import chosen_dtype, product_seconds
from training.mini.train import (
    ADAPT,
    ANNEAL,
    CUT,
    POINT,
    MiniRun,
    Stage,
    learning_rate,
    recipe_stages,
    sample_scales,
    shortened,
    train,
    training_loss,
)
from training.mini.train import STAGES as FULL_STAGES
from training.scenes.scene import generate_scene

SHAPE = MiniShape(
    width=32, vision_layers=1, vision_mlp=32, text_layers=1, text_mlp=32, relevance_width=8
)
STAGES = (
    Stage("look", 12, 2, 1e-3, 1e-3, (), warmup=1),
    Stage("answer", 12, 2, 1e-3, 1e-3, ((1, 9), (36, 144)), warmup=1),
    Stage("cut", 12, 2, 1e-3, 1e-3, ((9, 36, 36),), warmup=1, scale_weight=0.6, cut_weight=1.0),
)
# Machines as `train` measures them: seconds of products, by dtype.
WITH_BF16 = {torch.bfloat16: 1.0, torch.float32: 3.5}.__getitem__
WITHOUT_BF16 = {torch.bfloat16: 40.0, torch.float32: 1.0}.__getitem__


@pytest.fixture(scope="module")
def tokenizer():
    register_attention()
    return mini_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    model = MiniModel(SHAPE, tokenizer, 12)
    with torch.no_grad():  # a fresh model answers the same everywhere
        model.m3.get_input_embeddings().weight.mul_(30)
    return model


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


def test_cuts_go_on_from_weights_in_three_stages() -> None:
    assert recipe_stages(further=True, focus=True) == (CUT, POINT, ANNEAL)
    assert recipe_stages(further=True, focus=True, only="anneal") == (ANNEAL,)
    assert recipe_stages(further=True, focus=False) == ADAPT
    assert recipe_stages(further=False, focus=False) == FULL_STAGES
    assert not any(stage.cut_weight for stage in (*ADAPT, *FULL_STAGES))
    with pytest.raises(TrainingError, match="there is: cut, point, anneal"):
        recipe_stages(further=True, focus=True, only="fine")
    # The last stage begins at the rate at which the one before ends.
    assert learning_rate(POINT, POINT.steps) == learning_rate(ANNEAL, ANNEAL.warmup) == 1.0e-3
    assert CUT.steps + POINT.steps + ANNEAL.steps == 4500


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


def test_sampled_scales_weigh_every_scale_the_same() -> None:
    rng, share = np.random.default_rng(0), dict.fromkeys(mini_scales(24), 0.0)
    for _ in range(20_000):
        for scale, weight in sample_scales(FULL_STAGES[-1].scale_groups, rng):
            share[scale] += weight / 20_000
    assert list(share) == [1, 9, 36, 144, 576]
    assert all(abs(value - 0.2) < 0.01 for value in share.values())


def test_learning_rate_warms_up_and_ends_where_it_should() -> None:
    stage = Stage("s", 12, 100, 1.0, 0.1, (), warmup=10)
    assert learning_rate(stage, 0) == pytest.approx(0.1)
    assert learning_rate(stage, 10) == pytest.approx(1.0)
    assert learning_rate(stage, 100) == pytest.approx(0.1)
    assert learning_rate(stage, 55) == pytest.approx(0.55)


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


def test_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def die_at(step: int):
        def report(event: dict) -> None:
            if event["stage"] == "cut" and event["step"] == step:
                raise Killed

        return report

    run = MiniRun(
        tmp_path / "whole",
        stages=STAGES,
        pictures=2,
        workers=1,
        shape=SHAPE,
        checkpoint_every=1,
        validation_pictures=2,
    )
    train(run, lambda event: None, seconds=WITH_BF16)
    broken = replace(run, out=tmp_path / "broken")
    with pytest.raises(Killed):
        train(broken, die_at(2), seconds=WITH_BF16)
    train(broken, lambda event: None, seconds=WITH_BF16)
    whole, resumed = (load_file(r.out / "checkpoint" / "state.safetensors") for r in (run, broken))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert "Focus(coarse, fine, cells)" in (run.out / "README.md").read_text()


def test_a_card_promises_no_cuts_that_were_not_taught(model, tokenizer, tmp_path: Path) -> None:
    export(model, tokenizer, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "Focus(coarse, fine, cells)" not in card
    assert "taught it no cuts" in card


@pytest.mark.parametrize(
    ("machine", "dtype", "why"),
    [
        (WITH_BF16, torch.bfloat16, "bf16: fp32 products take 3.5 x as long"),
        (WITHOUT_BF16, torch.float32, "fp32: bf16 products take 40.0 x as long"),
    ],
)
def test_the_faster_dtype_computes_and_says_so(machine, dtype, why, tokenizer, tmp_path) -> None:
    run = MiniRun(
        tmp_path, stages=STAGES[:1], pictures=2, workers=1, shape=SHAPE, checkpoint_every=1
    )
    losses, said = [], []
    train(run, lambda event: losses.append(event["loss"]), said.append, machine)
    assert chosen_dtype("cpu", machine)[0] == dtype
    (line,) = said
    assert why in line
    # The loss of the first step, computed here without a copy in another dtype.
    torch.manual_seed(run.seed)
    master = MiniModel(SHAPE, tokenizer, 12)
    master.m3.set_attn_implementation("m3_mini")
    batch = make_batch(range(2), "model", 96, tokenizer)
    rng = np.random.default_rng([run.seed, 0, 0])
    with torch.no_grad():
        exact, _ = training_loss(master, batch, STAGES[0], rng, range(2))
    off = abs(losses[0] / float(exact) - 1)
    assert off < 1e-5 if dtype == torch.float32 else 1e-5 < off < 0.02
    ended = load_file(run.out / "checkpoint" / "state.safetensors")
    moved = [not ended[f"master.{k}"].equal(p) for k, p in master.named_parameters()]
    assert sum(moved) > len(moved) / 2
    assert {value.dtype for value in ended.values()} == {torch.float32}


def test_the_measure_is_of_this_cpu_and_a_gpu_needs_none() -> None:
    assert product_seconds(torch.float32) > 0
    assert product_seconds(torch.bfloat16) > 0

    def unasked(dtype: torch.dtype) -> float:
        raise AssertionError(dtype)

    assert chosen_dtype("cuda:0", unasked) == (torch.bfloat16, "computing in bf16 on cuda:0")


def test_a_run_goes_on_in_the_dtype_of_another_machine(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def die(event: dict) -> None:
        if event["step"] == 2:
            raise Killed

    run = MiniRun(
        tmp_path, stages=STAGES[:1], pictures=2, workers=1, shape=SHAPE, checkpoint_every=1
    )
    with pytest.raises(Killed):
        train(run, die, seconds=WITH_BF16)
    steps = []
    train(run, lambda event: steps.append(event["step"]), seconds=WITHOUT_BF16)
    assert steps == [2]


def test_muon_in_bf16_is_torchs_bit_for_bit() -> None:
    torch.manual_seed(0)
    start = [torch.randn(12, 20), torch.randn(20, 12), torch.randn(8, 8)]
    ours, theirs = ([torch.nn.Parameter(m.clone()) for m in start] for _ in range(2))
    optimizers = (
        Muon(ours, torch.bfloat16, 0.03),
        torch.optim.Muon(theirs, weight_decay=0.03, adjust_lr_fn="match_rms_adamw"),
    )
    for step in range(3):
        grads = [torch.randn_like(m) for m in start]
        for optimizer, parameters in zip(optimizers, (ours, theirs), strict=True):
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter.grad = grad.clone()
            optimizer.param_groups[0]["lr"] = 1e-2 * (step + 1)
            optimizer.step()
    assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("shape", [(12, 40), (40, 12)])
def test_muons_products_in_fp32_point_where_the_singular_vectors_do(shape) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(matrix, torch.float32)
    assert found.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(
        found.flatten(), (left @ right).flatten(), dim=0
    ) > 0.95  # fmt: skip
    assert torch.linalg.svdvals(found).sub(1).abs().max() < 0.4


@pytest.mark.slow
def test_the_command_goes_on_to_cuts_in_three_stages(command, tmp_path: Path) -> None:
    done = command(
        "m3-train", "model", "--preset", "mini", "--start", default_model_path(), "--focus",
        "--seed", 31, "--max-steps", 3, "--workers", 1, "--out", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [event["stage"] for event in events] == ["cut", "point", "anneal"]
    assert all(event["answer_cut"] > 0 for event in events)
    assert list(M3ForConditionalGeneration.from_pretrained(tmp_path).config.scales) == mini_scales(
        24
    )
    assert "seed 31 of the last run" in (tmp_path / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [STAGES[0], STAGES[2]])
def test_two_workers_take_the_steps_of_one(stage: Stage, tmp_path: Path) -> None:
    run = MiniRun(
        tmp_path / "one", stages=(stage,), pictures=2, workers=1, shape=SHAPE, checkpoint_every=1,
        validation_pictures=2,
    )  # fmt: skip
    pair = replace(run, out=tmp_path / "two", workers=2)
    train(run, lambda event: None, seconds=WITH_BF16)
    train(pair, lambda event: None, seconds=WITH_BF16)
    torch.manual_seed(run.seed)
    start = dict(MiniModel(SHAPE, mini_tokenizer(), 12).named_parameters())
    moves = []
    for folder in (run.out, pair.out):
        ended = load_file(folder / "checkpoint" / "state.safetensors")
        moves.append(
            torch.cat([(ended[f"master.{k}"] - p.detach()).flatten() for k, p in start.items()])
        )
    # bf16 gradients summed in another order: the same direction, not the same bits
    assert torch.nn.functional.cosine_similarity(*moves, dim=0) > 0.95


def test_shortened_recipe_keeps_every_stage() -> None:
    short = shortened(FULL_STAGES, 20)
    assert [s.name for s in short] == [s.name for s in FULL_STAGES]
    assert all(s.steps >= 1 for s in short)
    assert sum(s.steps for s in short) <= 24


def test_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    run = MiniRun(
        tmp_path, stages=STAGES[:1], pictures=2, workers=1, shape=SHAPE, checkpoint_every=1
    )
    train(run, lambda event: None)
    with pytest.raises(ParametersDiffer, match="another folder"):
        train(replace(run, seed=1), lambda event: None)
    assert (tmp_path / "log.jsonl").exists()


def test_pictures_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="do not divide"):
        train(MiniRun(tmp_path, pictures=3, workers=2), lambda event: None)
