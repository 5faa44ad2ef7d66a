"""Promotion and rollback: what the pointer names is always a whole, checked router."""

import threading
from pathlib import Path

import numpy as np
import pytest

from router import ComplexityPredictor, Router
from router.features.schema import feature_schema
from router.policy import Policy, token_costs
from router.registry import current_router_path
from training.errors import TrainingError
from training.promotion.registry import hash_folder, promote, rollback

SCALES = (1, 9, 36)


def router_folder(folder: Path, price: float) -> Path:
    schema = feature_schema(SCALES, 6, 8)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, len(schema.names)))
    labels = (rng.random((80, 3)) < 0.5).astype(float)
    predictor = ComplexityPredictor(n_estimators=3).fit(features, labels)
    return Router(predictor, schema, Policy(token_costs(SCALES), price)).save_pretrained(folder)


@pytest.fixture(scope="module")
def routers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("routers")
    return [router_folder(folder / str(i), 0.1 * i) for i in range(3)]


def test_promote_and_roll_back(routers: list[Path], tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    assert current_router_path(registry) is None
    first = promote(routers[0], registry)
    assert current_router_path(registry) == first
    assert first.name.endswith(hash_folder(routers[0])[:8])
    second = promote(routers[1], registry)
    assert current_router_path(registry) == second
    assert rollback(registry) == first
    assert current_router_path(registry) == first
    assert rollback(registry) == second  # rolling back twice is rolling forward
    assert Router.from_pretrained(second).version == Router.from_pretrained(routers[1]).version


def test_promoting_the_same_again_keeps_the_previous(routers: list[Path], tmp_path: Path) -> None:
    first = promote(routers[0], tmp_path)
    second = promote(routers[1], tmp_path)
    again = promote(routers[1], tmp_path)
    assert current_router_path(tmp_path) == again
    assert rollback(tmp_path) in (first, second)


def test_nothing_to_roll_back_to(routers: list[Path], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="not a registry"):
        rollback(tmp_path / "none")
    promote(routers[0], tmp_path)
    with pytest.raises(TrainingError, match="no previous router"):
        rollback(tmp_path)


def test_a_damaged_candidate_changes_nothing(routers: list[Path], tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    first = promote(routers[0], registry)
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in routers[1].iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "scale_0009.txt").write_text("tree\n")
    with pytest.raises(TrainingError, match="not a usable router"):
        promote(broken, registry)
    assert current_router_path(registry) == first
    assert [p.name for p in registry.iterdir() if p.is_dir()] == [first.name]


def test_readers_never_see_a_missing_pointer(routers: list[Path], tmp_path: Path) -> None:
    promote(routers[0], tmp_path)
    stop, seen = threading.Event(), set()

    def read() -> None:
        while not stop.is_set():
            seen.add(current_router_path(tmp_path))

    reader = threading.Thread(target=read)
    reader.start()
    for index in (1, 2, 0, 1):
        promote(routers[index], tmp_path)
    stop.set()
    reader.join()
    assert None not in seen
