"""`m3-train collect`: which questions are labelled, by which model, into which folder.

Knows flags and progress; the sources are in training.sources, the work in training.oracle.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from m3model.terminal import bar, say, table
from training.cli.log import place_option
from training.errors import TrainingError

if TYPE_CHECKING:
    from router.places import Place
    from training.oracle.workers import Runner
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
RelevanceOption = Annotated[
    Literal["auto", "readout", "cosine", "attention", "clip"],
    typer.Option(help="Where relevance comes from; auto: the readout, else clip, else attention."),
]
TextEncoderOption = Annotated[
    Path | None, typer.Option(help="Folder of the CLIP model the vision tower came from.")
]

SkipBadOption = Annotated[bool, typer.Option(help="Count bad records instead of stopping.")]


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
    hf_dataset: Annotated[
        Path | None,
        typer.Option(help="Folder of a Hugging Face dataset: save_to_disk, or Parquet files."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of --hf-dataset.")] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=NAME,...",
            help="Columns of --hf-dataset where their names are not the usual ones: image, "
            "question, answer, kind, group.",
        ),
    ] = None,
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
    relevance: RelevanceOption = "auto",
    text_encoder: TextEncoderOption = None,
    skip_bad: SkipBadOption = False,
    no_focus: Annotated[
        bool, typer.Option("--no-focus", help="Only whole pictures at each scale, no focus.")
    ] = False,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Label on a Ray cluster: auto (of RAY_ADDRESS, or here), host:port, or local.",
        ),
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            help="Go on labelling what --from-log gains, until ended; a line of JSON a batch.",
        ),
    ] = False,
    idle_of: Annotated[
        str | None,
        typer.Option(help="With --follow: only while the service at this address is idle."),
    ] = None,
) -> None:
    """Answer questions at every scale and focus: oracle data.

    From generated scenes, LLaVA-format data, a dataset's folder or the log of the service. A rerun
    goes on where it stopped; of a log or data that have grown or changed it labels what is new.
    """
    from training.oracle.collection import collect as label

    read = partial(
        source_of, scenes, seed, namespace, repeats, data, images, from_log, skip_bad, metric,
        hf_dataset, split, columns,
    )  # fmt: skip
    if ray is not None and follow:
        raise TrainingError("--ray and --follow exclude each other")
    if follow or idle_of is not None:
        following = partial(
            label, model=model_folder(model), out=out, device=device, max_new_tokens=max_new_tokens,
            skip_bad=skip_bad, relevance=relevance, text_encoder=text_encoder, focus=not no_focus,
        )  # fmt: skip
        if from_log is None or not follow or workers not in (None, 1):
            raise TrainingError(
                "--idle-of needs --follow, which needs --from-log and labels in one process"
            )
        _follow(read, following, idle_of)
    source = read()
    for note in source.notes():
        say(f"left out: {note}")
    checkpoint = model_folder(model)
    with _runner(ray, device, workers) as (run, count), bar("labelling", "pictures") as move:
        result = label(
            source, checkpoint, out, workers=count, device=device,
            max_new_tokens=max_new_tokens, skip_bad=skip_bad, progress=move,
            relevance=relevance, text_encoder=text_encoder, focus=not no_focus, run=run,
        )  # fmt: skip
    for note in result.notes():
        say(note)
    say(
        f"{result.questions} questions about {result.pictures} pictures in {out} "
        f"({result.labelled_now} pictures labelled now)"
    )
    _show(out)


def import_lmms_eval(
    runs: Annotated[
        list[Path], typer.Argument(help="Sample files of lmms-eval, or folders: one run a scale.")
    ],
    data: Annotated[
        Path, typer.Option(help="The task's data, for its pictures: save_to_disk or Parquet.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder to write.")],
    task: Annotated[
        str | None, typer.Option(help="Which task, where the runs hold several.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Which split, where the data has some.")] = None,
    picture_column: Annotated[
        str | None, typer.Option(help="Which column, where several hold pictures.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Which of the task's metrics, where it has several.")
    ] = None,
    model: ModelOption = None,
    device: DeviceOption = None,
    relevance: RelevanceOption = "auto",
    text_encoder: TextEncoderOption = None,
) -> None:
    """Turn runs of lmms-eval at every scale into oracle data.

    Of `lmms-eval --model m3 --model_args scale=N --log_samples`. Scores are the task's own; the
    pictures, of which features are made, must be those that were asked about.
    """
    from training.lmms.importing import import_runs

    with bar("importing", "pictures") as move:
        done = import_runs(
            runs, data, model_folder(model), out, task=task, split=split, column=picture_column,
            metric=metric, device=device, relevance=relevance, text_encoder=text_encoder,
            progress=move,
        )  # fmt: skip
    for note in done.left_out:
        say(f"left out: {note}")
    say(
        f"{done.questions} questions of {done.task} about {done.pictures} pictures in {out}, "
        f"scored by {done.metric}"
    )
    _show(out)


@contextmanager
def _runner(
    ray: str | None, device: str | None, workers: int | None
) -> Iterator[tuple[Runner, int | None]]:
    """Yield what labels the shards, and on how many workers; None: as many as this machine has."""
    from training.oracle.workers import run_shards

    if ray is None:
        yield run_shards, workers
        return
    from training.oracle import on_ray

    with on_ray.cluster(ray):
        yield on_ray.run_shards, workers or on_ray.ray_workers(device)


def _follow(
    read: Callable[[], Source], label: Callable[..., object], idle_of: str | None
) -> NoReturn:
    """Label what the log has and gains, for ever; say how far it is on standard output."""
    from training.oracle.following import IdleService, follow

    told: list[str] = []

    def tell(labelled: int, waiting: int) -> None:
        line = json.dumps({"labelled": labelled, "waiting": waiting})
        if [line] != told:
            typer.echo(line)
        told[:] = [line]

    turn = (lambda: None) if idle_of is None else IdleService(idle_of)
    follow(read, lambda source, run: label(source, run=run), turn, tell)


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
    metric: str | None = None, hf_dataset: Path | None = None, split: str | None = None,
    columns: str | None = None,
) -> Source:  # fmt: skip
    """Return the one source that the flags name."""
    from training.sources.hf import hf_source
    from training.sources.llava import llava_source
    from training.sources.log import log_source
    from training.sources.scenes import SceneSource
    from training.sources.tasks import scored_by_metric

    if sum(given is not None for given in (scenes, data, from_log, hf_dataset)) != 1:
        raise TrainingError(
            "give exactly one of --scenes N, --data FILE --images DIR, --from-log DIR, "
            "--hf-dataset DIR"
        )
    if hf_dataset is not None:
        return hf_source(
            hf_dataset, split=split, columns=columns, skip_bad=skip_bad, metric=metric,
            repeats=repeats,
        )  # fmt: skip
    if split is not None or columns is not None:
        raise TrainingError("--split and --columns need --hf-dataset")
    if scenes is not None:
        if metric is not None:
            raise TrainingError(
                "--metric needs --data, --hf-dataset or --from-log: scenes have exact answers"
            )
        return SceneSource(scenes, seed, namespace, repeats=repeats)
    if from_log is not None:
        if repeats != 1:
            raise TrainingError(
                "--repeats needs --scenes, or --data or --hf-dataset with multiple choice"
            )
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
