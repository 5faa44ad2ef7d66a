"""Audits, a log and routers small enough to know the truth of: one feature tells what is needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from router import ComplexityPredictor, Policy, Router
from router.features.schema import feature_schema
from router.policy import token_costs
from router.records import DecisionRecord, OracleRecord, to_table
from training.oracle.collection import MANIFEST

SCALES = (1, 9, 36)
SCHEMA = feature_schema(SCALES, 6, 4)
PICTURES = 1200


@dataclass(frozen=True)
class Drawn:
    """Questions, one a picture: what each needs (0, 1 or 2), its features, what is right."""

    need: np.ndarray
    features: np.ndarray

    @property
    def right(self) -> np.ndarray:
        return np.arange(3) >= self.need[:, None]


def draw(n: int = PICTURES, seed: int = 1, shift: float = 0.0) -> Drawn:
    rng = np.random.default_rng(seed)
    need = rng.integers(3, size=n)
    features = rng.normal(size=(n, len(SCHEMA.names)))
    features[:, 0] = need + 0.1 * rng.normal(size=n)
    features[:, 2] += shift
    return Drawn(need, features.astype(np.float32))


def picture(number: int) -> str:
    return f"{number:064x}"


def write_oracle(folder: Path, drawn: Drawn, model: str = "feed") -> Path:
    records = [
        OracleRecord(
            picture_id=picture(k), question_id=f"{k}", dataset="log", question="what?",
            reference="x", source="log", scales=SCALES, answers=("x",) * 3,
            scores=tuple(map(float, right)), p_reference=tuple(map(float, right)),
            confidence=(0.5,) * 3, visual_tokens=SCALES, features=row,
            feature_schema=SCHEMA.hash, model_hash=model,
        )
        for k, (right, row) in enumerate(zip(drawn.right, drawn.features, strict=True))
    ]  # fmt: skip
    folder.mkdir(parents=True)
    pq.write_table(to_table(records, OracleRecord), folder / "oracle-00000.parquet")
    manifest = {
        "model_hash": model, "feature_schema": SCHEMA.hash, "scales": list(SCALES),
        "grid_side": 6, "embedding_dim": 4, "relevance": SCHEMA.relevance,
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def make_router(*, broken: bool = False, price: float = 0.2, target: float = 0.99) -> Router:
    """A router that sees what is needed; a broken one saw it the wrong way round."""
    drawn = draw(400, seed=7)
    features = drawn.features.copy()
    if broken:
        features[:, 0] = 2 - features[:, 0]
    predictor = ComplexityPredictor(n_estimators=20).fit(features, drawn.right.astype(float))
    facts = {"model_hash": "feed", "target": target}
    return Router(predictor, SCHEMA, Policy(token_costs(SCALES), price), metadata=facts)


def save(router: Router, folder: Path) -> Path:
    """Save a router that saw no picture of the audits."""
    router.save_pretrained(folder)
    np.save(folder / "seen.npy", np.zeros(0, np.uint64))
    return folder


def write_log(folder: Path, version: str, actions: list[str], **more: object) -> Path:
    """A log of audited decisions on the pictures of the audits, and after them."""
    now = datetime(2026, 11, 1, tzinfo=UTC)
    records = [
        DecisionRecord(
            **{
                "request_id": f"r{k}", "time_utc": now + timedelta(seconds=k),
                "picture_ids": (picture(k),), "question": "what?", "model": "m3-auto",
                "scale": int(action), "visual_tokens": int(action), "reason": "predicted",
                "router_version": version, "audited": True, "actions": (action,), **more,
            }
        )
        for k, action in enumerate(actions)
    ]  # fmt: skip
    (folder / "decisions").mkdir(parents=True)
    pq.write_table(to_table(records, DecisionRecord), folder / "decisions" / "day.parquet")
    return folder


@pytest.fixture(scope="session")
def well() -> Router:
    return make_router()


@pytest.fixture(scope="session")
def broken() -> Router:
    return make_router(broken=True)


@pytest.fixture(scope="session")
def audits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_oracle(tmp_path_factory.mktemp("audits") / "oracle", draw())


@pytest.fixture(scope="session")
def spread() -> Callable[[int], list[str]]:
    return lambda n: [str(SCALES[k % 3]) for k in range(n)]
