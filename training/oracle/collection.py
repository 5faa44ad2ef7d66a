"""Collects oracle data: every action on every question, as Parquet shards that survive a kill.

A shard is written under a temporary name, synced and renamed, so it is there whole or not at all; a
rerun computes the missing ones only. Knows folders and manifests; does not know processes (see
`workers`) nor how a picture is labelled (see `labelling`).
"""

from __future__ import annotations

import fcntl
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from router.actions import ActionSpace, default_space, uniform_space
from training.errors import ParametersDiffer, TrainingError
from training.files import clear_leftovers, write_json
from training.oracle.workers import (
    BAD_KEY,
    COUNTS_KEY,
    GIVEN_AGAIN,
    LOGGED,
    NO_ROOM,
    SCORES_LEFT_OUT,
    CollectJob,
    Runner,
    default_workers,
    run_shards,
    shard_path,
)
from training.sources.tasks import Source, shards

MANIFEST = "manifest.json"
SHARD_PICTURES = 100


@dataclass(frozen=True)
class CollectResult:
    """What a run did: totals over the whole folder, and how many pictures this run labelled."""

    pictures: int
    questions: int
    bad: list[str]
    labelled_now: int
    counts: dict[str, int] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """Return a line for each thing to know of questions that were served before."""
        lines = [f"{self.counts[key]} {key}" for key in (NO_ROOM, SCORES_LEFT_OUT)
                 if self.counts.get(key)]  # fmt: skip
        if logged := self.counts.get(LOGGED):
            again = self.counts.get(GIVEN_AGAIN, 0)
            lines.append(f"{again} of {logged} logged answers are given again by their action")
        return lines


def collect(
    source: Source,
    model: Path,
    out: Path,
    *,
    workers: int | None = None,
    device: str | None = None,
    max_new_tokens: int = 16,
    skip_bad: bool = False,
    relevance: str = "auto",
    text_encoder: Path | None = None,
    focus: bool = True,
    space: ActionSpace | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    run: Runner = run_shards,
) -> CollectResult:
    """Label a source into ``out`` and return the totals; finished shards of the same run are kept.

    Args:
        source: pictures with questions.
        model: folder of the checkpoint.
        workers: processes (None: one per physical core, one on a GPU).
        relevance, text_encoder: where relevance comes from, see `m3model.relevance.choice`.
        focus: label `default_space`, or else the model's scales alone.
        space: label these actions instead, as when the data must go with other data.
        progress: called with (pictures done, pictures in all).
        run: labels the missing shards; in processes of this machine, if left out.

    Raises:
        ParametersDiffer: ``out`` was written by a run with other parameters.
        BadRecord: a picture cannot be read (without ``skip_bad``).
        RelevanceUnavailable: the model cannot give this relevance.
        TrainingError: the actions are over other scales than the model's.
    """
    from m3model.engine.recipe import uncut
    from m3model.relevance.choice import relevance_name

    if not (model / "config.json").is_file():
        raise TrainingError(f"{model} is not a model folder: it has no config.json")
    name = relevance_name(model, relevance, text_encoder)
    space = space or _default_space(model, focus)
    parameters = _parameters(source, model, max_new_tokens, skip_bad, name, space, device)
    out.mkdir(parents=True, exist_ok=True)
    with _only_run(out):
        manifest = _claim(out, parameters)
        job = CollectJob(
            source, model, out, parameters["feature_schema"], parameters["model_hash"],
            device, max_new_tokens, skip_bad, name, text_encoder, space,
            uncut(manifest.get("label_recipe")),
        )  # fmt: skip
        planned = dict(shards(len(source), parameters["pictures_per_shard"]))
        missing = [index for index in planned if not shard_path(out, index).exists()]
        done = len(source) - sum(len(planned[index]) for index in missing)
        before = done
        progress(done, len(source))
        count = min(workers or default_workers(device), max(1, len(missing)))
        for index in run(job, {index: planned[index] for index in missing}, count):
            done += len(planned[index])
            progress(done, len(source))
        questions, bad, counts = _totals(out, planned)
        totals: dict[str, Any] = {"questions": questions, "bad": len(bad), "shards": len(planned)}
        if counts:  # of questions that were served before
            totals["counts"] = dict(counts)
        derived = _costs(model)
        write_json(out / MANIFEST, {**manifest, "finished": True, **totals, **derived})
    return CollectResult(len(source), questions, bad, done - before, dict(counts))


def _parameters(
    source: Source,
    model: Path,
    max_new_tokens: int,
    skip_bad: bool,
    relevance: str,
    space: ActionSpace,
    device: str | None,
) -> dict[str, Any]:
    """Return what makes two runs the same run, plus what readers of the data need."""
    from m3model import M3Config, request_cost
    from m3model.config import hash_model
    from m3model.engine.recipe import answering_device, answering_dtype, label_recipe_hash
    from router.features.schema import feature_schema

    weights, dtype = hash_model(model), answering_dtype(answering_device(device))
    # What was served has limits of its own.
    limit = None if source.kind == "log" else max_new_tokens
    config = M3Config.from_pretrained(model)
    if space.scales != tuple(config.scales):
        raise TrainingError(
            f"actions over the scales {space.scales}, but {model} reads {tuple(config.scales)}"
        )
    schema = feature_schema(tuple(config.scales), config.grid_side, config.hidden_size, relevance)
    size = SHARD_PICTURES
    if len(source) < 8 * SHARD_PICTURES:  # short runs: enough shards for every core
        size = math.ceil(len(source) / 8)
    # The scales alone are the data of format 1 to the last key: folders of before go on.
    is_old = space == uniform_space(config.scales)
    actions = {"actions": space.to_json(), "action_space": space.hash}
    return {
        "format": 1 if is_old else 2,
        "source": source.parameters(),
        "pictures": len(source),
        "pictures_per_shard": size,
        "model": model.resolve().name,
        "model_hash": weights,
        "label_recipe": label_recipe_hash(model, dtype, limit, weights=weights),
        "feature_schema": schema.hash,
        "relevance": relevance,
        "grid_side": config.grid_side,
        "embedding_dim": config.hidden_size,
        "scales": list(config.scales),
        "flops": [request_cost(config, scale).flops for scale in config.scales],
        "max_new_tokens": max_new_tokens,
        "skip_bad": skip_bad,
        **({} if is_old else actions),
    }


def _default_space(model: Path, focus: bool) -> ActionSpace:
    # Every source of relevance gives a map, so every model can be read in parts.
    from m3model import M3Config

    scales = tuple(M3Config.from_pretrained(model).scales)
    return default_space(scales) if focus else uniform_space(scales)


def _costs(model: Path) -> dict[str, Any]:
    """Return the analytic time of a request at every scale, by hardware (see m3model.cost), and
    what of it, and of its operations, is the encode."""
    from m3model import M3Config
    from m3model.cost import HARDWARE, request_cost, request_seconds

    config = M3Config.from_pretrained(model)
    times = {
        name: [request_seconds(config, scale, device) for scale in config.scales]
        for name, device in HARDWARE.items()
    }
    return {
        "analytic_seconds": {name: [each.total for each in row] for name, row in times.items()},
        "encode": {
            "flops": request_cost(config, config.scales[-1]).encode_flops,
            "seconds": {name: row[-1].encode for name, row in times.items()},
        },
    }


def _claim(out: Path, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of the folder, written now or equal to this run's parameters."""
    path = out / MANIFEST
    clear_leftovers(path)
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise ParametersDiffer(f"{path} is damaged; collect into another folder") from error
        wanted = json.loads(json.dumps(parameters))
        if "label_recipe" not in found:  # a folder of before: it goes on without
            del wanted["label_recipe"]
        # A run that stopped at a bad record goes on past it: what it wrote holds none.
        goes_past = found.get("skip_bad") is False and wanted["skip_bad"]
        found |= {"skip_bad": True} if goes_past else {}
        differing = sorted(key for key in wanted if found.get(key) != wanted[key])
        if differing:
            first = differing[0]
            raise ParametersDiffer(
                f"{out} was written by a run with another {', '.join(differing)} "
                f"({first}: {found.get(first)!s:.80} there, {wanted[first]!s:.80} here); "
                "use another folder"
            )
        if goes_past:
            write_json(path, found)
        return {key: found[key] for key in wanted}
    if any(file.name != ".lock" for file in out.iterdir()):
        raise ParametersDiffer(f"{out} is not empty and holds no oracle data; use another folder")
    write_json(path, {**parameters, "finished": False})
    return parameters


@contextmanager
def _only_run(out: Path) -> Iterator[None]:
    """Hold the folder's lock; the kernel lets it go when the process dies, however it dies."""
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(f"another run is writing {out}") from error
        yield


def _totals(out: Path, planned: dict[int, range]) -> tuple[int, list[str], Counter[str]]:
    """Return (questions, bad records, counts) over all shards; clear what killed workers left."""
    import pyarrow.parquet as pq

    questions, bad, counts = 0, [], Counter[str]()
    for index in planned:
        metadata = pq.read_metadata(shard_path(out, index))
        told = metadata.metadata or {}
        questions += metadata.num_rows
        bad += json.loads(told.get(BAD_KEY, b"[]"))
        counts.update(json.loads(told.get(COUNTS_KEY, b"{}")))
        clear_leftovers(shard_path(out, index))
    return questions, bad, +counts
