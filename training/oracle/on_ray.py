"""Labels shards on actors of a Ray cluster; the rows are those of worker processes, bit for bit.

An actor sends its rows back and this process writes them, so that only the model folder and the
pictures must lie where every node reads them. An actor that dies, with its node or alone, costs the
shard it had: another one takes it, and a new actor is started where the cluster has room. Knows
Ray's actors and what their deaths mean; does not know how a picture is labelled.
"""

from __future__ import annotations

import logging
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from m3model.config import hash_model
from training.errors import TrainingError
from training.oracle.workers import CollectJob, label_shard, labeller_of, write_shard

LOG = logging.getLogger(__name__)
SHARD_DEATHS = 3  # of actors under one shard: then it is what kills
STARTS_LOST = 10  # actors in a row that died before they were ready, with no shard finished
TELL_S, CONNECT_S = 60.0, 5.0
SHARED = "the model folder and the pictures must lie at the same path on every node"


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Be connected to a Ray cluster while the context lasts.

    Args:
        address: of a running one; "auto" is that of RAY_ADDRESS, or the one on this machine;
            "local" starts one here, which ends with the context.

    Raises:
        TrainingError: it cannot be reached.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit() and "/" not in host:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), CONNECT_S).close()
        ray.init(
            address=address, log_to_driver=False, logging_level=logging.ERROR,
            **({"include_dashboard": False} if address == "local" else {}),
        )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainingError(
            f"the Ray cluster {address} cannot be reached: {str(error).splitlines()[0]}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def ray_workers(device: str | None) -> int:
    """Return how many actors the connected cluster has room for: one a GPU, or else one a core.

    Raises:
        TrainingError: a GPU is wanted, and no node has one.
    """
    import ray

    resources = ray.cluster_resources()
    found = int(resources.get("GPU" if _takes_gpu(device) else "CPU", 0))
    if found < 1:
        raise TrainingError(f"the Ray cluster has nothing to label on: it offers {resources}")
    return found


def _takes_gpu(device: str | None) -> bool:
    import ray

    if device is None:
        return bool(ray.cluster_resources().get("GPU", 0))
    return device.startswith("cuda")


class LabellingActor:
    """One process of the cluster with the model of a job."""

    def __init__(self, job: CollectJob) -> None:
        self._job = job

    def load(self) -> None:
        """Load the model, as a worker process does.

        Raises:
            TrainingError: it is not here, or another one is.
        """
        import torch

        torch.set_num_threads(1)  # as worker processes: sums must not be split otherwise
        if not (self._job.model / "config.json").is_file():
            raise TrainingError(f"a node has no model at {self._job.model}: {SHARED}")
        if hash_model(self._job.model) != self._job.model_hash:
            raise TrainingError(f"a node has another model at {self._job.model}: {SHARED}")
        self._labeller = labeller_of(self._job)

    def label(self, pictures: range) -> Any:
        """Return the rows of a shard."""
        return label_shard(self._job, self._labeller, pictures)


def run_shards(job: CollectJob, planned: dict[int, range], workers: int) -> Iterator[int]:
    """Yield the index of each shard as it is finished, by so many actors of the cluster that this
    process is connected to.

    Raises:
        TrainingError: what labelling raised, or actors die again and again.
    """
    if planned:
        pool = _Pool(job, planned)
        try:
            yield from pool.run(min(workers, len(planned)))
        finally:
            pool.end()


class _Pool:
    """Actors, the shards they have, and those that nobody has yet."""

    def __init__(self, job: CollectJob, planned: dict[int, range]) -> None:
        import ray

        self._job, self._planned, self._waiting = job, planned, list(reversed(planned))
        self._deaths, self._starts_lost, self._has_told = Counter[int](), 0, False
        gpus = 1 if _takes_gpu(job.device) else 0
        self._actor = ray.remote(num_cpus=1, num_gpus=gpus)(LabellingActor)
        self._told = ray.put(job)
        # What is under way: the actor, and its shard; None while it loads the model.
        self._running: dict[Any, tuple[Any, int | None]] = {}
        self._idle: list[Any] = []

    def run(self, workers: int) -> Iterator[int]:
        """Yield the index of each shard once it is on disk."""
        import ray

        for _ in range(workers):
            self._start()
        unfinished = len(self._planned)
        while unfinished:
            ready, _ = ray.wait(list(self._running), num_returns=1, timeout=TELL_S)
            if not ready:
                self._tell_of_no_room()
                continue
            actor, index = self._running.pop(ready[0])
            try:
                rows = ray.get(ready[0])
            except ray.exceptions.RayTaskError as error:
                raise self._meant(error) from error
            except ray.exceptions.RayError as error:
                self._lost(actor, index, error)
                continue
            self._idle.append(actor)
            if index is not None:
                self._starts_lost = 0
                write_shard(self._job, index, rows)
                unfinished -= 1
                yield index
            self._hand_out()

    def end(self) -> None:
        """End all actors."""
        import ray

        for actor in [*self._idle, *(actor for actor, _ in self._running.values())]:
            ray.kill(actor)

    def _start(self) -> None:
        actor = self._actor.remote(self._told)
        self._running[actor.load.remote()] = actor, None

    def _hand_out(self) -> None:
        while self._idle and self._waiting:
            actor, index = self._idle.pop(), self._waiting.pop()
            self._running[actor.label.remote(self._planned[index])] = actor, index

    def _lost(self, actor: Any, index: int | None, error: Exception) -> None:
        """Give the shard of an actor that died to another, and start one in its place."""
        import ray

        ray.kill(actor)  # it may only be out of reach, and must not come back
        if index is None:
            self._starts_lost += 1
            if self._starts_lost >= STARTS_LOST:
                raise TrainingError(
                    f"{STARTS_LOST} actors died while they loaded the model (out of memory?): "
                    f"{_first_line(error)}"
                ) from error
        else:
            self._deaths[index] += 1
            if self._deaths[index] >= SHARD_DEATHS:
                raise TrainingError(
                    f"{SHARD_DEATHS} actors died under shard {index} (out of memory?): "
                    f"{_first_line(error)}"
                ) from error
            LOG.warning("an actor died, its shard goes to another: %s", _first_line(error))
            self._waiting.append(index)
        self._start()
        self._hand_out()

    def _tell_of_no_room(self) -> None:
        works = self._idle or any(index is not None for _, index in self._running.values())
        if not works and not self._has_told:
            LOG.warning("no actor is ready yet: models load, or no node of the cluster has room")
            self._has_told = True

    @staticmethod
    def _meant(error: Any) -> Exception:
        """Return what an actor raised, without the words that Ray puts around it."""
        return error.cause if isinstance(error.cause, TrainingError | OSError) else error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
