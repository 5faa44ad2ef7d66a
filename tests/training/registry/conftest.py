"""Small routers to promote."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from router import ComplexityPredictor, Router
from router.features.schema import feature_schema
from router.policy import Policy, token_costs

SCALES = (1, 9, 36)


@pytest.fixture(scope="session")
def make_routers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[Path]]:
    """Writes so many routers that differ in price and what they say they learnt from."""
    schema = feature_schema(SCALES, 6, 8)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, len(schema.names)))
    labels = (rng.random((80, 3)) < 0.5).astype(float)
    predictor = ComplexityPredictor(n_estimators=3).fit(features, labels)
    folder = tmp_path_factory.mktemp("routers")

    def make(count: int) -> list[Path]:
        return [
            Router(
                predictor, schema, Policy(token_costs(SCALES), 0.01 * number),
                metadata={"data_hash": f"{number:016x}", "model_hash": "ab", "target": 0.995},
            ).save_pretrained(folder / str(number))
            for number in range(count)
        ]  # fmt: skip

    return make


@pytest.fixture(scope="session")
def routers(make_routers: Callable[[int], list[Path]]) -> list[Path]:
    """Five routers."""
    return make_routers(5)
