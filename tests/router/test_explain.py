"""Explanations: groups that add up to the raw score, and prices at which the choice does change."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.decision import Constraints, Reason
from router.explain import GROUP_NAMES, explain, grouped, relevance_map, switches
from router.explanation import Comparison
from router.features.schema import FeatureSchema, feature_schema
from router.policy import Policy, choose, token_costs
from router.predictor.chain import ComplexityPredictor
from router.router import Router

SCALES = (1, 4, 16, 64)
SCHEMA = feature_schema(SCALES, 8, 6)
COSTS = (0.0, 0.25, 0.5, 1.0)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((600, len(SCHEMA.names))).astype(np.float32)


@pytest.fixture(scope="module")
def made(rows: np.ndarray) -> Router:
    p = 1.0 / (1.0 + np.exp(2.0 * rows[:, :1] - np.array([-1.5, 0.0, 1.5, 3.0])))
    labels = np.random.default_rng(1).random(p.shape) < p
    predictor = ComplexityPredictor(n_estimators=20, learning_rate=0.2, num_leaves=7)
    return Router(predictor.fit(rows, labels), SCHEMA, Policy(token_costs(SCALES), 0.2))


def by_hand(values: tuple[float, ...], price: float, **more: Any) -> Any:
    policy = Policy(COSTS, price, finest_only=more.pop("finest_only", False))
    schema = FeatureSchema(("a", "b"), ("picture", "question"), SCALES, 8, 1)
    parts = np.arange(12.0).reshape(4, 3) ** 2
    return explain(schema, values, policy, more.pop("allowed", None), parts, **more)


def test_switches_worked_by_hand() -> None:
    # Utilities at price 1: 0.1, 0.35, 0.2, -0.1. The line of 4 meets that of 16 at price 0.4, that
    # of 64 at 0.4 as well, that of 1 at price 2; 64 falls slowest above and rises most below.
    values = (0.1, 0.6, 0.7, 0.9)
    told = by_hand(values, 1.0)
    assert told.scale == 4
    assert (told.below.scale, told.below.price) == (64, pytest.approx(0.4))
    assert (told.at_or_above.scale, told.at_or_above.price) == (1, pytest.approx(2.0))
    assert told.sentence == (
        "The router chose 4 at the price 1; it would be 64 if the price were below 0.4, "
        "and 1 if it were 2 or above."
    )


def test_the_cap_is_respected_in_what_would_be_chosen() -> None:
    values = (0.1, 0.6, 0.7, 0.9)
    told = by_hand(values, 1.0, allowed=(True, True, True, False))
    assert (told.below.scale, told.below.price) == (16, pytest.approx(0.4))
    alone = by_hand(values, 1.0, allowed=(False, True, False, False))
    assert (alone.below, alone.at_or_above) == (None, None)
    assert alone.sentence == "The router chose 4 at the price 1; no other price changes that."


def test_one_way_a_pin_and_a_router_without_a_price_in_words() -> None:
    cheapest = by_hand((0.9, 0.5, 0.4, 0.3), 0.5)
    assert (cheapest.scale, cheapest.below, cheapest.at_or_above) == (1, None, None)
    dearest = by_hand((0.1, 0.2, 0.3, 0.9), 0.0, pinned=1)
    assert dearest.sentence == (
        "1 was asked for; the router would have chosen 64 at the price 0; "
        "it would be 1 if the price were 0.8 or above."
    )
    fixed = by_hand((0.9, 0.9, 0.9, 0.9), 0.0, finest_only=True)
    assert (fixed.scale, fixed.below, fixed.at_or_above) == (64, None, None)
    assert fixed.sentence == "The router chose 64: it always takes the finest scale allowed."


def test_after_a_second_look_the_sentence_is_about_the_first() -> None:
    told = by_hand((0.1, 0.6, 0.7, 0.9), 1.0)
    again = told.before_second_look(0.4149, 64)
    assert again.sentence == (
        "The router first chose 4 at the price 1; it would be 64 if the price were below 0.4, "
        "and 1 if it were 2 or above. The answer given there was 41 % sure, and a second look "
        "read 64."
    )
    assert (again.scale, again.values) == (told.scale, told.values)


def test_relevance_is_told_in_255_steps_row_by_row() -> None:
    told = relevance_map(np.array([0.0, 1.0, 0.5, 0.002], dtype=np.float32))
    assert (told.side, told.values) == (2, (0, 255, 128, 1))
    assert all(type(value) is int for value in told.values)  # JSON knows no numpy


@given(
    values=st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4),
    costs=st.lists(st.floats(0, 1, width=16), min_size=4, max_size=4),
    price=st.floats(0, 3, width=16),
    allowed=st.lists(st.booleans(), min_size=4, max_size=4).filter(any),
)
def test_the_choice_changes_there_and_nowhere_nearer(
    values: list[float], costs: list[float], price: float, allowed: list[bool]
) -> None:
    chosen = choose(values, costs, price, allowed)
    below, above = switches(values, costs, chosen, allowed)
    low, high = 0.0 if below is None else below[0], math.inf if above is None else above[0]
    slack = 1e-9 * (1.0 + price)
    assert low <= price + slack
    assert high >= price - slack

    def utilities(at: float) -> list[float]:
        lines = [v - at * c for v, c in zip(values, costs, strict=True)]
        return [line if ok else -math.inf for line, ok in zip(lines, allowed, strict=True)]

    # The choice is best (to rounding) all the way between the two prices ...
    for share in (0.0, 0.3, 0.7, 1.0):
        at = low + share * (min(high, price + 5.0) - low)
        lines = utilities(at)
        assert lines[chosen] >= max(lines) - 1e-9 * (1.0 + at)
    # ... and beyond them the scale that is named is better than it, and best near the price.
    for switch, sign in ((below, -1.0), (above, 1.0)):
        if switch is not None and math.isfinite(switch[0]) and switch[0] < 1e6:
            beyond = switch[0] * (1.0 + sign * 1e-7)
            lines = utilities(beyond)
            assert lines[switch[1]] >= max(lines) - 1e-6 * (1.0 + beyond)
            assert (costs[switch[1]] - costs[chosen]) * sign < 0


def test_groups_are_summed_under_plain_names() -> None:
    contributions = np.array([[1.0, 2.0, 4.0, 8.0, 100.0], [-1.0, -2.0, 0.0, 0.5, 10.0]])
    got = grouped(contributions, ("picture", "question", "picture", "some_new"))
    assert got == [
        {"picture detail": 5.0, "question": 2.0, "some new": 8.0},
        {"picture detail": -1.0, "question": -2.0, "some new": 0.5},
    ]
    with pytest.raises(ValueError, match="contributions"):
        explain(SCHEMA, (0.1, 0.2), Policy((0.1, 1.0), 0.1), None, contributions)


def test_neighbours_are_compared() -> None:
    told = by_hand((0.1, 0.6, 0.7, 0.9), 1.0)  # contributions 9 16 | 25 for the chosen scale
    assert told.coarser == Comparison(1, 21.0, {"picture detail": 9.0, "question": 15.0})
    assert told.finer == Comparison(16, -39.0, {"picture detail": -27.0, "question": -33.0})
    assert by_hand((0.9, 0.1, 0.1, 0.1), 1.0).coarser is None
    assert by_hand((0.1, 0.1, 0.1, 0.9), 0.0).finer is None


def test_base_and_groups_are_lightgbms_and_add_up(made: Router, rows: np.ndarray) -> None:
    for row in rows[:20]:
        decision = made.route(row, Constraints(explain=True))
        told = decision.explanation
        assert told is not None
        assert told.scale == decision.scale
        assert (told.values, told.price) == (decision.p_suffices, 0.2)
        assert told.costs == {1: 1 / 64, 4: 1 / 16, 16: 1 / 4, 64: 1.0}
        for booster, scale in zip(made.predictor.boosters_, SCALES, strict=True):
            theirs = booster.predict(row[None], pred_contrib=True)[0]
            assert told.base[scale] == theirs[-1]
            groups = told.contributions[scale]
            for group, name in GROUP_NAMES.items():
                assert groups[name] == pytest.approx(theirs[SCHEMA.columns(group)].sum(), abs=1e-12)
            raw = booster.predict(row[None], raw_score=True)[0]
            assert told.base[scale] + sum(groups.values()) == pytest.approx(raw, abs=1e-9)


def test_each_of_several_pictures_is_explained(made: Router, rows: np.ndarray) -> None:
    decision = made.route(rows[:3], Constraints(explain=True))
    told = decision.explanation
    assert told is not None
    assert tuple(each.scale for each in told.pictures) == decision.scales
    assert told.scale == decision.scale
    for number, (row, each) in enumerate(zip(rows, told.pictures, strict=False), 1):
        alone = made.route(row, Constraints(explain=True)).explanation
        assert alone is not None
        assert each == replace(alone, sentence=f"Picture {number} of 3: {alone.sentence}")
        assert alone.pictures == ()
    assert replace(told, pictures=()) in told.pictures
    lines = told.lines()
    assert [line for line in lines if line.startswith("Picture")] == [
        each.sentence for each in told.pictures
    ]


def test_a_shared_cap_is_told_with_the_others_as_they_are(made: Router, rows: np.ndarray) -> None:
    for start in range(0, 30, 3):
        three, wish = rows[start : start + 3], Constraints(max_visual_tokens=40, explain=True)
        decision = made.route(three, wish)
        told = decision.explanation
        assert told is not None
        assert tuple(each.scale for each in told.pictures) == decision.scales
        left = 40 - decision.visual_tokens
        for each, scale in zip(told.pictures, decision.scales, strict=True):
            if each.below is not None:  # a finer scale that would be chosen must be affordable
                assert each.below.scale <= scale + left
    pinned = made.route(three, Constraints(pins=(4, None, None), explain=True)).explanation
    assert pinned is not None
    assert pinned.pictures[0].sentence.startswith("Picture 1 of 3: 4 was asked for; the router ")


def test_the_prices_of_a_router_do_change_its_decision(made: Router, rows: np.ndarray) -> None:
    turned = 0
    for row in rows[:15]:
        told = made.route(row, Constraints(explain=True)).explanation
        assert told is not None
        for switch, nudge in ((told.below, 1.0 - 1e-9), (told.at_or_above, 1.0 + 1e-9)):
            if switch is not None:
                there = made.with_policy(Policy(made.policy.costs, switch.price * nudge))
                assert there.route(row).scale == switch.scale
                turned += 1
    assert turned > 10


def test_a_pin_is_told_what_would_have_been_chosen(made: Router, rows: np.ndarray) -> None:
    free, wish = made.route(rows[0]), Constraints(pinned=16, reason=Reason.detail, explain=True)
    decision = made.route(rows[0], wish)
    told = decision.explanation
    assert (decision.scale, decision.reason) == (16, Reason.detail)
    assert told is not None
    assert told.scale == free.scale
    assert told.sentence.startswith(f"16 was asked for; the router would have chosen {free.scale} ")
    assert made.route(None, wish).explanation is None  # nothing to predict from


def test_nobody_pays_for_what_was_not_asked(
    made: Router, rows: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ComplexityPredictor, "contributions", None)
    assert made.route(rows[0]).explanation is None
