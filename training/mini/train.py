"""Train m3-mini: look, answer on a coarse grid, then the full grid at all five scales.

One vision pass a step; losses of several scales are averaged over it. Data-parallel over processes
of one thread (CPU) or one process (GPU); every batch is a function of (seed, step, worker), so a
resumed run sees the same scenes. Recipe and dead ends: docs/experiments.md.
"""

from __future__ import annotations

import copy
import json
import math
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.errors import ParametersDiffer, TrainingError
from training.mini.batch import SceneBatch, make_batch
from training.mini.losses import (
    ATTENTION,
    answer_loss,
    dense_loss,
    draw_cuts,
    exact_matches,
    register_attention,
    relevance_loss,
)
from training.mini.model import (
    PATCH_PX,
    MiniModel,
    MiniShape,
    export,
    exported_tokenizer,
    grow,
    load_exported,
    mini_scales,
    mini_tokenizer,
)
from training.mini.optimizer import Checkpoint, MasterOptimizer
from training.mini.precision import Seconds, chosen_dtype, product_seconds

Progress = Callable[[dict], None]
LOG_EVERY = 20


@dataclass(frozen=True)
class Stage:
    """A stretch of training at one grid.

    A step draws one scale from each of ``scale_groups`` and weighs it by its group's size, so that
    the expected loss is the mean over all scales named (one named twice counts twice). No group:
    only the dense losses. With ``cut_weight`` every picture is read as a random cut too.
    """

    name: str
    grid_side: int
    steps: int
    lr: float
    lr_end: float
    scale_groups: tuple[tuple[int, ...], ...]
    dense_weight: float = 1.0
    relevance_weight: float = 0.3
    warmup: int = 100
    scale_weight: float = 1.0
    cut_weight: float = 0.0


STAGES: tuple[Stage, ...] = (
    Stage("look", 12, 1200, 2e-3, 2e-3, scale_groups=()),
    Stage("answer", 12, 2200, 2e-3, 1.25e-3, scale_groups=((1, 9), (36, 144)), dense_weight=0.7),
    Stage("read", 24, 1000, 1.6e-3, 1.4e-3, scale_groups=((9, 36, 144),), dense_weight=1.5),
    Stage("letters", 12, 4000, 2e-3, 8e-4, scale_groups=()),
    Stage("fine", 24, 4300, 1.4e-3, 2e-5, scale_groups=((1, 9, 36), (144, 576)), dense_weight=0.7),
)
# From weights that already read scenes: to other scenes, or on from an earlier run.
ADAPT: tuple[Stage, ...] = (
    Stage("adapt", 24, 1000, 1.1e-3, 2e-5, scale_groups=((1, 9, 36), (144, 576)), dense_weight=0.7),
)
# From weights that read scenes at every scale: to cuts as well, the fine scales kept alive. Of the
# last stage several seeds are worth a run: the shipped weights are the best of three on validation.
CUT = Stage(
    "cut", 24, 2200, 1.3e-3, 1.0e-3,
    scale_groups=((1, 9, 36, 36, 144, 144, 144, 576, 576, 576, 576),),
    scale_weight=0.6, cut_weight=1.0, dense_weight=0.5,
)  # fmt: skip
# Where to look, learnt in earnest: what the readout misses a cut cannot show (docs/experiments.md).
POINT = replace(
    CUT, name="point", steps=1600, lr=1.1e-3, relevance_weight=3.0,
    scale_groups=((1, 9, 9, 36, 36, 144, 144, 144, 576, 576, 576, 576),),
)  # fmt: skip
SHARPEN = replace(
    CUT, name="sharpen", steps=2600, lr=1.0e-3, relevance_weight=6.0,
    scale_groups=((1, 1, 9, 9, 36, 36, 144, 144, 144, 576, 576, 576),),
)  # fmt: skip
ANNEAL = replace(SHARPEN, name="anneal", steps=800, lr_end=2e-5, warmup=30)
FOCUS: tuple[Stage, ...] = (CUT, POINT, SHARPEN, ANNEAL)


@dataclass(frozen=True)
class MiniRun:
    """Everything that determines a training run.

    ``pictures`` is the number of pictures a step over all workers; ``workers`` only splits it.
    ``start`` is an exported m3-mini to go on from (with its tokenizer); None begins from nothing.
    """

    out: Path
    seed: int = 0
    stages: tuple[Stage, ...] = STAGES
    pictures: int = 16
    workers: int = 2
    device: str = "cpu"
    shape: MiniShape = field(default_factory=MiniShape)
    start: Path | None = None
    checkpoint_every: int = 200
    validate_every: int = 600
    validation_pictures: int = 64

    @property
    def total_steps(self) -> int:
        """Return the number of steps over all stages."""
        return sum(stage.steps for stage in self.stages)

    @cached_property
    def tokenizer(self):
        """Return the tokenizer of the start, or that of the scenes' words."""
        return mini_tokenizer() if self.start is None else exported_tokenizer(self.start)

    def teaches_cuts(self, number: int) -> bool:
        """Return whether cuts were taught up to and with the stage of this number."""
        return any(stage.cut_weight > 0 for stage in self.stages[: number + 1])

    def recipe(self) -> list:
        """Return what a run must share with the one it resumes."""
        return [self.seed, self.pictures, *([s.name, s.steps] for s in self.stages)]


def recipe_stages(*, further: bool, focus: bool, only: str | None = None) -> tuple[Stage, ...]:
    """Return the stages of a recipe.

    Args:
        further: from weights that read scenes, not from nothing.
        focus: to cuts.
        only: the one stage to run.

    Raises:
        TrainingError: cuts or one stage from nothing, or a stage that the recipe does not have.
    """
    stages = FOCUS if focus else ADAPT if further else STAGES
    if (focus or only is not None) and not further:
        raise TrainingError("--focus and --stage go on from an m3-mini: give its folder as --start")
    chosen = tuple(stage for stage in stages if only in (None, stage.name))
    if not chosen:
        names = ", ".join(stage.name for stage in stages)
        raise TrainingError(f"no stage {only!r} in this recipe; there is: {names}")
    return chosen


def shortened(stages: tuple[Stage, ...], max_steps: int) -> tuple[Stage, ...]:
    """Return the stages with their steps scaled to about ``max_steps``, at least one each."""
    share = max_steps / sum(stage.steps for stage in stages)
    return tuple(replace(stage, steps=max(1, round(stage.steps * share))) for stage in stages)


def learning_rate(stage: Stage, step: int) -> float:
    """Return the rate of a step: linear warm-up, then cosine from ``lr`` to ``lr_end``."""
    if step < stage.warmup:
        return stage.lr * (step + 1) / stage.warmup
    done = (step - stage.warmup) / max(stage.steps - stage.warmup, 1)
    return stage.lr_end + (stage.lr - stage.lr_end) * 0.5 * (1 + math.cos(math.pi * done))


def sample_scales(
    groups: tuple[tuple[int, ...], ...], rng: np.random.Generator
) -> list[tuple[int, float]]:
    """Return one scale of each group, weighted so that the expected loss is the mean of all."""
    n_scales = sum(map(len, groups))
    return [(int(rng.choice(group)), len(group) / n_scales) for group in groups]


def training_loss(
    model: MiniModel,
    batch: SceneBatch,
    stage: Stage,
    rng: np.random.Generator,
    seeds: Sequence[int],
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of one step and its parts; a picture's cut follows from its seed."""
    grid = model.grid(batch.pixels)
    dense, relevance = dense_loss(model, grid, batch), relevance_loss(model, grid, batch)
    loss = stage.dense_weight * dense + stage.relevance_weight * relevance
    parts = {"dense": float(dense.detach()), "relevance": float(relevance.detach())}
    for scale, weight in sample_scales(stage.scale_groups, rng):
        answers = answer_loss(model, grid, batch, scale)
        loss = loss + stage.scale_weight * weight * answers
        parts[f"answer_{scale}"] = float(answers.detach())
    if stage.cut_weight:
        cuts, counts = draw_cuts(model, grid, batch, seeds)
        answers = answer_loss(model, grid, batch, cuts, counts)
        loss = loss + stage.cut_weight * answers
        parts["answer_cut"] = float(answers.detach())
    return loss, parts


@torch.no_grad()
def validate(
    model: MiniModel, run: MiniRun, stage: Stage, tokenizer, dtype: torch.dtype
) -> dict[int, float]:
    """Return the share of validation questions answered exactly, by scale."""
    right: dict[int, list[Tensor]] = {scale: [] for scale in mini_scales(stage.grid_side)}
    for start in range(0, run.validation_pictures, 16):
        seeds = range(start, min(start + 16, run.validation_pictures))
        batch = make_batch(seeds, "validation", stage.grid_side * PATCH_PX, tokenizer)
        batch = batch.to(torch.device(run.device), dtype)
        grid = model.grid(batch.pixels)
        for scale, found in right.items():
            found.append(exact_matches(model, grid, batch, scale).float())
    return {scale: float(torch.cat(found).mean()) for scale, found in right.items()}


def computing_copy(master: MiniModel, device: str, dtype: torch.dtype) -> MiniModel:
    """Return a copy of ``master`` that computes in ``dtype``.

    Rotary frequencies stay fp32: rounded ones make far positions collide.
    """
    model = copy.deepcopy(master).to(device=device, dtype=dtype)
    model.m3.model.language_model.rotary_emb = copy.deepcopy(
        master.m3.model.language_model.rotary_emb
    ).to(device)
    model.m3.set_attn_implementation(ATTENTION)
    return model


def run_stage(
    master: MiniModel, number: int, run: MiniRun, rank: int, saved, dtype: torch.dtype,
    report: Progress | None,
) -> None:  # fmt: skip
    """Train ``master`` in place through one stage, from the saved step on."""
    stage, tokenizer = run.stages[number], run.tokenizer
    model = computing_copy(master, run.device, dtype)
    optimizer = MasterOptimizer(master, model, dtype)
    first, spent = 0, 0.0
    if saved:
        tensors, place = saved
        spent = place["seconds"]
        if place["stage"] == number:
            optimizer.load(tensors)
            first = place["step"]
    clock, per_worker = time.monotonic(), run.pictures // run.workers
    for step in range(first, stage.steps):
        rng = np.random.default_rng([run.seed, number, step])
        base = ((run.seed * 16 + number) * 1_000_000 + step) * run.pictures + rank * per_worker
        seeds = range(base, base + per_worker)
        batch = make_batch(seeds, "model", stage.grid_side * PATCH_PX, tokenizer)
        batch = batch.to(torch.device(run.device), dtype)
        loss, parts = training_loss(model, batch, stage, rng, seeds)
        loss.backward()
        norm = optimizer.step(learning_rate(stage, step), run.workers)
        if rank or report is None:
            continue
        last, done = step + 1 == stage.steps, step + 1
        seconds = spent + time.monotonic() - clock
        event = {
            "stage": stage.name,
            "step": done,
            "steps": stage.steps,
            "seconds": round(seconds, 1),
        }
        event |= {"loss": float(loss.detach()), "norm": norm, **parts}
        if stage.scale_groups and (last or done % run.validate_every == 0):
            event["validation"] = validate(model, run, stage, tokenizer, dtype)
        report(event)
        if last or done % run.checkpoint_every == 0:
            place = {"stage": number, "step": done, "seconds": seconds}
            Checkpoint(run.out).save(optimizer, place | {"recipe": run.recipe()})
            if stage.scale_groups:
                export(master, tokenizer, run.out, run.seed, reads_cuts=run.teaches_cuts(number))


def train_worker(
    rank: int, run: MiniRun, port: int, dtype: torch.dtype, report: Progress | None = None
) -> None:
    """Run one worker of the training; worker 0 validates, checkpoints, exports and reports."""
    torch.manual_seed(run.seed)
    if run.device == "cpu":
        torch.set_num_threads(1)
    if run.workers > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=run.workers
        )
    register_attention()
    saved = Checkpoint(run.out).load()
    start = saved[1]["stage"] if saved else 0
    master = MiniModel(run.shape, run.tokenizer, run.stages[start].grid_side)
    if run.start is not None:
        load_exported(master, run.start)
    for number in range(start, len(run.stages)):
        if master.grid_side != run.stages[number].grid_side:
            master = grow(master, run.tokenizer, run.stages[number].grid_side)
        run_stage(master, number, run, rank, saved, dtype, report)
        saved = Checkpoint(run.out).load() if rank == 0 else None
    if rank == 0:
        last = len(run.stages) - 1
        export(master, run.tokenizer, run.out, run.seed, reads_cuts=run.teaches_cuts(last))
    if run.workers > 1:
        torch.distributed.destroy_process_group()


def train(
    run: MiniRun,
    report: Progress,
    say: Callable[[str], None] = lambda line: None,
    seconds: Seconds = product_seconds,
) -> Path:
    """Train m3-mini and return its folder; called again, a killed run resumes from its checkpoint.

    Args:
        run: what to train.
        report: called after every step with what happened.
        say: told which dtype the run computes in, and why.
        seconds: measures how long this CPU multiplies in a dtype.

    Raises:
        TrainingError: the pictures of a step do not divide over the workers.
        ParametersDiffer: the folder holds another run.
    """
    if run.pictures % run.workers:
        raise TrainingError(
            f"{run.pictures} pictures a step do not divide over {run.workers} workers"
        )
    saved = Checkpoint(run.out).load()
    if saved is not None and saved[1]["recipe"] != run.recipe():
        raise ParametersDiffer(
            f"{run.out} holds a run with another seed or other stages; use another folder"
        )
    run.out.mkdir(parents=True, exist_ok=True)
    dtype, why = chosen_dtype(run.device, seconds)
    say(why)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    others = [
        context.Process(target=train_worker, args=(rank, run, port, dtype), daemon=True)
        for rank in range(1, run.workers)
    ]
    for process in others:
        process.start()
    try:
        with (run.out / "log.jsonl").open("a") as log:

            def note(event: dict) -> None:
                if event["step"] % LOG_EVERY == 0 or "validation" in event:
                    log.write(json.dumps(event) + "\n")
                    log.flush()
                report(event)

            train_worker(0, run, port, dtype, note)
    finally:
        for process in others:
            process.join(timeout=30)
            process.terminate()
    return run.out
