"""Runs of m3-mini: recipe and rates, runs that go on exactly, workers, precision, Muon."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from m3model import (
    M3ForConditionalGeneration,
    default_model_path,
)
from training.errors import ParametersDiffer, TrainingError
from training.mini.batch import make_batch
from training.mini.model import MiniModel, mini_scales, mini_tokenizer
from training.mini.optimizer import Muon, orthogonal
from training.mini.precision import chosen_dtype, product_seconds
from training.mini.train import (
    ADAPT,
    ANNEAL,
    CUT,
    FOCUS,
    POINT,
    SHARPEN,
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

from .conftest import SHAPE

STAGES = (
    Stage("look", 12, 2, 1e-3, 1e-3, (), warmup=1),
    Stage("answer", 12, 2, 1e-3, 1e-3, ((1, 9), (36, 144)), warmup=1),
    Stage("cut", 12, 2, 1e-3, 1e-3, ((9, 36, 36),), warmup=1, scale_weight=0.6, cut_weight=1.0),
)
# Machines as `train` measures them: seconds of products, by dtype.
WITH_BF16 = {torch.bfloat16: 1.0, torch.float32: 3.5}.__getitem__
WITHOUT_BF16 = {torch.bfloat16: 40.0, torch.float32: 1.0}.__getitem__


def test_cuts_go_on_from_weights_in_four_stages() -> None:
    assert recipe_stages(further=True, focus=True) == (CUT, POINT, SHARPEN, ANNEAL)
    assert recipe_stages(further=True, focus=True, only="anneal") == (ANNEAL,)
    assert recipe_stages(further=True, focus=False) == ADAPT
    assert recipe_stages(further=False, focus=False) == FULL_STAGES
    assert not any(stage.cut_weight for stage in (*ADAPT, *FULL_STAGES))
    with pytest.raises(TrainingError, match="there is: cut, point, sharpen, anneal"):
        recipe_stages(further=True, focus=True, only="fine")
    # The last stage begins at the rate at which the one before ends.
    assert learning_rate(SHARPEN, SHARPEN.steps) == learning_rate(ANNEAL, ANNEAL.warmup) == 1.0e-3
    assert sum(stage.steps for stage in FOCUS) == 7200


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
def test_the_command_goes_on_to_cuts_in_four_stages(command, tmp_path: Path) -> None:
    done = command(
        "m3-train", "model", "--preset", "mini", "--start", default_model_path(), "--focus",
        "--seed", 31, "--max-steps", 3, "--workers", 1, "--out", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [event["stage"] for event in events] == ["cut", "point", "sharpen", "anneal"]
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
