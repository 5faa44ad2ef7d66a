"""`m3-train collect`: which questions are labelled, by which model, into which folder.

Knows flags and progress; the sources are in training.sources, the work in training.oracle.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from m3model.terminal import bar, say, table
from training.cli.versions import place_option
from training.errors import TrainingError

if TYPE_CHECKING:
    from router.places import Place
    from training.sources.tasks import Source

ModelOption = Annotated[
    Path | None, typer.Option("--model", help="Model folder; the embedded m3-mini if left out.")
]
WorkersOption = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes; one per physical core if left out."),
]


def _known_device(name: str | None) -> str | None:
    """Return the device as given, once torch knows it and this machine has it."""
    if name is not None:
        import torch

        try:
            is_there = torch.device(name).type != "cuda" or torch.cuda.is_available()
        except RuntimeError:
            raise typer.BadParameter(f"torch knows no device {name}") from None
        if not is_there:
            raise typer.BadParameter("torch finds no GPU here")
    return name


DeviceOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="torch device; cuda where there is one, if left out.",
        callback=_known_device,
    ),
]


def collect(
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    scenes: Annotated[int | None, typer.Option(help="Generate so many scenes.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the scenes.")] = 0,
    namespace: Annotated[
        Literal["collect", "heldout"],
        typer.Option(help="Which scenes: to learn from, or never to learn from."),
    ] = "collect",
    repeats: Annotated[
        int,
        typer.Option(
            help="Times each question is asked, to tell luck: wordings of a scene's, orders of the "
            "options of multiple choice."
        ),
    ] = 1,
    data: Annotated[
        Path | None, typer.Option(help="LLaVA-format JSON: pictures with conversations.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the pictures that --data names.")
    ] = None,
    from_log: Annotated[Any, place_option("--from-log", what="Log of the service.")] = None,
    metric: Annotated[
        Literal["exact_match", "vqa", "anls", "relaxed", "choice", "token_f1", "agreement"] | None,
        typer.Option(help="How answers are scored where the data do not say; else exact match."),
    ] = None,
    model: ModelOption = None,
    workers: WorkersOption = None,
    device: DeviceOption = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest answer; what was served has its own limits.")
    ] = 16,
    relevance: Annotated[
        Literal["auto", "readout", "cosine", "attention", "clip"],
        typer.Option(
            help="Where relevance comes from; auto: the readout, else clip, else attention."
        ),
    ] = "auto",
    text_encoder: Annotated[
        Path | None, typer.Option(help="Folder of the CLIP model the vision tower came from.")
    ] = None,
    skip_bad: Annotated[bool, typer.Option(help="Count bad records instead of stopping.")] = False,
    no_focus: Annotated[
        bool, typer.Option("--no-focus", help="Only whole pictures at each scale, no focus.")
    ] = False,
) -> None:
    """Answer every question at every scale and focus: the oracle data.

    From generated scenes, LLaVA-format data or the log of the service. A rerun goes on where it
    stopped.
    """
    from training.oracle.collection import collect as label

    source = source_of(scenes, seed, namespace, repeats, data, images, from_log, skip_bad, metric)
    for note in source.notes():
        say(f"left out: {note}")
    checkpoint = model_folder(model)
    with bar("labelling", "pictures") as move:
        result = label(
            source, checkpoint, out, workers=workers, device=device,
            max_new_tokens=max_new_tokens, skip_bad=skip_bad, progress=move,
            relevance=relevance, text_encoder=text_encoder, focus=not no_focus,
        )  # fmt: skip
    if result.bad:
        say(f"skipped {len(result.bad)} bad pictures, first: {result.bad[0]}")
    for note in result.notes():
        say(note)
    say(
        f"{result.questions} questions about {result.pictures} pictures in {out} "
        f"({result.labelled_now} pictures labelled now)"
    )
    _show(out)


def _show(out: Path) -> None:
    """Show how often each action is right, and say so where nothing ever was."""
    from training.oracle.tally import tally_of

    found = tally_of(out)
    if found is None:
        return
    kinds = {
        f"accuracy ({found.known})": found.right,
        f"agrees with the finest ({found.unknown})": found.agrees,
    }
    shown = {name: means for name, means in kinds.items() if means is not None}
    rows = zip(found.actions, *shown.values(), strict=True)
    table(
        "mean score of every action (questions)", ["action", *shown],
        [[name, *(f"{mean:.3f}" for mean in means)] for name, *means in rows],
    )  # fmt: skip
    if (hint := found.hint()) is not None:
        say(hint)


def source_of(
    scenes: int | None, seed: int, namespace: str, repeats: int,
    data: Path | None, images: Path | None, from_log: Place | None, skip_bad: bool,
    metric: str | None = None,
) -> Source:  # fmt: skip
    """Return the one source that the flags name."""
    from training.sources.llava import llava_source
    from training.sources.log import log_source
    from training.sources.scenes import SceneSource
    from training.sources.tasks import scored_by_metric

    if sum(given is not None for given in (scenes, data, from_log)) != 1:
        raise TrainingError(
            "give exactly one of --scenes N, --data FILE --images DIR, --from-log DIR"
        )
    if scenes is not None:
        if metric is not None:
            raise TrainingError("--metric needs --data or --from-log: scenes have exact answers")
        return SceneSource(scenes, seed, namespace, repeats=repeats)
    if from_log is not None:
        if repeats != 1:
            raise TrainingError("--repeats needs --scenes, or --data with multiple choice")
        logged = log_source(from_log)
        return logged if metric is None else scored_by_metric(logged, metric)
    if data is None or images is None:
        raise TrainingError("--data needs --images DIR")
    return llava_source(data, images, skip_bad=skip_bad, metric=metric, repeats=repeats)


def model_folder(model: Path | None) -> Path:
    """Return the checkpoint to use: the given one, else the embedded default."""
    from m3model import default_model_path

    folder = default_model_path() if model is None else model
    if not (folder / "config.json").is_file():
        hint = "; give --model DIR" if model is None else ""
        raise TrainingError(f"{folder} is not a model folder: it has no config.json{hint}")
    return folder


def router_folder(router: Path | None) -> Path:
    """Return the router folder that is meant; the shipped one if none is named."""
    from router import default_router_path

    folder = default_router_path() if router is None else router
    if not folder.is_dir():
        raise TrainingError(f"{folder} is not a router folder; give --router DIR")
    return folder
