"""A router of scales and foci, with and without a second look."""

from typing import Any

import numpy as np
import pytest

from router.actions import Action, ActionSpace, CellRule, Plan
from router.certificate import Certificate, Rung
from router.features.schema import feature_schema
from router.policy import Policy, token_costs
from router.predictor.chain import ComplexityPredictor
from router.router import Router
from router.second_look import Gate, SecondLook

SCALES = (1, 9, 36, 144, 576)
SCHEMA = feature_schema(SCALES, 24, 6)
SPACE = ActionSpace(
    (
        Action("1", 1),
        Action("9", 9, base="1"),
        Action("9+144@500x12", 9, 144, CellRule(500, "none", 12), "9"),
        Action("36", 36, base="9"),
        Action("36+576@250rx48", 36, 576, CellRule(250, "ring", 48), "36"),
        Action("144", 144, base="36"),
        Action("576", 576, base="144"),
    )
)
COSTS = token_costs(SCALES)


def plan_of(seed: int) -> Plan:
    """A plan of a spot somewhere, from one cell to the whole picture."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:24, :24] - rng.integers(0, 24, (2, 1, 1))
    return SPACE.plan(np.exp(-(y**2 + x**2) / rng.choice([2.0, 10.0, 60.0])).reshape(-1))


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((400, len(SCHEMA.names))).astype(np.float32)


@pytest.fixture(scope="module")
def made(rows: np.ndarray) -> Router:
    need = 2.0 * rows[:, :1] - np.array([-1.5, -0.5, 1.0, 0.5, 2.4, 1.5, 3.0])
    suffices = np.random.default_rng(1).random(need.shape) < 1.0 / (1.0 + np.exp(need))
    predictor = ComplexityPredictor(
        n_estimators=12, learning_rate=0.2, num_leaves=7, bases=SPACE.bases
    )
    return Router(predictor.fit(rows, suffices), SCHEMA, Policy(COSTS, 0.3), space=SPACE)


GATES = tuple(
    tuple(Gate(0.9, 0.1, 0.4, 0.0) for _ in range(len(SPACE) - start))
    for start in range(len(SPACE) - 1)
)
LOOK = SecondLook(SPACE.names, GATES, 0.9, 0.1)


@pytest.fixture(scope="module")
def looking(made: Router) -> Router:
    return Router(made.predictor, SCHEMA, made.policy, space=SPACE, second_look=LOOK)


def certificate(router: Router, **changes: Any) -> Certificate:
    facts = {
        "loss": "harm", "bound": 0.05, "delta": 0.05, "method": "betting", "population": "these",
        "scored_by": "exact match", "pictures": 100, "questions": 400, "created_utc": "2026-11-27",
        "router_version": router.version, "predictor_hash": router.predictor_hash,
        "model_hash": "m", "feature_schema": SCHEMA.hash, "data_hash": "d", "prices": (0.0, 0.25),
        "ladder": (Rung(0.01, None, 576.0, 0.0), Rung(0.05, 0.25, 80.0, 0.02)), "slices": (),
    }  # fmt: skip
    return Certificate(**{**facts, **changes})
