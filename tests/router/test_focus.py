"""A router of scales and foci: what may be read, to the token, and what it says of it."""

import itertools
import json
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.actions import Plan, Reading
from router.decision import NOTHING_LOST, Constraints, Reason, resolve_constraints
from router.errors import Contradiction, NotCertified, RoutingError
from router.policy import Policy, choose, row_costs
from router.router import Router

from .conftest import COSTS, LOOK, SCALES, SCHEMA, SPACE, certificate, plan_of

KEYS = [1, 9, "9+144@500x12", 36, "36+576@250rx48", 144, 576]


def test_the_choice_is_the_rule_on_this_questions_costs(made: Router, rows: np.ndarray) -> None:
    seen = set()
    for number, row in enumerate(rows[:120]):
        plan, value = plan_of(number), made.predict_values(row[None])[0]
        decision = made.route(row, plan=plan)
        pick = choose(value, row_costs(np.array(plan.tokens), SCALES, COSTS), 0.3)
        assert decision.readings == (SPACE.reading(pick, plan),)
        assert decision.visual_tokens == plan.tokens[pick]
        assert decision.scales == (decision.scale,) == (SPACE.actions[pick].coarse,)
        assert decision.reason is Reason.predicted
        assert list(decision.p_suffices or ()) == KEYS
        assert decision.values == pytest.approx(dict(zip(KEYS, value, strict=True)))
        seen.add(decision.readings[0].action)
    assert {"9+144@500x12", "36+576@250rx48"} < seen


def test_without_a_plan_or_declined_only_scales_are_read(made: Router, rows: np.ndarray) -> None:
    for number, row in enumerate(rows[:60]):
        value = made.predict_values(row[None])[0][list(SPACE.uniform)]
        for decision in (
            made.route(row),
            made.route(row, Constraints(focus=False), plan=plan_of(number)),
        ):
            assert decision.readings == (Reading.uniform(SCALES[choose(value, COSTS, 0.3)]),)
            assert list(decision.p_suffices or ()) == KEYS


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 399), st.integers(0, 10**6), st.integers(1, 700))
def test_a_cap_is_kept_to_the_token(
    made: Router, rows: np.ndarray, number: int, seed: int, cap: int
) -> None:
    row, plan = rows[number], plan_of(seed)
    free = made.route(row, plan=plan)
    capped = made.route(row, Constraints(max_visual_tokens=cap), plan=plan)
    assert capped.visual_tokens <= cap
    fits = free.visual_tokens <= cap
    assert capped.reason is (Reason.predicted if fits else Reason.budget_cap)
    if fits:
        assert capped.readings == free.readings
    else:  # the best of what fits, a focus by its tokens here
        costs = row_costs(np.array(plan.tokens), SCALES, COSTS)
        utility = np.array(list((free.values or {}).values())) - 0.3 * costs
        best = max(u for u, count in zip(utility, plan.tokens, strict=True) if count <= cap)
        pick = SPACE.index(capped.readings[0].action)
        assert utility[pick] == pytest.approx(best, abs=1e-12)


def test_a_dearer_price_degrades_and_a_pin_reads_the_whole(made: Router, rows: np.ndarray) -> None:
    degraded = 0
    for number, row in enumerate(rows[:40]):
        plan = plan_of(number)
        decision = made.route(row, Constraints(price_floor=3.0), plan=plan)
        free = made.route(row, plan=plan)
        assert (decision.reason is Reason.degraded) == (decision.readings != free.readings)
        assert decision.visual_tokens <= free.visual_tokens
        degraded += decision.reason is Reason.degraded
        pinned = made.route(row, Constraints(pinned=36), plan=plan)
        assert (pinned.readings, pinned.reason) == ((Reading.uniform(36),), Reason.pinned)
    assert degraded > 10
    fixed = Router(made.predictor, SCHEMA, Policy(COSTS, 0.3, finest_only=True), space=SPACE)
    assert fixed.route(rows[0], plan=plan).readings == (Reading.uniform(576),)
    capped = fixed.route(rows[0], Constraints(max_visual_tokens=575), plan=plan)
    assert (capped.readings, capped.reason) == ((Reading.uniform(144),), Reason.budget_cap)


def test_several_pictures_read_scales_alone(made: Router, rows: np.ndarray) -> None:
    utilities = made.predict_values(rows[:3])[:, list(SPACE.uniform)] - 0.3 * np.array(COSTS)
    decision = made.route(rows[:3], Constraints(max_visual_tokens=100))
    best = max(
        sum(utilities[i, k] for i, k in enumerate(picks))
        for picks in itertools.product(range(5), repeat=3)
        if sum(SCALES[k] for k in picks) <= 100
    )
    picks = [SCALES.index(scale) for scale in decision.scales]
    assert utilities[range(3), picks].sum() == pytest.approx(best)
    assert all(reading.fine is None for reading in decision.readings)
    assert list(decision.p_suffices or ()) == KEYS
    with pytest.raises(ValueError, match="a plan is of one picture"):
        made.route(rows[:3], plan=plan_of(0))
    with pytest.raises(ValueError, match="a plan of 2 actions for 7"):
        made.route(rows[0], plan=Plan((1, 9), ((), ())))
    plan = plan_of(0)  # as many actions, one of them another scale
    with pytest.raises(ValueError, match="a plan of another space"):
        made.route(rows[0], plan=replace(plan, tokens=(1, 4, *plan.tokens[2:])))


def test_a_second_look_reads_more_of_this_picture(looking: Router, rows: np.ndarray) -> None:
    wish, targets = Constraints(second_look=True), set()
    for number, row in enumerate(rows[:150]):
        plan = plan_of(number)
        decision = looking.route(row, wish, plan=plan)
        first = decision.readings[0]
        if decision.open_look is None:
            assert first.action == "576"
            continue
        start, values = SPACE.index(first.action), list((decision.values or {}).values())
        costs = row_costs(np.array(plan.tokens), SCALES, COSTS)
        for confidence in (0.01, 0.3, 0.6, 0.95):
            p = LOOK.p_right(np.array([values]), start, np.array([confidence]))[0]
            gains = {
                k: p[k - start] - (0.1 * costs[k] if k > start else 0.0)
                for k in range(start, len(SPACE))
                if k == start or plan.tokens[k] > plan.tokens[start]
            }
            best = max(gains, key=lambda k: (gains[k], -k))
            found = decision.open_look.escalate(confidence)
            assert found == (None if best == start else SPACE.reading(best, plan))
            targets.add((first.fine, found and found.fine))
        capped = looking.route(row, replace(wish, max_visual_tokens=150), plan=plan)
        for confidence in (0.01, 0.3):
            after = capped.open_look and capped.open_look.escalate(confidence)
            if after is not None:
                assert capped.visual_tokens + after.visual_tokens <= 150
        declined = looking.route(row, replace(wish, focus=False), plan=plan)
        after = declined.open_look and declined.open_look.escalate(0.01)
        assert after is None or after.fine is None
    assert len(targets) >= 4  # from scales and foci to scales, foci or nothing


def test_a_bound_is_kept_by_the_choice_that_was_certified(made: Router, rows: np.ndarray) -> None:
    held, plan = made.with_certificate(certificate(made)), plan_of(3)
    decision = held.route(rows[0], Constraints(max_harm=0.05), plan=plan)
    assert decision.certified is not None
    assert (decision.certified.max_harm, decision.price) == (0.05, 0.25)
    same = made.with_policy(replace(made.policy, price=0.25)).route(rows[0], plan=plan)
    assert decision.readings == same.readings
    anchor = held.route(rows[0], Constraints(max_harm=0.01), plan=plan)
    assert (anchor.certified, anchor.scale) == (NOTHING_LOST, 576)
    for limits, seen in (
        (Constraints(max_harm=0.05), None),
        (Constraints(max_harm=0.05, focus=False), plan),
    ):
        with pytest.raises(NotCertified, match="a focus is among"):
            held.route(rows[0], limits, plan=seen)
    finest = held.route(rows[0], Constraints(max_harm=0.01, focus=False), plan=plan)
    assert finest.certified == NOTHING_LOST
    for number, row in enumerate(rows[:40]):  # a cap that overrules the choice loses the promise
        plan = plan_of(number)
        free = held.route(row, Constraints(max_harm=0.05), plan=plan)
        if free.visual_tokens > 40:
            with pytest.raises(NotCertified, match="finest scale 576"):
                held.route(row, Constraints(max_harm=0.05, max_visual_tokens=40), plan=plan)


def test_an_explanation_tells_foci_beside_scales(made: Router, rows: np.ndarray) -> None:
    focused = 0
    for number, row in enumerate(rows[:25]):
        plan, wish = plan_of(number), Constraints(explain=True)
        decision = made.route(row, wish, plan=plan)
        told = decision.explanation
        assert told is not None
        costs = row_costs(np.array(plan.tokens), SCALES, COSTS)
        assert told.costs == dict(zip(KEYS, costs.tolist(), strict=True))
        assert told.values == decision.values
        reading = decision.readings[0]
        assert str(told.scale) == reading.action
        assert told.sentence.startswith(f"The router chose {reading.words} at the price 0.3")
        for key in KEYS:
            total = told.base[key] + sum(told.contributions[key].values())
            raw = made.predictor.raw_scores(row[None])[0, KEYS.index(key)]
            assert total == pytest.approx(raw, abs=1e-9)
        order = sorted(KEYS, key=lambda key: plan.tokens[KEYS.index(key)])
        place = order.index(told.scale)
        assert (told.coarser and told.coarser.scale) == (order[place - 1] if place else None)
        assert (told.finer and told.finer.scale) == (order[place + 1] if place < 6 else None)
        for switch, nudge in ((told.below, 1 - 1e-9), (told.at_or_above, 1 + 1e-9)):
            if switch is not None:
                there = made.with_policy(Policy(COSTS, switch.price * nudge))
                assert there.route(row, plan=plan).readings[0].action == str(switch.scale)
        assert max(map(len, told.lines()[:-1])) <= 100
        assert len({len(line) for line in told.lines()[:8]}) == 1  # the columns stay in line
        json.dumps(asdict(told))
        focused += reading.fine is not None
        declined = made.route(row, replace(wish, focus=False), plan=plan).explanation
        assert declined is not None
        assert list(declined.values) == list(SCALES)
    assert focused > 3
    again = told.before_second_look(0.4149, SPACE.reading(4, plan).words)
    assert again.sentence.endswith(
        f"41 % sure, and a second look read 36 with {len(plan.cells[4])} cells at 576."
    )


WISHES = [
    ({"routing_scale": 36}, "routing.focus: true contradicts routing.scale 36"),
    ({"model_scale": 144}, "routing.focus: true contradicts the model m3-144"),
    ({"detail": "low"}, "routing.focus: true contradicts an image detail"),
    ({"n_pictures": 2}, "routing.focus: true contradicts 2 pictures"),
]


@pytest.mark.parametrize(("wishes", "said"), WISHES)
def test_a_focus_that_another_wish_forbids_is_refused_by_name(
    wishes: dict[str, Any], said: str
) -> None:
    with pytest.raises(Contradiction, match=said) as caught:
        resolve_constraints(scales=SCALES, focus=True, **wishes)
    assert isinstance(caught.value, RoutingError)
    assert caught.value.wish == "focus"
    for focus in (None, False):
        found = resolve_constraints(scales=SCALES, focus=focus, **wishes)
        assert found.focus is (focus is None)


def test_a_focus_is_allowed_unless_declined() -> None:
    for focus, allowed in ((None, True), (True, True), (False, False)):
        found = resolve_constraints(scales=SCALES, focus=focus, detail="auto", max_visual_tokens=40)
        assert found.focus is allowed
        assert (found.reason, found.max_visual_tokens) == (Reason.predicted, 40)
    assert math.inf not in SPACE.plan(np.zeros(576)).tokens
