"""Trees that several workers grow together: what they agree on."""

import sys
import threading

import numpy as np
import pytest

from router.predictor.boosting import Labelled, binned, shift_to
from training.errors import TrainingError
from training.fitting.on_ray import Together, best_of, cluster


def test_the_least_loss_counts_until_patience_ends() -> None:
    assert best_of([3.0, 2.0, 1.0, 2.0], 9) == 3
    assert best_of([3.0, 2.0, 2.5, 2.5, 1.0], 2) == 2  # 1.0 comes too late
    assert best_of([3.0, 2.0, 2.5, 2.5, 1.0], 3) == 5
    assert best_of([1.0], 1) == 1


def test_workers_agree_on_what_all_their_rows_say() -> None:
    """Two workers, one with all ones: labels vary, and the shift is that of all rows."""
    random = np.random.default_rng(0)
    y = np.concatenate([np.ones(30), random.random(50)])
    start = random.normal(0.0, 2.0, 80)
    X = random.normal(size=(80, 2)).astype(np.float32)
    halves = [np.arange(30), np.arange(30, 80)]
    barrier, told = threading.Barrier(2), [[None, None]]
    found: dict[int, tuple[bool, float]] = {}

    def worker(rank: int) -> None:
        def exchange(value: object) -> list:
            told[0][rank] = value  # type: ignore[call-overload]
            barrier.wait(60)
            heard = list(told[0])
            barrier.wait(60)
            return heard

        rows = halves[rank]
        together = Together(exchange, 2)
        part = Labelled(binned(X, rows, {"verbosity": -1}), y[rows], start[rows])
        found[rank] = together.varies(y[rows]), together._shift(part)

    threads = [threading.Thread(target=worker, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found[0] == found[1] == (True, pytest.approx(shift_to(start, y), abs=1e-7))


def test_without_ray_train_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray.train.lightgbm", None)
    with pytest.raises(TrainingError, match=r'pip install "ray\[train\]"'), cluster("local"):
        pass
