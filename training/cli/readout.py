"""`m3-train readout`: give a checkpoint the relevance readout it lacks; no masks needed.

Knows flags and progress; the work is in training.finetune.readout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from m3model.terminal import bar, say
from training.cli.collect import DeviceOption, model_folder, source_of
from training.errors import TrainingError

SCENE_SEED = 3000  # of the scenes: far from the seeds that collect is given


def readout(
    model: Annotated[Path, typer.Option("--model", help="Checkpoint to train a readout for.")],
    scenes: Annotated[int | None, typer.Option(help="Generate so many scenes.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="LLaVA-format JSON: pictures with conversations.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the pictures that --data names.")
    ] = None,
    from_log: Annotated[Path | None, typer.Option(help="Log folder of the service.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write; the model's own if left out.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the scenes and the readout.")] = 0,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the readout that is there.")
    ] = False,
    device: DeviceOption = None,
) -> None:
    """Teach a checkpoint which patches a question is about.

    From the model's own attention; no masks are needed.
    """
    from m3model.relevance.readout import FILE_NAME
    from training.finetune.readout import distil_readout

    folder = model_folder(model)
    place = folder if out is None else out
    if (place / FILE_NAME).exists() and not replace:
        raise TrainingError(f"{place / FILE_NAME} exists; give --replace to replace it")
    # Scenes of their own: neither what routers are fitted on nor what they are judged on.
    source = source_of(scenes, SCENE_SEED + seed, "collect", 1, data, images, from_log, False)
    for note in source.notes():
        say(f"left out: {note}")
    with bar("watching", "pictures") as move:
        made, agrees = distil_readout(folder, source, device=device, seed=seed, progress=move)
    path = made.save(place)
    say(f"wrote {path}: correlation {agrees:.3f} with the model's attention on unseen pictures")
