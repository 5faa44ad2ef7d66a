"""What a new router takes over from the live one, and how its certificate comes about."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from router import ComplexityPredictor, Policy, Router
from router.features.schema import feature_schema
from router.policy import token_costs
from router.records import OracleRecord, to_table
from router.second_look import Gate, SecondLook
from training.errors import ScoresSayNothing
from training.fitting.certified import certified_router
from training.fitting.certify import certify
from training.fitting.fit import OPERATIONS, fit
from training.fitting.second_look import other_half_gates
from training.oracle.collection import MANIFEST
from training.oracle.data import OracleData, read_oracle
from training.promotion.gate import Contender, judge
from training.promotion.retrain import Promise, RetrainJob, Wishes, _fitted, inherited, wishes_of
from training.promotion.weighing import Verdict, least_pictures

SCALES = (1, 9, 36)
SCHEMA = feature_schema(SCALES, 6, 4)
JOB = RetrainJob(Path("log"), Path("model"), Path("out"), Path("registry"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> OracleData:
    """Two questions about each of 2,200 pictures; one feature tells the scale each needs."""
    rng, records = np.random.default_rng(3), []
    for number in range(4400):
        need = int(rng.integers(3))
        right = tuple(float(k >= need) for k in range(3))
        features = rng.normal(size=len(SCHEMA.names)).astype(np.float32)
        features[0] = need + 0.1 * rng.normal()
        records.append(
            OracleRecord(
                picture_id=f"{number // 2:064d}", question_id=f"{number}", dataset="log",
                question=f"what {number % 2}?", reference="x", source="log", scales=SCALES,
                answers=("x",) * 3, scores=right, p_reference=right, confidence=right,
                visual_tokens=SCALES, features=features, feature_schema=SCHEMA.hash,
                model_hash="feed",
            )
        )  # fmt: skip
    folder = tmp_path_factory.mktemp("audits")
    pq.write_table(to_table(records, OracleRecord), folder / "oracle-00000.parquet")
    manifest = {
        "model_hash": "feed", "feature_schema": SCHEMA.hash, "scales": list(SCALES),
        "grid_side": 6, "embedding_dim": 4, "relevance": SCHEMA.relevance,
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return read_oracle([folder])


@pytest.fixture(scope="module")
def live(data: OracleData) -> Router:
    return fit(data).router


def parent(unit: str = "visual tokens, finest = 1", **facts: Any) -> Router:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(60, len(SCHEMA.names)))
    predictor = ComplexityPredictor(n_estimators=2).fit(features, rng.random((60, 3)) < 0.5)
    return Router(predictor, SCHEMA, Policy(token_costs(SCALES), 0.1, unit), metadata=facts)


def test_without_a_live_router_the_usual_wishes_count() -> None:
    assert wishes_of(JOB, None) == Wishes(0.995, "tokens", False, "auto", None)


def test_what_the_live_router_was_made_with_is_asked_for_again() -> None:
    made = parent(target=0.97, labels="hard", second_look={"kept": False})
    assert wishes_of(JOB, made) == Wishes(0.97, "tokens", True, "hard", None)
    assert inherited(parent(OPERATIONS, target=0.9)) == Wishes(0.9, "flops")
    gates = tuple((Gate(1.0, 0.0, 0.0, 0.0),) * (3 - start) for start in range(2))
    look = SecondLook(("1", "9", "36"), gates, 0.1, 0.1)
    looks = Router(made.predictor, SCHEMA, made.policy, second_look=look)
    assert inherited(looks).second_look


def test_a_flag_says_otherwise() -> None:
    made = parent(target=0.97, second_look={"kept": True})
    job = replace(JOB, target=0.99, second_look=False, max_harm=0.05)
    assert wishes_of(job, made) == Wishes(0.99, "tokens", False, "auto", Promise("harm", 0.05))
    # Second looks are priced in tokens: other costs end them, and are not refused for them.
    assert wishes_of(replace(JOB, cost="flops"), made) == Wishes(0.97, "flops", False)


def test_the_certificate_is_proved_anew(data: OracleData, live: Router) -> None:
    """At its bound, on the new data, and setting the price only where it did."""
    proved = certify(live, data, loss="harm", bound=0.1)
    for keep_price in (True, False):
        before = certified_router(live, proved, keep_price=keep_price)
        wishes = wishes_of(JOB, before)
        assert wishes.promise == Promise("harm", 0.1, 0.05, sets_price=not keep_price)
        said: list[str] = []
        made = _fitted(wishes, data, data, lambda *call: None, said.append)
        found = made.held.certificate
        assert found is not None
        assert (found.bound, found.loss, found.data_hash) == (0.1, "harm", data.data_hash)
        assert ("price_set_by" in made.metadata) == (not keep_price)
        assert not [line for line in said if "not certified" in line]


def at_the_gate(router: Router, data: OracleData) -> Verdict:
    return judge(Contender("it", router), Contender("always the finest scale"), None, data)


def test_at_cold_start_an_honest_router_goes_live_and_a_poisoned_one_does_not(
    data: OracleData, live: Router
) -> None:
    """Nothing was promoted: always the finest scale is what a candidate has to match."""
    honest = at_the_gate(live, data)
    assert honest.passed, honest.sentence
    assert honest.pictures == data.split("test").n_pictures >= least_pictures()
    order = np.random.default_rng(0).permutation(len(data))
    shuffled = fit(replace(data, scores=data.scores[order], soft=data.soft[order])).router
    assert not at_the_gate(shuffled, data).passed
    # However cheaply it is then priced.
    cheap = shuffled.with_policy(live.policy)
    assert "worse than the floor that the finest scale sets" in at_the_gate(cheap, data).sentence
    swapped = copy.deepcopy(live.predictor)
    swapped.calibrations_ = swapped.calibrations_[::-1]
    turned = Router(swapped, SCHEMA, Policy(token_costs(SCALES), 5.0), metadata=live.metadata)
    assert not at_the_gate(turned, data).passed
    alien = Router(live.predictor, SCHEMA, live.policy, metadata={"model_hash": "beef"})
    assert "is for model beef" in at_the_gate(alien, data).sentence
    with pytest.raises(ScoresSayNothing):
        fit(replace(data, scores=np.zeros_like(data.scores)))


def test_what_cannot_be_certified_is_said(data: OracleData) -> None:
    few, said = data.take(data.pictures < 90), list[str]()
    wishes = Wishes(promise=Promise("harm", 0.02))
    made = _fitted(wishes, few, few, lambda *call: None, said.append)
    assert made.held.certificate is None
    assert said[-1].startswith("not certified, so requests with routing.max_harm will be refused")
    assert any("fit probabilities and choose the price" in line for line in said)


def test_a_second_look_is_not_priced_by_gates_that_saw_its_rows(data: OracleData) -> None:
    """With few pictures the same rows serve both: each half is priced by the other's gates."""
    rng = np.random.default_rng(0)
    pictures = np.arange(40) // 2
    values, confidence = rng.random((40, 3)), rng.random((40, 3))
    scores = (rng.random((40, 3)) < 0.5).astype(float)
    halves = other_half_gates(values, scores, confidence, pictures, ("1", "9", "36"))
    rows = np.stack([rows for rows, _ in halves])
    assert (rows.sum(axis=0) == 1).all()
    for mask, look in halves:
        assert len(set(pictures[mask]) & set(pictures[~mask])) == 0
        changed = np.where(mask[:, None], 1 - scores, scores)  # its own rows teach it nothing
        again = other_half_gates(values, changed, confidence, pictures, ("1", "9", "36"))
        assert look in [other for same, other in again if (same == mask).all()]
