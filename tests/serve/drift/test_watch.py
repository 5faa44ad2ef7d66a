"""What an encoder sees of its traffic: nothing of the same population, and by name what moved."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from router import ComplexityPredictor, Policy, Router, feature_schema
from router.actions import Reading
from router.decision import Reason, RoutingDecision
from router.drift.population import POPULATION_FILE, Population, deciles
from serve.drift.watch import EVERY, WINDOW, DriftWatch
from serve.metrics import LocalMetrics

SCALES = (1, 9, 36)
SCHEMA = feature_schema(SCALES, 6, 4)
F = len(SCHEMA.names)


@pytest.fixture(scope="module")
def router() -> Router:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, F)).astype(np.float32)
    predictor = ComplexityPredictor(n_estimators=2).fit(features, rng.random((60, 3)) < 0.5)
    return Router(predictor, SCHEMA, Policy((0.1, 0.3, 1.0), 0.1))


def write_population(folder: Path, router: Router, rows: np.ndarray, **choices: float) -> None:
    names = router.space.names
    spread = {name: choices.get(f"to_{name}", 1 / len(names)) for name in names}
    edges, shares = deciles(rows)
    told = Population(router.predictor_hash, float(len(rows)), edges, shares, router.price, spread,
                      dict.fromkeys(names, 0.5))  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / POPULATION_FILE).write_bytes(told.to_bytes())


def decision(scale: int = 9, reason: Reason = Reason.predicted) -> RoutingDecision:
    return RoutingDecision(scale, scale, reason, readings=(Reading.uniform(scale),))


class Watched:
    """A watch on a router with a population, and its gauges."""

    def __init__(self, router: Router, folder: Path, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        write_population(folder, router, self.draw(3000))
        self.metrics, self.router, self.number = LocalMetrics(), router, 0
        self.watch = DriftWatch(self.metrics)
        self.watch.begin(router, folder)

    def draw(self, n: int) -> np.ndarray:
        return self.rng.normal(size=(n, F)).astype(np.float32)

    def serve(self, rows: np.ndarray, *, scales: tuple[int, ...] = SCALES, each: int = 1,
              reason: Reason = Reason.predicted) -> None:  # fmt: skip
        for row in rows:
            for _ in range(each):
                self.number += 1
                told = decision(scales[self.number % len(scales)], reason)
                self.watch.note(self.router, row[None], [f"{row[0]}"], told)

    def gauge(self, name: str) -> float:
        text = asyncio.run(self.metrics.text())
        return float(
            next(line.split()[1] for line in text.splitlines() if line.startswith(f"{name} "))
        )


@pytest.fixture
def watched(router: Router, tmp_path: Path) -> Watched:
    return Watched(router, tmp_path)


def test_the_same_population_is_quiet(watched: Watched) -> None:
    """At every look of 1,500 requests, windows of 100 to 1,000 of them."""
    for _ in range(1500 // EVERY):
        watched.serve(watched.draw(EVERY))
        assert watched.watch.told == ""
    assert watched.gauge("m3_drift_features") == 0
    assert 0 < watched.gauge("m3_drift_psi_max") < 0.2
    assert watched.gauge("m3_action_share") == pytest.approx(1 / 3, abs=0.01)


def test_what_has_moved_is_told_by_name_and_forgotten_again(watched: Watched) -> None:
    moved = watched.draw(300)
    moved[:, 5] += 1.5
    watched.serve(moved)
    assert watched.gauge("m3_drift_features") == 1
    assert watched.gauge("m3_drift_psi_max") > 0.5
    assert f"1 of {F} features have moved" in watched.watch.told
    assert SCHEMA.names[5] in watched.watch.told
    watched.serve(watched.draw(WINDOW))
    assert watched.watch.told == ""
    assert watched.gauge("m3_drift_features") == 0


def test_the_window_holds_what_it_should(watched: Watched) -> None:
    """After more than a window: the same counts as of its last rows alone."""
    rows = watched.draw(WINDOW + 250)
    watched.serve(rows)
    told = watched.watch._population
    assert told is not None
    assert (watched.watch._counts == told.counts(rows[-WINDOW:])).all()
    assert len(watched.watch._window) == WINDOW == watched.watch._squares
    assert watched.watch._choices.total() == WINDOW


def test_many_questions_about_few_pictures_say_little(watched: Watched) -> None:
    watched.serve(watched.draw(40), each=20)
    assert watched.watch.told == ""
    assert watched.gauge("m3_drift_psi_max") == 0.0  # below the least that anything is said of


@pytest.mark.parametrize(("reason", "collapses"), [(Reason.predicted, 1), (Reason.restricted, 0)])
def test_one_action_for_all_is_a_collapse(watched: Watched, reason: Reason, collapses: int) -> None:
    """Only of choices that were free."""
    watched.serve(watched.draw(300), scales=(1,), reason=reason)
    assert watched.gauge("m3_router_collapsed") == collapses
    assert ("nearly all is read by 1" in watched.watch.told) == bool(collapses)


def test_without_a_population_nothing_is_watched(watched: Watched, tmp_path: Path) -> None:
    for damage in (b"", b'{"format": 1}', None):
        if damage is None:
            (tmp_path / POPULATION_FILE).unlink()
        else:
            (tmp_path / POPULATION_FILE).write_bytes(damage)
        watched.watch.begin(watched.router, tmp_path)
        watched.serve(watched.draw(200) + 3.0)
        assert watched.watch.told == ""
        assert watched.gauge("m3_drift_features") == 0


def test_a_population_of_another_router_is_not_taken(
    router: Router, watched: Watched, tmp_path: Path
) -> None:
    """It lay in the folder before; a router that was only priced anew keeps its own."""
    dearer = router.with_policy(Policy(router.policy.costs, 0.5))
    watched.watch.begin(dearer, tmp_path)
    assert watched.watch._population is not None
    rng = np.random.default_rng(9)
    rows = rng.normal(size=(60, F)).astype(np.float32)
    other = ComplexityPredictor(n_estimators=2).fit(rows, rng.random((60, 3)) < 0.5)
    watched.watch.begin(Router(other, SCHEMA, router.policy), tmp_path)
    assert watched.watch._population is None


def test_health_tells_it(running: Any) -> None:
    assert httpx2.get(f"{running.url}/health").json()["encoder"]["drift"] == ""
