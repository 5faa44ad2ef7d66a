"""Runs of lmms-eval as oracle data: one record a document, answered at every scale.

Scores are the task's own. Features come from the pictures, through the model that answered. Of the
likelihood of a reference lmms-eval knows nothing, so it is NaN: a router learns from the scores.
Knows runs, task data and the oracle's folder; knows nothing of lmms-eval's files or of flags.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from m3model import M3Config
from m3model.engine.recipe import label_recipe_hash, model_of, shared_recipe
from m3model.relevance.choice import relevance_name
from router.records import OracleRecord, to_table
from router.records.looks import look_of
from training.errors import MixedData, NotEnoughData, ParametersDiffer
from training.files import replacing, write_json
from training.lmms.conversation import question_of
from training.lmms.dataset import TaskData, read_data
from training.lmms.encoding import PictureEncoder, SeenPicture
from training.lmms.runs import Run, check_together, find_runs, metric_of_runs, score_of
from training.oracle.collection import MANIFEST, analytic_costs
from training.oracle.workers import shard_path
from training.scoring.metric import THRESHOLD

SOURCE: Literal["lmms-eval"] = "lmms-eval"
PICTURES_AT_ONCE = 8
Moved = Callable[[int, int], None]


@dataclass(frozen=True)
class Imported:
    """What became of the runs; ``left_out`` has a line for each kind of thing that was not used."""

    task: str
    metric: str
    questions: int
    pictures: int
    left_out: tuple[str, ...]


def import_runs(
    places: Sequence[Path],
    data: Path,
    model: Path,
    out: Path,
    *,
    task: str | None = None,
    split: str | None = None,
    column: str | None = None,
    metric: str | None = None,
    device: str | None = None,
    relevance: str = "auto",
    text_encoder: Path | None = None,
    progress: Moved = lambda done, total: None,
) -> Imported:
    """Write oracle data of the runs into ``out``, an empty folder, and return what was written.

    Args:
        places: sample files of lmms-eval, or folders of them: one run a scale.
        data: folder of the task's data, for the pictures.
        model: folder of the checkpoint that answered.
        task, split, column, metric: which ones, where there are several.
        relevance, text_encoder: where relevance comes from, see `m3model.relevance.choice`.
        progress: called with (pictures done, pictures in all).

    Raises:
        TrainingError: runs that do not belong together, another model's, or other pictures.
    """
    if out.exists() and any(out.iterdir()):
        raise ParametersDiffer(f"{out} is not empty; import into another folder")
    found = find_runs(places, task)
    runs = found.runs
    check_together(runs, tuple(M3Config.from_pretrained(model).scales))
    name = metric_of_runs(runs, metric)
    docs = [doc for doc, sample in runs[0].samples.items() if len(sample.told.picture_ids) == 1]
    if not docs:
        raise NotEnoughData(f"no document of {runs[0].task} shows one picture: nothing to import")
    for run in runs:
        for doc in docs:
            score_of(run.samples[doc], name)
    _check_model(runs, model)
    shown = read_data(data, split, column)
    encoder = PictureEncoder(
        model, device=device, relevance=relevance_name(model, relevance, text_encoder),
        text_encoder=text_encoder,
    )  # fmt: skip
    records = list(_records(runs, docs, name, shown, encoder, progress))
    out.mkdir(parents=True, exist_ok=True)
    _write(out, records, runs, name, encoder)
    left_out, others = list(found.left_out), len(runs[0].samples) - len(docs)
    if others:
        left_out.append(f"{others} documents without a picture, or with several")
    pictures = len({record.picture_id for record in records})
    return Imported(runs[0].task, name, len(records), pictures, tuple(left_out))


def _check_model(runs: Sequence[Run], model: Path) -> None:
    """Return if the checkpoint is the one that answered, on whatever device."""
    told = next(iter(runs[0].samples.values())).told.recipe
    here = label_recipe_hash(model)
    if model_of(told) != here:
        raise MixedData(
            f"the runs were answered by recipe {told}, {model} has {here}: give the --model that "
            "they ran"
        )


def _records(
    runs: Sequence[Run],
    docs: Sequence[int],
    metric: str,
    data: TaskData,
    encoder: PictureEncoder,
    progress: Moved,
) -> Iterator[OracleRecord]:
    """Yield the record of each document, those of one picture together."""
    of_picture: dict[str, list[int]] = {}
    for doc in docs:
        (picture,) = runs[0].samples[doc].told.picture_ids
        of_picture.setdefault(picture, []).append(doc)
    names = list(of_picture)
    progress(0, len(names))
    for start in range(0, len(names), PICTURES_AT_ONCE):
        part = names[start : start + PICTURES_AT_ONCE]
        pixels = [data.picture(of_picture[name][0], name) for name in part]
        for seen, rgb in zip(encoder.encode(pixels), pixels, strict=True):
            for doc in of_picture[seen.picture_id]:
                yield _record(runs, doc, metric, seen, look_of(rgb), encoder)
        progress(start + len(part), len(names))


def _record(
    runs: Sequence[Run],
    doc: int,
    metric: str,
    picture: SeenPicture,
    group: str,
    encoder: PictureEncoder,
) -> OracleRecord:
    samples = [run.samples[doc] for run in runs]
    first = samples[0]
    messages, question = first.told.messages, question_of(first.told.messages)
    relevance = encoder.relevance(picture, question)
    facts: dict[str, Any] = {"doc_id": doc, "target": first.target}
    if len(messages) > 1:  # the same question in another conversation is another one
        said = json.dumps(messages, sort_keys=True).encode()
        facts["asked"] = hashlib.sha256(said).hexdigest()[:16]
    return OracleRecord(
        picture_id=picture.picture_id,
        question_id=f"{runs[0].task}-{doc}",
        question=question,
        dataset=runs[0].task,
        reference=first.target,
        source=SOURCE,
        scales=encoder.scales,
        answers=tuple(sample.answer for sample in samples),
        scores=tuple(score_of(sample, metric) for sample in samples),
        p_reference=(math.nan,) * len(samples),
        confidence=tuple(sample.told.confidence for sample in samples),
        visual_tokens=tuple(sample.told.visual_tokens for sample in samples),
        features=encoder.features(picture, question, relevance),
        feature_schema=encoder.schema.hash,
        model_hash=encoder.model_hash,
        metadata=json.dumps(facts, sort_keys=True),
        metric=f"{SOURCE}/{metric}",
        threshold=THRESHOLD,
        group_id=group,
        label_recipe=first.told.recipe,
    )


def _write(
    out: Path,
    records: Sequence[OracleRecord],
    runs: Sequence[Run],
    metric: str,
    encoder: PictureEncoder,
) -> None:
    """Write the records, then the manifest: without it the folder is no oracle data."""
    import pyarrow.parquet as pq

    from m3model import request_cost

    config, scales = encoder.model.config, encoder.scales
    with replacing(shard_path(out, 0)) as temporary:
        pq.write_table(to_table(records, OracleRecord), temporary, compression="zstd")
    manifest = {
        "format": 1,  # of the scales alone
        "source": {
            "source": SOURCE,
            "task": runs[0].task,
            "metric": metric,
            "runs": [run.path.name for run in runs],
            "settings": runs[0].settings,
        },
        "pictures": len({record.picture_id for record in records}),
        "questions": len(records),
        "shards": 1,
        "bad": 0,
        "finished": True,
        "model": encoder.folder.resolve().name,
        "model_hash": encoder.model_hash,
        "label_recipe": shared_recipe(record.label_recipe for record in records),
        "feature_schema": encoder.schema.hash,
        "relevance": encoder.schema.relevance,
        "grid_side": config.grid_side,
        "embedding_dim": config.hidden_size,
        "scales": list(scales),
        "flops": [request_cost(config, scale).flops for scale in scales],
        **analytic_costs(encoder.folder),
    }
    write_json(out / MANIFEST, manifest)
