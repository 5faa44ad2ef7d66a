"""`m3-train fit --ray`: two workers of a real cluster make an equivalent router."""

import numpy as np
import pytest

from router import Router
from router.actions import uniform_space
from router.features import feature_schema
from router.policy import choose_many
from training.oracle.data import OracleData

SCALES = (1, 9, 36)
SCHEMA = feature_schema(SCALES, 6, 4)


def questions(n: int = 1800) -> OracleData:
    """Two questions a picture; the first feature tells which scale suffices."""
    random = np.random.default_rng(3)
    need = random.integers(3, size=n)
    features = random.normal(size=(n, len(SCHEMA.names))).astype(np.float32)
    features[:, 0] = need + 0.1 * random.normal(size=n)
    scores = (np.arange(3) >= need[:, None]).astype(float)
    names = np.array([f"{row // 2}" for row in range(n)])
    return OracleData(
        picture_ids=names, units=names, question_ids=names, groups=np.array(["d/k"] * n),
        scores=scores, soft=scores, confidence=scores, features=features,
        has_reference=np.ones(n, bool), metrics=np.array(["exact_match"] * n),
        thresholds=np.full(n, 0.5), size_px=np.full(n, np.nan), metadata=[{}] * n,
        visual_tokens=np.tile(np.array(SCALES, float), (n, 1)), space=uniform_space(SCALES),
        flops=None, schema=SCHEMA, feature_schema=SCHEMA.hash, model_hash="m", sources=("log",),
        data_hash="d",
    )  # fmt: skip


@pytest.mark.ray
@pytest.mark.slow
def test_two_workers_grow_an_equivalent_router(tmp_path) -> None:
    pytest.importorskip("pandas", reason="ray.train needs it")
    from serve.on_ray.cluster import local_cluster
    from training.fitting.fit import fit
    from training.fitting.on_ray import cluster, grow

    data = questions()
    here = fit(data, target=0.97).router
    with local_cluster(), cluster("auto"):
        there = fit(data, target=0.97, grow=grow).router
    test = data.split("test")
    picks = [
        choose_many(each.predict_values(test.features), each.policy.costs, 0.3)
        for each in (here, there)
    ]
    assert (picks[0] == picks[1]).mean() >= 0.99
    assert [booster.num_trees() for booster in there.predictor.boosters_] != [1] * 3
    folder = there.save_pretrained(tmp_path / "router")
    assert Router.from_pretrained(folder).version == there.version
