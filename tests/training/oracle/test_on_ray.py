"""Labelling on a real Ray cluster: the same rows as by processes, whatever dies meanwhile."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import ray
from PIL import Image

from training.errors import BadRecord, TrainingError
from training.oracle import on_ray
from training.oracle.collection import collect
from training.oracle.workers import CollectJob, run_shards
from training.sources.llava import llava_source
from training.sources.scenes import SceneSource

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def cluster(ray_service: Any) -> None:
    """The cluster of the whole test run; it has the cores of this machine."""


def shards_in(folder: Path) -> dict[str, Any]:
    return {path.name: pq.read_table(path) for path in sorted(folder.glob("oracle-*.parquet"))}


def actors() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # gone meanwhile, or dead and not yet waited for
            if "LabellingActor" in " ".join(process.cmdline()):
                found.append(process)
    return found


def killing(at: int, job: CollectJob, planned: dict[int, range], workers: int) -> Iterator[int]:
    """The actors' runner; one of them is killed when so many shards are done."""
    for number, index in enumerate(on_ray.run_shards(job, planned, workers)):
        if number == at:
            os.kill(actors()[0].pid, signal.SIGKILL)
        yield index


@pytest.mark.usefixtures("cluster")
def test_rows_are_those_of_processes_also_when_an_actor_dies(
    tiny_model: Path, tmp_path: Path
) -> None:
    source = SceneSource(10, 0, "collect")
    more = {"workers": 2, "max_new_tokens": 3}
    collect(source, tiny_model, tmp_path / "here", **more)

    def run(job: CollectJob, planned: dict[int, range], workers: int) -> Iterator[int]:
        return killing(1, job, planned, workers)

    result = collect(source, tiny_model, tmp_path / "there", run=run, **more)
    assert result.labelled_now == 10
    here, there = shards_in(tmp_path / "here"), shards_in(tmp_path / "there")
    assert list(here) == list(there)
    assert len(here) == 5
    for name, table in here.items():
        assert there[name].equals(table, check_metadata=True)
    deadline = time.monotonic() + 30
    while actors():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.usefixtures("cluster")
def test_what_an_actor_raises_is_what_is_told(tiny_model: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"not a picture")
    turns = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a box"}]
    records = [{"id": n, "image": f"{n}.png", "conversations": turns} for n in ("good", "bad")]
    (tmp_path / "data.json").write_text(json.dumps(records))
    source = llava_source(tmp_path / "data.json", tmp_path)
    with pytest.raises(BadRecord, match=r"^record bad: cannot read the picture bad.png"):
        collect(source, tiny_model, tmp_path / "out", run=on_ray.run_shards, workers=1)

    def elsewhere(job: CollectJob, planned: dict[int, range], workers: int) -> Iterator[int]:
        return on_ray.run_shards(replace(job, model=tmp_path), planned, workers)

    with pytest.raises(TrainingError, match=r"a node has no model at .* on every node"):
        collect(source, tiny_model, tmp_path / "out", run=elsewhere, workers=1, skip_bad=True)

    def another(job: CollectJob, planned: dict[int, range], workers: int) -> Iterator[int]:
        return on_ray.run_shards(replace(job, model_hash="other"), planned, workers)

    with pytest.raises(TrainingError, match="a node has another model"):
        collect(source, tiny_model, tmp_path / "out", run=another, workers=1, skip_bad=True)


class Deadly(on_ray.LabellingActor):
    """Dies under a shard, as one does that needs more memory than there is."""

    def label(self, pictures: range) -> Any:
        if 0 in pictures:
            os._exit(1)
        return super().label(pictures)


@pytest.mark.usefixtures("cluster")
def test_a_shard_that_kills_is_named(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray.cloudpickle.register_pickle_by_value(__import__(__name__))
    monkeypatch.setattr(on_ray, "LabellingActor", Deadly)
    source = SceneSource(10, 0, "collect")
    with pytest.raises(TrainingError, match="3 actors died under shard 0"):
        collect(source, tiny_model, tmp_path, run=on_ray.run_shards, workers=2, max_new_tokens=2)
    # What else was finished is there, and is not done again.
    done = len(shards_in(tmp_path))
    result = collect(source, tiny_model, tmp_path, run=run_shards, workers=1, max_new_tokens=2)
    assert result.labelled_now == 10 - 2 * done


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path, python: Any) -> None:
    flags = ("--out", tmp_path / "out", "--scenes", 3, "--ray", "127.0.0.1:9")
    done = python("-m", "training.cli", "collect", *flags)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "the Ray cluster 127.0.0.1:9 cannot be reached: " in done.stderr
