"""Replay of logged requests: 500 of 500 are decided again as they were, whatever they wished."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from router import Action, ActionSpace, ComplexityPredictor, Plan, Policy, Router, SecondLook
from router.actions import CellRule
from router.certificate import Certificate, Rung
from router.decision import Constraints, Reason, resolve_constraints
from router.features.schema import feature_schema
from router.policy import token_costs
from router.records import DecisionRecord, from_table, to_table
from router.second_look import Gate
from router.wishes import constraints_to_json
from training.evaluation.served import Seen, ServedAgain, served_again

SCALES = (1, 9, 36, 144, 576)
SCHEMA = feature_schema(SCALES, 24, 6)
SPACE = ActionSpace(
    (
        Action("1", 1),
        Action("9", 9, base="1"),
        Action("9+144@500x12", 9, 144, CellRule(500, "none", 12), "9"),
        Action("36", 36, base="9"),
        Action("144", 144, base="36"),
        Action("576", 576, base="144"),
    )
)
LOOK = SecondLook(
    SPACE.names,
    tuple(tuple(Gate(0.9, 0.1, 0.4, 0.0) for _ in range(6 - start)) for start in range(5)),
    0.6, 0.1,
)  # fmt: skip
FLOPS = (0.42, 0.43, 0.46, 0.55, 1.0)  # of a request: mostly the encode
NOW = datetime(2026, 11, 27, tzinfo=UTC)
PICTURES = 120


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    shape = (PICTURES, len(SCHEMA.names))
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope="module")
def predictor(rows: np.ndarray) -> ComplexityPredictor:
    need = 2.0 * rows[:, :1] - np.array([-1.5, -0.5, 0.8, 0.5, 1.5, 3.0])
    suffices = np.random.default_rng(1).random(need.shape) < 1.0 / (1.0 + np.exp(need))
    made = ComplexityPredictor(n_estimators=8, num_leaves=7, bases=SPACE.bases)
    return made.fit(rows, suffices)


@pytest.fixture(scope="module")
def make(predictor: ComplexityPredictor) -> Callable[..., Router]:
    def router(costs: Sequence[float], price: float, look: SecondLook | None) -> Router:
        plain = Router(predictor, SCHEMA, Policy(tuple(costs), price), space=SPACE,
                       second_look=look)  # fmt: skip
        rungs = (Rung(0.01, None, 576.0, 0.0), Rung(0.05, 0.1, 80.0, 0.02))
        return plain.with_certificate(
            Certificate(
                loss="harm", bound=0.05, delta=0.05, method="betting", population="these",
                scored_by="exact match", pictures=100, questions=400, created_utc="2026-11-27",
                router_version=plain.version, predictor_hash=plain.predictor_hash,
                model_hash="m", feature_schema=SCHEMA.hash, data_hash="d",
                prices=(0.0, 0.05, 0.1, 0.25), ladder=rungs, slices=(),
            )
        )  # fmt: skip

    return router


@pytest.fixture(scope="module")
def seen(rows: np.ndarray) -> dict[tuple[str, str], Seen]:
    def plan(seed: int) -> Plan:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:24, :24] - rng.integers(0, 24, (2, 1, 1))
        return SPACE.plan(np.exp(-(y**2 + x**2) / rng.choice([2.0, 10.0, 60.0])).reshape(-1))

    return {(f"p{n}", "what?"): Seen(row, plan(n)) for n, row in enumerate(rows)}


def wishes(number: int) -> tuple[Constraints, int]:
    """What the service held a request to, and of how many pictures it was."""
    rng = np.random.default_rng(number)
    one: dict[str, Any] = {"scales": SCALES}
    kind = number % 10
    if kind == 0:
        return replace(resolve_constraints(**one), second_look=True), 1
    if kind == 1:
        cap = int(rng.choice([1, 12, 40, 60, 200, 700]))
        return replace(resolve_constraints(**one, max_visual_tokens=cap), second_look=True), 1
    if kind == 2:
        return resolve_constraints(**one, routing_scale=int(rng.choice(SCALES))), 1
    if kind == 3:
        return resolve_constraints(**one, detail=str(rng.choice(["low", "high", "original"]))), 1
    if kind == 4:
        bound = float(rng.choice([0.01, 0.05, 0.3]))
        return resolve_constraints(**one, max_harm=bound, explain=True), 1
    if kind == 5:
        return replace(resolve_constraints(**one), price_floor=float(rng.uniform(0, 3))), 1
    if kind == 6:
        return replace(resolve_constraints(**one, focus=False), second_look=bool(number % 4)), 1
    if kind == 7:
        cap = int(rng.integers(40, 900))
        return resolve_constraints(**one, n_pictures=3, max_visual_tokens=cap), 3
    if kind == 8:
        details = [None, "low", str(rng.choice(["auto", "high"]))]
        return resolve_constraints(**one, n_pictures=3, detail=details), 3
    return resolve_constraints(**one), 1


def serve(router: Router, number: int, seen: dict[tuple[str, str], Seen]) -> DecisionRecord:
    """The record of a request that the service decides, answers and perhaps looks at again."""
    limits, n_pictures = wishes(number)
    names = tuple(f"p{(7 * number + place) % PICTURES}" for place in range(n_pictures))
    known = [seen[name, "what?"] for name in names]
    plan = known[0].plan if n_pictures == 1 and limits.focus else None
    decision = router.route(np.stack([each.features for each in known]), limits, plan=plan)
    readings, confidence = decision.readings, float(np.random.default_rng(number).random())
    told: dict[str, Any] = {"confidence": confidence}
    if decision.open_look is not None and (finer := decision.open_look.escalate(confidence)):
        told = {"confidence": 0.5, "first_confidence": confidence,
                "escalated_from": readings[0].scale}  # fmt: skip
        readings = (finer,)
    proof = router.held.certificate
    return DecisionRecord(
        request_id=f"r{number}", time_utc=NOW + timedelta(seconds=number), picture_ids=names,
        question="what?", model="m3-auto", scale=max(each.scale for each in readings),
        visual_tokens=decision.visual_tokens, reason=decision.reason.value,
        router_version=router.version, actions=tuple(each.action for each in readings),
        max_harm=decision.certified and decision.certified.max_harm,
        constraints=constraints_to_json(limits), second_look=limits.second_look,
        certificate=proof and proof.identity, audited=True, **told,
    )  # fmt: skip


def replayed(router: Router, log: list[DecisionRecord], seen: Any) -> ServedAgain:
    """Through the columns of a log: narrow numbers, lists, text."""
    return served_again(router, from_table(to_table(log, DecisionRecord), DecisionRecord), seen)


def test_500_of_500_with_caps_wishes_and_mixed_cost_units(
    make: Callable[..., Router], seen: dict[tuple[str, str], Seen]
) -> None:
    routers = [make(token_costs(SCALES), 0.2, LOOK), make(FLOPS, 0.3, LOOK),
               make(token_costs(SCALES), 0.2, None)]  # fmt: skip
    log = [serve(routers[number % 3], number, seen) for number in range(500)]
    same = 0
    for router in routers:
        found = replayed(router, log, seen)
        assert found.differing == []
        assert set(found.left_out) == {"of another router"}
        same += found.same
    assert same == 500
    assert len({record.actions for record in log}) > 20
    assert sum(record.escalated_from is not None for record in log) > 10
    assert {record.reason for record in log} >= {
        "predicted", "pinned", "detail", "budget_cap", "degraded",
    }  # fmt: skip
    # In another's costs it comes out otherwise: they are a part of the decision.
    own = [record for record in log if record.router_version == routers[0].version]
    other = [replace(record, router_version=routers[1].version) for record in own]
    assert replayed(routers[1], other, seen).differing


@pytest.mark.parametrize("price", [None, 0.15])
def test_what_was_decided_under_a_restriction_is_decided_so_again(
    make: Callable[..., Router], seen: dict[tuple[str, str], Seen], price: float | None
) -> None:
    router = make(token_costs(SCALES), 0.2, LOOK)
    held = Constraints(restricted=True, restricted_price=price)
    log = []
    for number in range(9, 500, 10):
        record = serve(router, number, seen)
        known = seen[record.picture_ids[0], "what?"]
        decision = router.route(known.features, held, plan=known.plan)
        actions = tuple(each.action for each in decision.readings)
        log.append(
            replace(record, actions=actions, reason=decision.reason.value, certificate=None,
                    constraints=constraints_to_json(held))
        )  # fmt: skip
    found = replayed(router, log, seen)
    assert (found.same, found.differing, found.left_out) == (50, [], {})
    assert {record.reason for record in log} == {"restricted"}
    taken = {record.actions for record in log}
    assert taken == {("576",)} if price is None else len(taken) > 1


def test_what_was_not_decided_by_the_router_is_left_out(
    make: Callable[..., Router], seen: dict[tuple[str, str], Seen]
) -> None:
    router = make(token_costs(SCALES), 0.2, None)
    one = serve(router, 9, seen)
    bound = serve(router, 4, seen)
    log = [
        one,
        replace(one, reason=Reason.fallback.value),
        replace(one, status="overloaded"),
        replace(one, constraints=None),
        replace(one, picture_ids=("unknown",)),
        replace(bound, certificate="another"),
    ]
    found = replayed(router, log, seen)
    assert (found.same, found.differing) == (1, [])
    assert found.left_out == {
        "not decided by a router, or not answered": 2,
        "without constraints, from a log of before": 1,
        "without features": 1,
        "held to another certificate": 1,
    }
    lied = replace(one, actions=("1",) if one.actions != ("1",) else ("9",))
    found = replayed(router, [lied], seen)
    assert found.differing == [(one.request_id, lied.actions, one.actions)]
    assert found.sentence == (
        "warning: only 0 of 1 logged decisions are taken again, so what is replayed is not what "
        f"was served; request {one.request_id} was read by {lied.actions[0]}, "
        f"now by {one.actions[0]}"
    )
    assert found.as_dict()["first_differing"] == [
        {"request_id": one.request_id, "served": list(lied.actions), "now": list(one.actions)}
    ]
