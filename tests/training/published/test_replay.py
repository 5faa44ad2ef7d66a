"""Replayed policies and routers: hand-worked, by the CLI."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from router import ComplexityPredictor, Policy, Router
from router.actions import ActionSpace, CellRule, uniform_space
from router.policy import token_costs
from router.second_look import Gate, SecondLook
from training.errors import MixedData
from training.oracle.data import read_oracle
from training.promotion.replay import parse_policy, replay

from .conftest import FOCUS_SPACE, FOCUSED, SCALES, SCHEMA, write_focused, write_oracle


def test_replay_of_fixed_policies_by_hand(oracle, tmp_path, command) -> None:
    out = tmp_path / "deep" / "rows.json"
    done = command(
        "m3-train", "replay", "--oracle", oracle, "--policy", "finest", "--policy", "fixed:9",
        "--split", "all", "--json", out, "--resamples", 100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    assert "160 questions about 40 pictures (all)" in shown
    assert "fixed:9 │ 0.750 │ 9.0 │ 0.000 │ +25.00 pt (+25.00 to +25.00) │ -27.00" in shown
    found = json.loads(out.read_text())
    assert [row["name"] for row in found["rows"]] == ["finest", "fixed:9"]
    assert found["rows"][1]["minus_first"]["token_ratio"] == 0.25
    assert found["rows"][0]["gpu_ms"] == 4.0
    assert found["split"] == "all"


def router_over(space: ActionSpace, price: float) -> Router:
    """A router that finds the coarsest scale bad and all else good, the finest a little better."""
    chances = np.array([0.2, *[0.8] * (len(space) - 2), 0.9])
    features = np.random.default_rng(0).normal(size=(200, len(SCHEMA.names)))
    right = np.random.default_rng(1).random((200, len(space))) < chances
    predictor = ComplexityPredictor(n_estimators=3).fit(features, right)
    return Router(predictor, SCHEMA, Policy(token_costs(SCALES), price), space=space)


OTHER_RULE = replace(FOCUS_SPACE.actions[1], rule=CellRule(400, "none", 5))
STRANGE = ActionSpace((FOCUS_SPACE.actions[0], OTHER_RULE, *FOCUS_SPACE.actions[2:]))


def test_replay_of_routers_over_different_actions(tmp_path: Path) -> None:
    """Each takes its own actions; what a row costs is that row's."""
    data = read_oracle([write_focused(tmp_path / "oracle")])
    plain, focused = router_over(uniform_space(SCALES), 0.1), router_over(FOCUS_SPACE, 0.1)
    rows = replay(
        [("plain", plain), ("focused", focused)], data, resamples=100,
        policies=[parse_policy(text) for text in ("finest", "fixed:9", "price:9", "price:0")],
    )  # fmt: skip
    tokens = np.array([[1, 1 + 4 * len(c), 9, 36] for _, c in FOCUSED.values()])
    scores = np.array([s for s, _ in FOCUSED.values()])

    def by_hand(made: Router, columns: list[int], price: float) -> tuple[float, float]:
        [values] = made.predict_values(data.features[:1])
        best = (values - price * tokens[:, columns] / 36).argmax(axis=1)
        at = np.arange(4), np.array(columns)[best]
        return float(scores[at].mean()), float(tokens[at].mean())

    uniform, every = [0, 2, 3], [0, 1, 2, 3]
    wanted = [
        by_hand(plain, uniform, 0.1), by_hand(focused, every, 0.1), (0.5, 36.0), (0.75, 9.0),
        by_hand(plain, uniform, 9.0), by_hand(plain, uniform, 0.0),
    ]  # fmt: skip
    found = [(row["accuracy"], row["visual_tokens"]) for row in rows]
    assert found == [pytest.approx(each) for each in wanted]
    assert len(set(found)) > 3
    assert rows[1]["share_of_scale"]["1+36@500x5"] > 0
    assert rows[0]["share_of_scale"]["1+36@500x5"] == 0
    assert rows[0]["flops"] == pytest.approx(2.0)  # always 9
    with pytest.raises(MixedData, match=r"do not hold the actions 1\+36@500x5"):
        replay([("strange", router_over(STRANGE, 0.1))], data)
    with pytest.raises(MixedData, match=r"do not hold the actions 1\+36@500x5"):
        replay([("focused", focused)], read_oracle([write_oracle(tmp_path / "uniform")]))


def test_a_second_look_is_decided_by_its_own_routers_costs(tmp_path: Path) -> None:
    """Beside which router it stands changes what it is said to cost, not what it reads."""
    data = read_oracle([write_focused(tmp_path / "oracle")])
    count, made = len(FOCUS_SPACE), router_over(FOCUS_SPACE, 0.1)
    gates = tuple((Gate(1.0, 0.0, 0.0, 0.0),) * (count - start) for start in range(count - 1))
    look = SecondLook(FOCUS_SPACE.names, gates, 0.1, 0.1)
    looking = Router(made.predictor, SCHEMA, made.policy, space=FOCUS_SPACE, second_look=look)
    plain = router_over(uniform_space(SCALES), 0.1)
    other = Router(plain.predictor, SCHEMA, Policy((0.98, 0.99, 1.0), 0.1))
    [alone] = replay([("looking", looking)], data, resamples=100)
    _, second = replay([("other", other), ("looking", looking)], data, resamples=100)
    for key in ("accuracy", "visual_tokens", "harm", "share_of_scale"):
        assert second[key] == alone[key]
    assert second["cost"] != alone["cost"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "nothing to replay"),
        (["--policy", "fixed:7"], "the data have the scales 1, 9, 36"),
        (["--policy", "fixed:x"], "unknown policy 'fixed:x'"),
        (["--policy", "price:-1"], "policy 'price:-1': a price is a number from 0 on"),
        (["--policy", "price:nan"], "policy 'price:nan': a price is a number from 0 on"),
        (["--policy", "price:dear"], "unknown policy 'price:dear'"),
        (["--policy", "price:0.1"], "needs --router DIR"),
        (["--policy", "cheapest"], "use finest, fixed:SCALE or price:NUMBER"),
        (["--router", "nowhere"], "no such folder"),
    ],
)
def test_bad_replays_are_one_line(oracle, command, words: list[str], says: str) -> None:
    done = command("m3-train", "replay", "--oracle", oracle, *words)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_policies_in_words() -> None:
    assert parse_policy("fixed:36").scale == 36
    assert parse_policy("price:0").price == 0.0
    assert parse_policy("finest").scale is None
