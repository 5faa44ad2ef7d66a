"""Grows a predictor's trees on a Ray cluster: each worker has a part of the pictures.

Ray Train's LightGBM trainer starts the workers and tells them of each other. Every worker then fits
as one machine does, on its own rows, in the bins and folds that one machine would make; the
histograms of every split are summed over all, so all workers end with the same boosters. What else
must be agreed on (whether labels vary, where trees start, when to stop) is exchanged in a few
numbers. On several machines LightGBM also tries splits that one machine has given up on in the leaf
above, and rounds otherwise: the router is equivalent, not equal. Knows Ray and predictors; does not
know oracle data.
"""

from __future__ import annotations

import asyncio
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.predictor.boosting import Alone, Labelled, Rows, add, binned, sample, set_labels, train
from router.predictor.chain import Bins, ComplexityPredictor
from router.predictor.matrix import BLOCK, Matrix, extent, in_memory
from training.errors import NotEnoughData, TrainingError
from training.oracle.columns.features import Collecting
from training.oracle.on_ray import cluster as connected
from training.progress import Progress

LEAST_WORKERS = 2
_WIDEST = 60.0  # log odds beyond which no shift is looked for
Exchange = Callable[[Any], list[Any]]  # one worker's word for those of all, in their order


@contextmanager
def cluster(address: str) -> Iterator[None]:
    """Be connected to a Ray cluster while the context lasts, as `training.oracle.on_ray.cluster`.

    Raises:
        TrainingError: it cannot be reached, or Ray Train is not installed.
    """
    try:
        import ray.train.lightgbm  # noqa: F401
    except ImportError as error:
        raise TrainingError('--ray needs Ray Train: pip install "ray[train]"') from error
    with connected(address):
        yield


def grow(
    predictor: ComplexityPredictor, X: Matrix, Y: NDArray[np.float64], groups: NDArray[np.int64],
    progress: Progress,
) -> None:  # fmt: skip
    """Fit a predictor without a calibration as its own ``fit`` does, on the connected cluster.

    Args:
        groups: (n,) numbers from 0, the picture of each row; no picture is on two workers.

    Raises:
        NotEnoughData: too few pictures for so many workers.
        TrainingError: too small a cluster.
    """
    import ray

    workers, cpus = _workers()
    low, high = extent(X)
    count = int(groups.max()) + 1
    if count < 2 * predictor.n_folds * workers:
        raise NotEnoughData(f"{count} training pictures are too few for {workers} Ray workers")
    worker = (np.arange(count) * workers // count)[groups]
    held = np.zeros(len(X), bool)
    held[predictor.folds(len(X), groups)[0]] = True
    samples = [ray.put(sample(X, rows)) for rows in (np.arange(len(X)), np.flatnonzero(~held))]
    shares = [
        {**_share(X, Y, held, np.flatnonzero(worker == rank)), "samples": samples}
        for rank in range(workers)
    ]
    meeting = ray.remote(_Meeting).options(num_cpus=0).remote(shares)  # type: ignore[attr-defined,unused-ignore]
    progress(0, Y.shape[1], f"boosters on {workers} Ray workers")
    settings = {**predictor.get_params(), "num_threads": cpus}
    texts, constants = _grown(settings, meeting, workers, cpus)
    predictor.num_threads = cpus
    predictor.take_over(texts, constants, low, high)


def _workers() -> tuple[int, int]:
    """Return how many workers the cluster is given, and the cores of each: one a node, or two."""
    import ray

    cores = [int(n["Resources"].get("CPU", 0)) for n in ray.nodes() if n["Alive"]]
    cores = [each for each in cores if each]
    if sum(cores) < LEAST_WORKERS:
        raise TrainingError(f"--ray needs {LEAST_WORKERS} cores, the cluster has {sum(cores)}")
    if len(cores) >= LEAST_WORKERS:
        return len(cores), min(cores)
    return LEAST_WORKERS, cores[0] // LEAST_WORKERS


def _share(
    X: Matrix, Y: NDArray[np.float64], held: NDArray[np.bool_], rows: NDArray[np.intp]
) -> dict[str, Any]:
    """Return a worker's rows: features in pieces that lie in Ray's object store, and the rest."""
    import ray

    pieces = [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]
    blocks = [ray.put(in_memory(X[piece])) for piece in pieces]
    return {"blocks": blocks, "Y": Y[rows], "held": held[rows], "width": X.shape[1]}


def _grown(
    settings: dict[str, Any], meeting: Any, workers: int, cpus: int
) -> tuple[list[str], list[float | None]]:
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.lightgbm import LightGBMTrainer

    with tempfile.TemporaryDirectory(prefix="m3-fit-") as folder:
        trainer = LightGBMTrainer(
            _work,
            train_loop_config={"settings": settings, "meeting": meeting, "alone": _small_text()},
            scaling_config=ScalingConfig(
                num_workers=workers, resources_per_worker={"CPU": cpus},
            ),
            run_config=RunConfig(name="fit", storage_path=folder),
        )  # fmt: skip
        try:
            trainer.fit()
            found: tuple[list[str], list[float | None]] = ray.get(meeting.result.remote())
        except Exception as error:
            why = str(error).strip().splitlines()[-1:]
            raise TrainingError(f"the fit on Ray failed: {' '.join(why)}") from error
        finally:
            ray.kill(meeting)
    return found


def _work(config: dict[str, Any]) -> None:
    """Fit on this worker's rows, together with the others; the first one tells what came out."""
    import lightgbm
    import ray
    from ray.train import get_context
    from ray.train.lightgbm import get_network_params

    rank, meeting = get_context().get_world_rank(), config["meeting"]
    share = ray.get(meeting.share.remote(rank))
    collecting = Collecting(len(share["Y"]), share["width"])
    for block in share["blocks"]:
        collecting.add(ray.get(block))
    steps = iter(range(2**62))

    def exchange(value: Any) -> list[Any]:
        told: list[Any] = ray.get(meeting.exchange.remote(rank, next(steps), value))
        return told

    predictor = ComplexityPredictor(**config["settings"])
    together = Together(exchange, get_context().get_world_size())
    parameters = together.parameters(predictor.parameters())
    # Before there is a network, or LightGBM would look for bins of its own on every worker.
    whole, learnt = (
        binned(rows, np.arange(len(rows)), parameters) for rows in ray.get(share["samples"])
    )
    # One network for all that is fitted; LightGBM would make one a booster, on the same port.
    network = lightgbm.Booster(model_str=config["alone"]).set_network(**get_network_params())
    try:
        X, held = collecting.done(), share["held"]
        every, own = np.arange(len(held)), [np.flatnonzero(~held), np.flatnonzero(held)]
        kept, watched = (binned(X, rows, parameters, like=learnt) for rows in own)
        bins = Bins(X, None, binned(X, every, parameters, like=whole), [(kept, watched)])
        texts, calibrations = predictor.grown(bins, share["Y"], together)
        if rank == 0:
            constants = [c.y[0] if c.kind == "constant" else None for c in calibrations]
            ray.get(meeting.tell.remote(texts, constants))
    finally:
        network.free_network()


class Together(Alone):
    """Boosting of which every worker sees its own rows; see `router.predictor.boosting.Alone`."""

    def __init__(self, exchange: Exchange, workers: int) -> None:
        self._exchange = exchange
        self._more = {"tree_learner": "data", "num_machines": workers, "pre_partition": True}

    def parameters(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameters of a booster that grows on several machines."""
        return {**own, **self._more}

    def varies(self, y: NDArray[np.float64]) -> bool:
        """Return whether labels differ anywhere."""
        ends = self._exchange((float(y.min()), float(y.max())))
        return min(low for low, _ in ends) < max(high for _, high in ends)

    def boosted(
        self, part: Labelled, parameters: Mapping[str, Any], n_trees: int,
        watched: Labelled | None = None, patience: int = 0,
    ) -> Any:  # fmt: skip
        """Return the same booster on every worker."""
        import lightgbm

        # From scratch LightGBM starts from the mean of the workers' log odds, which is not that of
        # all rows: so every booster starts where it is told to.
        part, watched = _started(part), None if watched is None else _started(watched)
        shift = self._shift(part)
        set_labels(part, shift)
        curve: dict[str, Any] = {}
        more: dict[str, Any] = {}
        if watched is not None:
            set_labels(watched, shift)
            more = {
                "valid_sets": [watched.on.data], "valid_names": ["watched"],
                "callbacks": [lightgbm.record_evaluation(curve)],
            }  # fmt: skip
        booster = lightgbm.train(dict(parameters), part.on.data, num_boost_round=n_trees, **more)
        if watched is not None:
            [losses] = curve["watched"].values()
            told = self._exchange((len(watched.y), losses))
            rows = [count for count, _ in told]
            mean = np.average([losses for _, losses in told], axis=0, weights=rows)
            booster.best_iteration = best_of(mean.tolist(), patience)
        add(booster, shift)
        return booster

    def _shift(self, part: Labelled) -> float:
        """Return `boosting.shift_to` of the rows of all workers."""
        start = np.zeros(0) if part.start is None else part.start
        totals = self._exchange((float(part.y.sum()), len(part.y)))
        wanted = sum(total for total, _ in totals) / sum(count for _, count in totals)
        low, high = -_WIDEST, _WIDEST
        while high - low > 1e-9:
            middle = 0.5 * (low + high)
            z = np.clip(start + middle, -_WIDEST, _WIDEST)
            sums = self._exchange(float((1.0 / (1.0 + np.exp(-z))).sum()))
            found = math.fsum(sums) / sum(count for _, count in totals)
            low, high = (middle, high) if found < wanted else (low, middle)
        return 0.5 * (low + high)


def best_of(losses: list[float], patience: int) -> int:
    """Return the number of trees at the least loss, before as many came without a lower one."""
    best = 0
    for place, loss in enumerate(losses):
        if loss < losses[best]:
            best = place
        elif place - best >= patience:
            break
    return best + 1


def _started(part: Labelled) -> Labelled:
    return part if part.start is not None else Labelled(part.on, part.y, np.zeros(len(part.y)))


class _Meeting:
    """An actor: gives workers their rows, passes what they tell each other, keeps the result."""

    def __init__(self, shares: list[dict[str, Any]]) -> None:
        self._shares = shares
        self._told: dict[int, dict[int, Any]] = {}
        self._all: dict[int, asyncio.Event] = {}
        self._result: Any = None

    async def share(self, rank: int) -> dict[str, Any]:
        """Return the rows of a worker."""
        return self._shares[rank]

    async def exchange(self, rank: int, step: int, value: Any) -> list[Any]:
        """Return what every worker tells at this step, once all have."""
        told, everyone = (
            self._told.setdefault(step, {}),
            self._all.setdefault(step, asyncio.Event()),
        )
        told[rank] = value
        if len(told) == len(self._shares):
            everyone.set()
            self._told.pop(step - 1, None)  # who is here has read the one before
            self._all.pop(step - 1, None)
        await everyone.wait()
        return [told[each] for each in sorted(told)]

    async def tell(self, texts: list[str], constants: list[float | None]) -> None:
        """Keep what came out."""
        self._result = (texts, constants)

    async def result(self) -> Any:
        """Return what came out."""
        return self._result


def _small_text() -> str:
    """Return some booster: to speak of a network LightGBM wants one, whichever."""
    rows = Rows(np.arange(8, dtype=np.float32)[:, None], np.arange(8) % 2)
    return str(train(rows, {"objective": "cross_entropy", "verbosity": -1}, 1).model_to_string())
