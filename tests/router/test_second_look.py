"""The gate's arithmetic by hand, what may be escalated to, and a file that comes back the same."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.actions import Reading, uniform_space
from router.decision import Constraints, Reason
from router.errors import RouterFileError
from router.features.schema import feature_schema
from router.folder import SECOND_LOOK_FILE
from router.policy import Policy, choose, token_costs
from router.predictor.chain import ComplexityPredictor
from router.router import Router
from router.second_look import Gate, SecondLook, costs_after

SCALES = (1, 9, 36)
COSTS = (1 / 36, 9 / 36, 1.0)
SURE = Gate(0.0, 0.0, 1.0, 0.0)  # of the answer itself: right as often as it is sure
FINER = Gate(1.0, 0.0, 0.0, 0.0)  # of a finer scale: as predicted
NAMES = ("1", "9", "36")
SPACE = uniform_space(SCALES)
LOOK = SecondLook(NAMES, ((SURE, FINER, FINER), (SURE, FINER)), 0.4, 0.2, {"target": 0.99})
VALUES = (0.3, 0.6, 0.9)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_p_right_is_a_logistic_of_three_log_odds() -> None:
    gate = Gate(0.5, -0.25, 1.5, 0.1)
    look = SecondLook(NAMES, ((gate, gate, gate), (gate, gate)), 0.0, 0.0)
    found = look.p_right(np.array([VALUES]), 1, np.array([0.8]))
    assert found.shape == (1, 2)
    for column, p in enumerate(VALUES[1:]):
        z = 0.5 * logit(p) - 0.25 * logit(0.6) + 1.5 * logit(0.8) + 0.1
        assert found[0, column] == pytest.approx(1 / (1 + math.exp(-z)))


def again(
    start: int, confidence: float, cap: int | None = None, values: tuple[float, ...] = VALUES
) -> int | None:
    costs = costs_after(start, SCALES, COSTS, cap)
    found = LOOK.escalate(values, start, confidence, costs)
    return None if found is None else SCALES[found]


def test_escalating_weighs_what_is_won_against_what_it_costs() -> None:
    # Staying at 1: .5. At 9: .6 - .2 x .25 = .55. At 36: .9 - .2 = .7.
    assert again(0, 0.5) == 36
    assert again(0, 0.5, cap=36) == 9
    assert again(0, 0.5, cap=9) is None
    assert again(0, 0.71) is None
    assert again(0, 0.69) == 36
    assert again(1, 0.69) == 36
    assert again(2, 0.01) is None


def test_only_what_takes_more_tokens_of_this_picture_is_read_after() -> None:
    tokens, costs = (9, 57, 36, 144), (0.1, 0.4, 0.25, 1.0)
    closed = math.inf
    assert costs_after(0, tokens, costs) == (0.1, 0.4, 0.25, 1.0)
    assert costs_after(1, tokens, costs) == (0.4, closed, 1.0)
    assert costs_after(0, tokens, costs, cap=65) == (0.1, closed, 0.25, closed)
    assert costs_after(2, (9, 57, 57, 144), costs) == (0.25, 1.0)
    assert costs_after(1, (9, 57, 57, 144), costs) == (0.4, closed, 1.0)
    assert costs_after(3, tokens, costs) == (1.0,)


def test_ends_row_by_row_and_never_at_what_is_closed() -> None:
    p = np.array([[0.5, 0.9, 0.8], [0.5, 0.9, 0.8], [0.5, 0.45, 0.5], [0.5, 0.9, 0.9]])
    costs = np.array([[9.0, 1.0, 0.0], [9.0, math.inf, 0.1], [0.0, 0.0, 0.0], [0.0, 0.2, 0.1]])
    assert LOOK.ends(p, costs).tolist() == [2, 2, 0, 2]
    assert LOOK.ends(p, costs, 0.0).tolist() == [1, 2, 0, 1]  # a price of 0 opens nothing
    assert LOOK.ends(p, costs[1]).tolist() == [2, 2, 0, 2]
    assert costs[0, 0] == 9.0  # what was given is left alone


@pytest.mark.parametrize("confidence", [0.0, 1.0, 1e-300])
def test_the_ends_of_the_unit_interval_are_numbers(confidence: float) -> None:
    found = LOOK.p_right(np.array([[0.0, 1.0, 0.5]]), 0, np.array([confidence]))
    assert np.isfinite(found).all()


@given(
    st.lists(st.floats(0, 1), min_size=3, max_size=3),
    st.sampled_from(SCALES),
    st.floats(0, 1),
    st.none() | st.integers(1, 40),
)
def test_it_goes_to_a_finer_scale_within_the_cap_or_stays(values, scale, confidence, cap) -> None:
    start = SCALES.index(scale)
    found = again(start, confidence, cap, tuple(values))
    assert found is None or (found > scale and (cap is None or scale + found <= cap))
    opened = LOOK.opened(values, start, SCALES, COSTS, SPACE, cap=cap)
    if opened is None:
        assert found is None
    else:
        assert opened.escalate(confidence) == (None if found is None else Reading.uniform(found))


def test_ties_stay() -> None:
    even = SecondLook(NAMES, ((SURE, SURE, SURE), (SURE, SURE)), 0.0, 0.0)
    assert even.escalate(VALUES, 0, 0.5, COSTS) is None


def test_the_file_comes_back_the_same() -> None:
    assert SecondLook.from_json(json.loads(LOOK.to_bytes())) == LOOK
    back = SecondLook.from_json(json.loads(LOOK.to_bytes())).to_bytes()
    assert back == LOOK.to_bytes()
    # Scales alone are told as ever; a name that is none makes it a file of actions.
    assert json.loads(back)["scales"] == [1, 9, 36]
    focused = replace(LOOK, actions=("1", "1+36@500x2", "36"))
    stored = json.loads(focused.to_bytes())
    assert stored["actions"] == ["1", "1+36@500x2", "36"]
    assert "scales" not in stored
    assert SecondLook.from_json(stored) == focused


def test_damaged_gates_are_refused() -> None:
    with pytest.raises(ValueError, match="rows"):
        SecondLook(NAMES, ((SURE, FINER), (SURE, FINER)), 0.0, 0.0)
    with pytest.raises(ValueError, match="two actions of one name"):
        SecondLook(("1", "9", "9"), LOOK.gates, 0.0, 0.0)
    with pytest.raises(ValueError, match="finite"):
        SecondLook(NAMES, LOOK.gates, math.nan, 0.0)
    with pytest.raises(ValueError, match="finite"):
        SecondLook(NAMES, LOOK.gates, 0.0, -0.1)


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    width = len(feature_schema(SCALES, 12, 6).names)
    return np.random.default_rng(0).standard_normal((400, width)).astype(np.float32)


@pytest.fixture(scope="module")
def plain(rows: np.ndarray) -> Router:
    chance = 1.0 / (1.0 + np.exp(2.0 * rows[:, :1] - np.array([-1.5, 0.0, 2.0])))
    suffices = np.random.default_rng(1).random(chance.shape) < chance
    predictor = ComplexityPredictor(n_estimators=10, num_leaves=7).fit(rows, suffices)
    return Router(predictor, feature_schema(SCALES, 12, 6), Policy(token_costs(SCALES), 0.05))


@pytest.fixture(scope="module")
def looking(plain: Router) -> Router:
    return Router(plain.predictor, plain.schema, plain.policy, second_look=LOOK)


def test_a_second_look_decides_first_at_its_own_price(
    plain: Router, looking: Router, rows: np.ndarray
) -> None:
    moved = 0
    for row, values in zip(rows[:60], plain.predict_values(rows[:60]), strict=True):
        without = looking.route(row)
        assert (without.scale, without.open_look) == (plain.route(row).scale, None)
        decision = looking.route(row, Constraints(second_look=True))
        assert decision.scale == SCALES[choose(values, plain.policy.costs, LOOK.start_price)]
        assert (decision.price, decision.reason) == (LOOK.start_price, Reason.predicted)
        assert (decision.open_look is None) == (decision.scale == 36)
        if decision.open_look is not None:
            values = tuple(decision.values[scale] for scale in SCALES)
            said = again(SCALES.index(decision.scale), 0.3, values=values)
            found = decision.open_look.escalate(0.3)
            assert found == (None if said is None else Reading.uniform(said))
        moved += decision.scale != without.scale
    assert moved > 0


def test_pins_bounds_caps_and_several_pictures_open_nothing(
    looking: Router, rows: np.ndarray
) -> None:
    second = Constraints(second_look=True)
    assert looking.route(rows[0], replace(second, pinned=1, reason=Reason.pinned)).open_look is None
    assert looking.route(rows[:2], second).open_look is None
    assert looking.route(rows[:2], second).price == looking.price
    for row in rows[:20]:
        capped = looking.route(row, replace(second, max_visual_tokens=9))
        assert capped.open_look is None
        wider = looking.route(row, replace(second, max_visual_tokens=10))
        assert wider.open_look is None or wider.open_look.costs == (COSTS[0], COSTS[1], math.inf)


def test_the_folder_keeps_it_and_the_version_counts_it(
    plain: Router, looking: Router, tmp_path: Path
) -> None:
    assert looking.version != plain.version
    assert looking.predictor_hash == plain.predictor_hash  # bounds hold without a second look
    folder = looking.save_pretrained(tmp_path / "router")
    back = Router.from_pretrained(folder)
    assert (back.second_look, back.version) == (LOOK, looking.version)
    plain.save_pretrained(folder)
    assert not (folder / SECOND_LOOK_FILE).exists()
    assert Router.from_pretrained(folder).second_look is None
    assert looking.with_policy(looking.policy).second_look is None


@pytest.mark.parametrize("content", ["{", "{}", '{"scales": [1]}', "[]"])
def test_a_damaged_file_is_refused(looking: Router, tmp_path: Path, content: str) -> None:
    folder = looking.save_pretrained(tmp_path / "router")
    (folder / SECOND_LOOK_FILE).write_text(content)
    with pytest.raises(RouterFileError, match="second_look"):
        Router.from_pretrained(folder)


def test_other_scales_are_refused(looking: Router, tmp_path: Path) -> None:
    folder = looking.save_pretrained(tmp_path / "router")
    other = replace(LOOK, actions=("1", "9", "64"))
    (folder / SECOND_LOOK_FILE).write_bytes(other.to_bytes())
    with pytest.raises(
        RouterFileError, match="the second look is at 1, 9, 64, the actions are 1, 9, 36"
    ):
        Router.from_pretrained(folder)
    with pytest.raises(ValueError, match="the second look is at 1, 9, 64"):
        Router(looking.predictor, looking.schema, looking.policy, second_look=other)
