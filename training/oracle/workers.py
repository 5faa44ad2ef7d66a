"""Labels shards of pictures in worker processes and writes each shard whole or not at all.

Knows processes and shard files; does not know which shards are missing, or why.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import TYPE_CHECKING

from router.actions import ActionSpace
from training.errors import BadRecord, TrainingError
from training.files import replacing
from training.oracle.growth.told import BAD_KEY, COUNTS_KEY, NO_ROOM, Asked, told_again, told_of
from training.sources.tasks import Source

if TYPE_CHECKING:
    from training.oracle.labelling import Labeller

GROUP_PICTURES = 8  # pictures labelled together


@dataclass(frozen=True)
class CollectJob:
    """Everything a worker process needs."""

    source: Source
    model: Path
    out: Path
    feature_schema: str
    model_hash: str
    device: str | None
    max_new_tokens: int
    skip_bad: bool
    relevance: str
    text_encoder: Path | None
    space: ActionSpace
    label_recipe: str | None = None  # of answers without a limit; None in folders of before
    asked: tuple[Asked, ...] = ()  # of each picture, where the source may grow


def shard_path(out: Path, index: int) -> Path:
    """Return the file of a shard."""
    return out / f"oracle-{index:05d}.parquet"


def default_workers(device: str | None = None) -> int:
    """Return the usable physical cores, or 1 where a GPU does the work."""
    import torch

    if device not in (None, "cpu") or (device is None and torch.cuda.is_available()):
        return 1
    siblings = set()
    for cpu in os.sched_getaffinity(0):
        file = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(file.read_text().strip() if file.is_file() else str(cpu))
    return max(1, len(siblings))


def run_shards(job: CollectJob, planned: dict[int, range], workers: int) -> Iterator[int]:
    """Yield the index of each shard as it is finished."""
    if workers == 1:
        labeller = _labeller(job) if planned else None
        for index, pictures in planned.items():
            if labeller is not None:
                _write_shard(job, labeller, index, pictures)
            yield index
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(job,))
    try:
        pending = {pool.submit(_work, index, pictures) for index, pictures in planned.items()}
        while pending:
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                yield future.result()
    except BrokenProcessPool as error:
        raise TrainingError(
            "a worker process died (out of memory?); run the same command again to go on, "
            "with fewer --workers if it happens again"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_WORKER: tuple[CollectJob, Labeller] | None = None


def _start_worker(job: CollectJob) -> None:
    import torch

    # One thread each: several threads a process cost more than they give beside other processes.
    torch.set_num_threads(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    global _WORKER
    _WORKER = job, _labeller(job)


def _die_with_parent() -> None:
    """End this process when the one that started it is gone, even by kill -9."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait_for([parent.sentinel])
        os._exit(1)


def _work(index: int, pictures: range) -> int:
    if _WORKER is None:
        raise RuntimeError("the worker was not started")
    job, labeller = _WORKER
    _write_shard(job, labeller, index, pictures)
    return index


def _labeller(job: CollectJob) -> Labeller:
    from training.oracle.labelling import Labeller

    return Labeller(
        job.model, device=job.device, max_new_tokens=job.max_new_tokens,
        relevance=job.relevance, text_encoder=job.text_encoder, space=job.space,
    )  # fmt: skip


def _write_shard(job: CollectJob, labeller: Labeller, index: int, pictures: range) -> None:
    import pyarrow.parquet as pq

    from router.records import OracleRecord, to_table

    records, bad, counts = [], [], Counter[str]()
    for start in range(0, len(pictures), GROUP_PICTURES):
        tasks = []
        for picture in pictures[start : start + GROUP_PICTURES]:
            try:
                tasks.append(job.source.load(picture))
            except BadRecord as error:
                if not job.skip_bad:
                    erase = "; `m3-train log erase ID` takes it out" * (job.source.kind == "log")
                    raise BadRecord(f"{error} (`collect --skip-bad` goes on{erase})") from error
                bad.append(str(error))
        asked, tasks = sum(len(task.asks) for task in tasks), list(map(labeller.fitting, tasks))
        asks = [ask for task in tasks for ask in task.asks]
        counts[NO_ROOM] += asked - len(asks)
        labelled = labeller.label(
            [task for task in tasks if task.asks],
            feature_schema=job.feature_schema,
            model_hash=job.model_hash,
            source=job.source.kind,
            recipe=job.label_recipe,
        )
        for ask, record in zip(asks, labelled, strict=True):
            counts.update(told_again(ask, record.answers, job.space))
        records += labelled
    table = to_table(records, OracleRecord)
    metadata = {
        **(table.schema.metadata or {}),
        BAD_KEY: json.dumps(bad).encode(),
        COUNTS_KEY: json.dumps(counts).encode(),
        **told_of(job.source, job.asked, job.space, pictures, records, bad),
    }
    with replacing(shard_path(job.out, index)) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd")
