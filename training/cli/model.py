"""`m3-train model`: train m3-mini from nothing or further, or a checkpoint on LLaVA-format data.

Knows flags and progress; the training itself is in training.mini and training.finetune.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from m3model.terminal import bar, say
from training.cli.collect import DeviceOption
from training.errors import TrainingError

MINI_FLAGS = {"out", "preset", "start", "focus", "stage", "seed", "max_steps", "workers", "device"}


def model(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    preset: Annotated[str | None, typer.Option(help="mini: train m3-mini from nothing.")] = None,
    start: Annotated[
        Path | None, typer.Option(help="An m3-mini to go on from, with --preset mini.")
    ] = None,
    init: Annotated[
        Path | None, typer.Option(help="Checkpoint to train further, with --data and --images.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="LLaVA-format JSON: pictures with conversations.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the pictures that --data names.")
    ] = None,
    focus: Annotated[
        bool,
        typer.Option(
            "--focus",
            help="Also teach cuts: coarse pictures with the cells fine that questions look at. "
            "With --init half the loss is then that of one random cut a picture; --preset mini "
            "goes on from --start in four stages, cut, point, sharpen and anneal.",
        ),
    ] = False,
    stage: Annotated[
        str | None,
        typer.Option(help="Run this stage of the mini recipe alone, with --start."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights, the scenes and the order.")] = 0,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 1.0,
    max_steps: Annotated[
        int,
        typer.Option(help="Stop after so many steps; -1: by epochs, for mini the whole recipe."),
    ] = -1,
    batch_size: Annotated[int, typer.Option(min=1, help="Conversations per step and GPU.")] = 4,
    accumulate: Annotated[int, typer.Option(min=1, help="Steps per update.")] = 1,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 2e-5,
    max_length: Annotated[int, typer.Option(help="Most text tokens of a conversation.")] = 2048,
    save_steps: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 500,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Less memory, more time.")] = False,
    freeze_vision: Annotated[bool, typer.Option(help="Leave the vision tower as it is.")] = False,
    hold_all_graphs: Annotated[
        bool, typer.Option(help="All scales' graphs until one backward pass (more memory).")
    ] = False,
    skip_bad: Annotated[bool, typer.Option(help="Count bad records instead of stopping.")] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Processes; if left out one per physical core, to load data two."),
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Train m3-mini from nothing, or a checkpoint on your data.

    Either --preset mini, on generated scenes, or --init DIR with --data and --images. A killed run
    goes on where it stopped.
    """
    if (preset is None) == (init is None):
        raise TrainingError("give either --preset mini, or --init DIR with --data and --images")
    if preset is not None:
        if preset != "mini":
            raise TrainingError(f"unknown preset {preset!r}; there is: mini")
        foreign = sorted(
            f"--{name.replace('_', '-')}"
            for name in context.params
            if name not in MINI_FLAGS
            and (source := context.get_parameter_source(name)) is not None
            and source.name == "COMMANDLINE"
        )
        if foreign:
            raise TrainingError(f"the recipe of --preset mini is fixed: leave out {foreign[0]}")
        _train_mini(out, start, focus, stage, seed, max_steps, workers, device)
        return
    if start is not None:
        raise TrainingError("--start goes with --preset mini; use --init for other checkpoints")
    if stage is not None:
        raise TrainingError("--stage goes with --preset mini")
    if data is None or images is None or init is None:
        raise TrainingError("--init needs --data FILE and --images DIR")
    from training.finetune.train import FinetuneJob, finetune

    job = FinetuneJob(
        init=init, data=data, images=images, out=out, epochs=epochs, max_steps=max_steps,
        batch_size=batch_size, accumulate=accumulate, lr=lr, max_length=max_length, seed=seed,
        save_steps=save_steps, gradient_checkpointing=gradient_checkpointing,
        freeze_vision=freeze_vision, focus=focus, hold_all_graphs=hold_all_graphs,
        skip_bad=skip_bad, workers=2 if workers is None else workers, device=device,
    )  # fmt: skip
    with bar("training", "steps") as move:
        state: dict[str, Any] = {"loss": None}

        def report(step: int, steps: int, loss: float | None) -> None:
            state["loss"] = state["loss"] if loss is None else loss
            shown = "" if state["loss"] is None else f"loss {state['loss']:.4f}"
            move(step, steps, shown)

        written = finetune(job, report=report, say=say)
    say(f"wrote {written}")


def _train_mini(
    out: Path,
    start: Path | None,
    focus: bool,
    stage: str | None,
    seed: int,
    max_steps: int,
    workers: int | None,
    device: str | None,
) -> None:
    import torch

    from training.mini.train import MiniRun, recipe_stages, shortened, train
    from training.oracle.workers import default_workers

    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    fitting = [n for n in (8, 4, 2, 1) if n <= default_workers(where)]
    if start is not None and not (start / "relevance.safetensors").is_file():
        raise TrainingError(f"{start} is not the folder of an m3-mini")
    stages = recipe_stages(further=start is not None, focus=focus, only=stage)
    stages = stages if max_steps < 0 else shortened(stages, max_steps)
    count = workers or fitting[0]
    run = MiniRun(out=out, seed=seed, stages=stages, start=start, workers=count, device=where)
    with bar("m3-mini", "steps") as move:
        offsets = {
            stage.name: sum(s.steps for s in run.stages[:i]) for i, stage in enumerate(run.stages)
        }

        def report(event: dict[str, Any]) -> None:
            shown = f"{event['stage']} loss {event['loss']:.3f}"
            move(offsets[event["stage"]] + event["step"], run.total_steps, shown)

        written = train(run, report, say)
    say(f"wrote {written}")
