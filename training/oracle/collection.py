"""Collects oracle data: every action on every question, as Parquet shards that survive a kill.

A shard is written under a temporary name, synced and renamed, so it is there whole or not at all; a
rerun computes the missing ones only. A log and a data file may have grown or changed meanwhile:
what is new is labelled, what is out of date leaves (see `growth`), and until that is done the
manifest names the shards of the state before. Knows folders and manifests; does not know processes
(see `workers`) nor how a picture is labelled (see `labelling`).
"""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from router.actions import ActionSpace, default_space, uniform_space
from training.errors import ParametersDiffer, TrainingError
from training.files import clear_leftovers, write_json
from training.oracle.growth.before import adopted
from training.oracle.growth.folder import (
    FILES,
    Batch,
    Shard,
    damaged_shards,
    read_shards,
    shard_files,
    shard_size,
    units_in,
    work_of,
)
from training.oracle.growth.stale import without_erased, without_stale
from training.oracle.growth.told import (
    BAD_KEY,
    COUNTS_KEY,
    GIVEN_AGAIN,
    LOGGED,
    NO_ROOM,
    SCORES_LEFT_OUT,
    Asked,
    asked_of,
)
from training.oracle.workers import (
    CollectJob,
    Runner,
    default_workers,
    run_shards,
    shard_path,
)
from training.sources.tasks import FileSource, Source, shards

MANIFEST = "manifest.json"
GROWING = "growing"  # of the manifest: the batch that a run has begun since it was finished


@dataclass(frozen=True)
class CollectResult:
    """What a run did: totals over the whole folder, and how many pictures this run labelled."""

    pictures: int
    questions: int
    bad: list[str]
    labelled_now: int
    counts: dict[str, int] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()  # shards that could not be read, and were labelled again

    def notes(self) -> list[str]:
        """Return a line for each thing to know of damage and of questions served before."""
        lines = []
        if self.bad:
            lines.append(f"skipped {len(self.bad)} bad pictures, first: {self.bad[0]}")
        if self.damaged:
            lines.append(
                f"{len(self.damaged)} damaged files were removed and their pictures labelled "
                f"again: {', '.join(self.damaged)}"
            )
        lines += [f"{self.counts[key]} {key}" for key in (NO_ROOM, SCORES_LEFT_OUT)
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
    """Label a source into ``out`` and return the totals; what is labelled already is kept.

    Of a source of files only what is new is labelled, also where it was asked otherwise before.
    Labels that this replaces leave the folder, as do those of pictures that were erased from the
    log, and of questions that a data file asks no more. What the log has merely forgotten stays.

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
        manifest = _claim(out, parameters, grows=isinstance(source, FileSource))
        job = CollectJob(
            source, model, out, parameters["feature_schema"], parameters["model_hash"],
            device, max_new_tokens, skip_bad, name, text_encoder, space,
            uncut(manifest.get("label_recipe")),
        )  # fmt: skip
        for leftover in out.glob("oracle-*.tmp"):  # of killed workers
            leftover.unlink()
        damaged = _without_damaged(out, skip_bad)
        asked = asked_of(source) if isinstance(source, FileSource) else ()
        if isinstance(source, FileSource):
            job, planned = _grown(job, source, asked, manifest)
        else:
            planned = dict(shards(len(source), manifest["pictures_per_shard"]))
            planned = {at: part for at, part in planned.items() if not shard_path(out, at).exists()}
        missing = sum(map(len, planned.values()))
        done = len(source) - missing
        progress(done, len(source))
        count = min(workers or default_workers(device), max(1, len(planned)))
        for index in run(job, planned, count):
            done += len(planned[index])
            progress(done, len(source))
        manifest.pop(GROWING, None)
        manifest |= {"finished": True, **analytic_costs(model)}
        if isinstance(source, FileSource):
            _settle(out, source, asked, manifest, parameters)
        questions, bad, counts = _totals(out)
        totals = {"questions": questions, "bad": len(bad), "shards": len(shard_files(out))}
        manifest.pop("counts", None)
        if counts:  # of questions that were served before
            manifest["counts"] = dict(counts)
        write_json(out / MANIFEST, {**manifest, **totals})
    return CollectResult(len(source), questions, bad, missing, dict(counts), damaged)


def _grown(
    job: CollectJob, source: FileSource, asked: Sequence[Asked], manifest: dict[str, Any]
) -> tuple[CollectJob, dict[int, range]]:
    """Return the job and the shards to write for what the folder does not hold of the source."""
    there = read_shards(job.out)
    if FILES not in manifest:  # a folder of before: its shards do not say what they hold
        content, size = manifest["source"]["content"], manifest["pictures_per_shard"]
        there = adopted(there, source, content, size, job.space)
        manifest[FILES] = [shard.path.name for shard in there] if manifest["finished"] else []
    there = _without_erased(there, source)
    begun = None
    if GROWING in manifest:
        begun = Batch(**manifest[GROWING])
    elif not manifest["finished"]:
        begun = Batch(0, manifest["pictures_per_shard"])
    work = work_of(there, asked, begun)
    if work.planned:
        manifest[GROWING] = asdict(work.batch)
        write_json(job.out / MANIFEST, manifest)
    units = units_in(there) if source.kind == "log" and work.planned and there else {}
    pictures = []
    for at in work.pictures:
        name, path, asks = source.pictures[at]
        if name in units:  # a picture stays where its first row put it
            asks = tuple(replace(ask, group_id=units[name]) for ask in asks)
        pictures.append((name, path, asks))
    part = replace(source, pictures=tuple(pictures))
    told = tuple(asked[at] for at in work.pictures)
    return replace(job, source=part, asked=told), work.planned


def _settle(
    out: Path,
    source: FileSource,
    asked: Sequence[Asked],
    manifest: dict[str, Any],
    parameters: dict[str, Any],
) -> None:
    """Have the manifest name all shards, then take out of them what is out of date.

    In this order: until others stand in for them, old labels are part of the state before.
    """
    manifest |= {"source": parameters["source"], "pictures": len(source)}
    there = read_shards(out)
    manifest[FILES] = [shard.path.name for shard in there]
    write_json(out / MANIFEST, {**manifest, "shards": len(there)})
    there = without_stale(there, asked, passed_stay=source.kind == "log")
    there = _without_erased(there, source)  # what was erased meanwhile
    manifest[FILES] = [shard.path.name for shard in there if not shard.is_empty]
    if len(manifest[FILES]) < len(there):
        write_json(out / MANIFEST, {**manifest, "shards": len(manifest[FILES])})
    for shard in there:
        if shard.is_empty:
            shard.path.unlink()


def _without_erased(there: list[Shard], source: FileSource) -> list[Shard]:
    from router.log.tombstones import read_erased

    return there if source.log is None else without_erased(there, read_erased(source.log))


def _without_damaged(out: Path, skip_bad: bool) -> tuple[str, ...]:
    """Remove shards that cannot be read, so that they are labelled again; return their names.

    Raises:
        TrainingError: there are some, and bad ones are not to be skipped.
    """
    damaged = damaged_shards(out)
    if damaged and not skip_bad:
        raise TrainingError(
            f"cannot read {damaged[0]}: delete it and run the same again, or give --skip-bad: its "
            "pictures are then labelled again"
        )
    for path in damaged:
        path.unlink()
    return tuple(path.name for path in damaged)


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
    # The scales alone are the data of format 1 to the last key: folders of before go on.
    is_old = space == uniform_space(config.scales)
    actions = {"actions": space.to_json(), "action_space": space.hash}
    return {
        "format": 1 if is_old else 2,
        "source": source.parameters(),
        "pictures": len(source),
        "pictures_per_shard": shard_size(len(source)),
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


def analytic_costs(model: Path) -> dict[str, Any]:
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


def _claim(out: Path, parameters: dict[str, Any], *, grows: bool) -> dict[str, Any]:
    """Return the manifest of the folder: begun now, or what a run of the same kind left.

    Args:
        grows: the source may hold other pictures and questions than then.
    """
    path = out / MANIFEST
    clear_leftovers(path)
    if not path.exists():
        if any(file.name != ".lock" for file in out.iterdir()):
            raise ParametersDiffer(
                f"{out} is not empty and holds no oracle data; use another folder"
            )
        begun = {**parameters, "finished": False, **({FILES: []} if grows else {})}
        write_json(path, begun)
        return begun
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ParametersDiffer(f"{path} is damaged; collect into another folder") from error
    # A run that stopped at a bad record goes on past it: what it wrote holds none.
    goes_past = found.get("skip_bad") is False and parameters["skip_bad"]
    found |= {"skip_bad": True} if goes_past else {}
    before, now = found, json.loads(json.dumps(parameters))
    if grows:
        is_old = FILES not in found
        before, now = _without_growth(before, is_old), _without_growth(now, is_old)
    if "label_recipe" not in found:  # a folder of before: it goes on without
        del now["label_recipe"]
    differing = sorted(key for key in now if before.get(key) != now[key])
    if differing:
        first = differing[0]
        raise ParametersDiffer(
            f"{out} was written by a run with another {', '.join(differing)} "
            f"({first}: {before.get(first)!s:.80} there, {now[first]!s:.80} here); "
            "use another folder"
        )
    if goes_past:
        write_json(path, found)
    return dict(found)


def _without_growth(manifest: dict[str, Any], is_old: bool) -> dict[str, Any]:
    """Return what of a manifest must be the same for a run to go on; old ones told less."""
    changes = {"pictures", "pictures_per_shard"}
    kept = {key: value for key, value in manifest.items() if key not in changes}
    changes = {"content"} | ({"metric", "repeats"} if is_old else set())
    source = {key: value for key, value in kept["source"].items() if key not in changes}
    return {**kept, "source": source}


@contextmanager
def _only_run(out: Path) -> Iterator[None]:
    """Hold the folder's lock; the kernel lets it go when the process dies, however it dies."""
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TrainingError(f"another run is writing {out}") from error
        yield


def _totals(out: Path) -> tuple[int, list[str], Counter[str]]:
    """Return (questions, bad records, counts) over all shards."""
    import pyarrow.parquet as pq

    questions, bad, counts = 0, list[str](), Counter[str]()
    for path in shard_files(out):
        metadata = pq.read_metadata(path)
        told = metadata.metadata or {}
        questions += metadata.num_rows
        bad += json.loads(told.get(BAD_KEY, b"[]"))
        counts.update(json.loads(told.get(COUNTS_KEY, b"{}")))
    return questions, bad, +counts
