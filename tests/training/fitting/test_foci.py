"""Foci beside scales, from labels to report: what is judged is what the router serves, by row."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from router import Router
from router.actions import Action, ActionSpace, CellRule, Plan, uniform_space
from router.certificate.proof import mean_by_picture, question_losses
from router.decision import Constraints
from router.features.schema import feature_schema
from router.policy import choose_many, row_costs
from router.records import OracleRecord, to_table
from training.evaluation.evaluate import evaluate
from training.evaluation.exam import questions_of
from training.evaluation.report import markdown, side_by_side, write_report
from training.fitting.calibration_parts import certifying
from training.fitting.certified import certified_router
from training.fitting.certify import certify, most_costs
from training.fitting.fit import fit
from training.oracle.data import OracleData, read_oracle

SCALES = (1, 9, 36, 144, 576)
SPACE = ActionSpace(
    (
        Action("1", 1),
        Action("9", 9, base="1"),
        Action("9+144@500x12", 9, 144, CellRule(500, "none", 12), "144"),
        Action("36", 36, base="9"),
        Action("36+576@250rx48", 36, 576, CellRule(250, "ring", 48), "36"),
        Action("144", 144, base="36"),
        Action("576", 576, base="144"),
    )
)
FOCI = [2, 4]
SCHEMA = feature_schema(SCALES, 24, 32)
MS = (1.0, 1.1, 1.4, 2.5, 8.0)
HARDWARE = "NVIDIA H100 SXM"


def write_oracle(folder: Path, pictures: int = 400, seed: int = 0) -> Path:
    """Write questions of which one feature tells the level they need, another how much of it.

    A focus answers as its fine level does, a little worse; its cells cost what the second says.
    """
    rng = np.random.default_rng(seed)
    columns = [SCHEMA.names.index(name) for name in ("fill_36", "n_words")]
    words = [column for column, name in enumerate(SCHEMA.names) if name.startswith("word_")]
    strength = np.array([0.0, 1.0, 2.9, 2.0, 3.9, 3.0, 4.0]) + 0.5
    records = []
    for picture in range(pictures):
        for question in range(4):
            need, wide = rng.uniform(0.0, 4.5), int(rng.integers(0, 13))
            chance = 0.96 / (1 + np.exp(-4.0 * (strength - need)))
            counts = {2: wide, 4: 4 * wide}
            tokens = tuple(
                action.coarse + 4 * counts.get(k, 0) for k, action in enumerate(SPACE.actions)
            )
            scores = (rng.random(7) < chance).astype(float)
            for k, coarser in zip(FOCI, (1, 3), strict=True):  # without cells it is that scale
                if wide == 0:
                    scores[k], chance[k] = scores[coarser], chance[coarser]
            features = rng.normal(size=len(SCHEMA.names)).astype(np.float32)
            features[words] = 0.0
            features[columns] = need + 0.2 * rng.normal(), wide
            records.append(
                OracleRecord(
                    picture_id=f"{seed:04d}{picture:060d}", question_id=f"{picture}-{question}",
                    question=f"what {question}?", kind=f"kind{int(need) // 2}", dataset="made",
                    reference="x", source="scenes", scales=SCALES,
                    answers=tuple("x" if s else "y" for s in scores), scores=tuple(scores),
                    p_reference=tuple(chance), confidence=tuple(np.where(scores > 0.5, 0.95, 0.3)),
                    visual_tokens=tokens, features=features, feature_schema=SCHEMA.hash,
                    model_hash="feed", actions=SPACE.names, action_space=SPACE.hash,
                    cells=tuple(tuple(range(counts.get(k, 0))) for k in range(7)),
                )
            )  # fmt: skip
    folder.mkdir(parents=True)
    pq.write_table(to_table(records, OracleRecord), folder / "oracle-00000.parquet")
    content = {
        "model_hash": "feed", "feature_schema": SCHEMA.hash, "scales": list(SCALES),
        "grid_side": 24, "embedding_dim": 32, "relevance": SCHEMA.relevance,
        "actions": SPACE.to_json(), "flops": [10.0, 11.0, 14.0, 28.0, 80.0],
        "analytic_seconds": {HARDWARE: [ms / 1e3 for ms in MS]},
        "encode": {"flops": 5.0, "seconds": {HARDWARE: 5e-4}},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_oracle(tmp_path_factory.mktemp("oracle") / "a")


@pytest.fixture(scope="module")
def data(oracle: Path) -> OracleData:
    return read_oracle([oracle])


@pytest.fixture(scope="module")
def router(data: OracleData) -> Router:
    return fit(data, target=0.97, second_look=True).router


@pytest.fixture(scope="module")
def told() -> list[tuple[int, int, str]]:
    return []


@pytest.fixture(scope="module")
def report(router: Router, data: OracleData, told: list[tuple[int, int, str]]) -> dict:
    note = told.append
    return evaluate(router, data, target=0.97, resamples=200, progress=lambda *c: note(c))


def plan_of(tokens: np.ndarray) -> Plan:
    """Return a plan with as many cells as these tokens (A,) need."""
    pairs = zip(SPACE.actions, tokens.astype(int).tolist(), strict=True)
    cells = tuple(tuple(range((count - action.coarse) // 4)) for action, count in pairs)
    return Plan(tuple(tokens.astype(int).tolist()), cells)


def served(router: Router, part: OracleData, *, second_look: bool) -> list[list[int]]:
    """Return the actions that the router takes for each question, the second look's last."""
    taken = []
    rows = zip(part.features, part.visual_tokens, part.confidence, strict=True)
    for features, tokens, confidence in rows:
        wish = Constraints(second_look=second_look)
        decision = router.route(features, wish, plan=plan_of(tokens))
        looks = [SPACE.index(decision.readings[0].action)]
        if decision.open_look is not None:
            finer = decision.open_look.escalate(float(confidence[looks[0]]))
            looks += [] if finer is None else [SPACE.index(finer.action)]
        taken.append(looks)
    return taken


def test_the_report_counts_what_the_router_serves(router, data, report) -> None:
    test = data.split("test")
    for looks, point in (
        (served(router, test, second_look=True), report["router"]),
        (served(router, test, second_look=False), report["second_look"]["single_look"]),
    ):
        score = [test.scores[row, taken[-1]] for row, taken in enumerate(looks)]
        spent = [test.visual_tokens[row, taken].sum() for row, taken in enumerate(looks)]
        assert np.mean(score) == pytest.approx(point["accuracy"])
        assert np.mean(spent) == pytest.approx(point["visual_tokens"])
    twice = [len(taken) > 1 for taken in served(router, test, second_look=True)]
    assert np.mean(twice) == pytest.approx(report["second_look"]["looked_again"])
    assert any(twice)
    chosen = [taken[-1] for taken in served(router, test, second_look=True)]
    shares = np.bincount(chosen, minlength=7) / len(chosen)
    assert list(report["router"]["share_of_scale"].values()) == pytest.approx(shares)
    assert shares[FOCI].sum() > 0.2


def test_a_saved_router_reads_the_same(router, data, tmp_path: Path) -> None:
    again = Router.from_pretrained(router.save_pretrained(tmp_path / "router"))
    assert (again.version, again.space) == (router.version, SPACE)
    part = data.split("test").take(np.arange(20))
    assert served(again, part, second_look=True) == served(router, part, second_look=True)
    card = (tmp_path / "router" / "README.md").read_text()
    assert "2 foci" in card
    assert "| 36+576@250rx48 |" in card


def test_the_uniform_router_is_the_one_that_scales_alone_teach(data, report) -> None:
    alone = data.only(uniform_space(SCALES))
    made = fit(alone, target=0.97, second_look=True).router
    judged = evaluate(made, alone, target=0.97, resamples=100)
    rival = report["baselines"]["uniform_router"]
    for key in ("price", "accuracy", "visual_tokens", "cost", "flops", "gpu_ms", "harm"):
        assert rival[key] == pytest.approx(judged["router"][key])
    needed = report["visual_tokens_at_router_accuracy"]["uniform_router"]
    assert needed is None or needed > report["router"]["visual_tokens"]
    at = report["visual_tokens_at"]["0.95_of_finest"]
    assert at["uniform_router"] == pytest.approx(
        judged["visual_tokens_at"]["0.95_of_finest"]["router"]
    )
    for name in ("type_table", "fixed_mixture", "dataset_policy"):
        assert at[name] == pytest.approx(judged["visual_tokens_at"]["0.95_of_finest"][name])
    assert at["router"] < at["uniform_router"]
    # Data without foci, and a router of scales before data with foci, have no such rival.
    assert "uniform_router" not in judged["baselines"]
    assert judged["visual_tokens_at_router_accuracy"]["uniform_router"] is None
    assert judged["visual_tokens_at_router_accuracy"]["type_table_same_actions"] is None
    assert judged["oracle_over_scales"] is None
    assert side_by_side(judged)[1] == []
    before = evaluate(made, data, target=0.97, resamples=100)
    assert before["router"] == judged["router"]


def test_every_action_is_told_beside_the_scales(data, report) -> None:
    test = data.split("test")
    assert [point["action"] for point in report["actions"]] == [a.key for a in SPACE.actions]
    assert [point["scale"] for point in report["fixed"]] == list(SCALES)
    for k, point in enumerate(report["actions"]):
        assert point["accuracy"] == pytest.approx(test.scores[:, k].mean())
        assert point["visual_tokens"] == pytest.approx(test.visual_tokens[:, k].mean())
        ms = np.interp(test.visual_tokens[:, k], SCALES, MS).mean()
        assert point["gpu_ms"] == pytest.approx(ms)
    right = test.scores >= 0.5
    assert report["unsolvable_share"] == pytest.approx((~right.any(axis=1)).mean())
    cheapest = np.where(right, test.visual_tokens, np.inf).min(axis=1)
    cheapest[~right.any(axis=1)] = 1
    over_all, over_scales = report["oracle"], report["oracle_over_scales"]
    assert over_all["any_correct"]["visual_tokens"] == pytest.approx(cheapest.mean())
    assert over_all["any_correct"]["accuracy"] > over_scales["any_correct"]["accuracy"]
    scales = [k for k in range(7) if k not in FOCI]
    assert report["uniform_random"]["accuracy"] == pytest.approx(test.scores[:, scales].mean())
    names = {"uniform_router", "type_table_same_actions", "type_table", "question_only"}
    assert names <= set(report["token_ratio_at_equal_accuracy"])
    assert names <= set(report["gap_recovered"])
    for level in report["at_equal_accuracy"].values():
        assert names <= set(level["policies"])
    parts = report["slices"]
    assert len(parts[0]["accuracy_per_scale"]) == 5
    assert list(parts[0]["accuracy_per_action"]) == list(SPACE.names)


def test_two_looks_pay_the_encode_once(router, data, report) -> None:
    test = data.split("test")
    spent = 0.0
    for row, looks in enumerate(served(router, test, second_look=True)):
        ms = np.interp(test.visual_tokens[row, looks], SCALES, MS)
        spent += ms.sum() - 0.5 * (len(looks) - 1)
    assert report["router"]["gpu_ms"] == pytest.approx(spent / len(test))
    found = report["gpu_ms"]["per_hardware"][HARDWARE]
    assert found["router"] == pytest.approx(spent / len(test))
    assert found["per_scale"] == pytest.approx(MS)


def test_each_step_of_an_evaluation_is_told_in_order(report, told) -> None:
    done = [step for step, *_ in told]
    assert done == sorted(set(done))
    assert told[-1] == (told[0][1], told[0][1], "")


def test_what_people_read_sets_both_side_by_side(report, tmp_path: Path) -> None:
    columns, rows = side_by_side(report)
    assert [(row[0], row[1]) for row in rows] == [
        (policy, actions)
        for policy in ("router", "type table")
        for actions in ("scales and foci", "scales alone")
    ]
    assert all(len(row) == len(columns) for row in rows)
    text = markdown(report)
    assert "## Scales and foci beside scales alone" in text
    assert "| 9+144@500x12 |" in text
    paths = write_report(report, tmp_path / "report")
    assert paths[2].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_cost_falls_with_the_price_and_the_served_loss_is_certified(router, data) -> None:
    alone = router.with_policy(router.policy)  # with one look
    found = certify(alone, data, loss="harm", bound=0.1)
    on = certifying(data)
    costs = row_costs(on.visual_tokens, SCALES, router.policy.costs)
    values = np.asarray(router.predict_values(on.features), float)
    rows = np.arange(len(on))
    spent = np.stack([costs[rows, choose_many(values, costs, p)] for p in found.prices])
    assert (np.diff(spent, axis=0) <= 0).all()
    assert (spent[0] == 1.0).all()  # the safe end is the anchor, whatever the foci read
    assert most_costs(alone) == pytest.approx([n / 576 for n in (1, 9, 57, 36, 228, 144, 576)])
    made = certified_router(alone, found)
    picks = np.array([looks[0] for looks in served(made, on, second_look=False)])
    lost = mean_by_picture(question_losses(on.scores, picks, "harm"), on.pictures)
    assert lost.mean() == pytest.approx(found.rung.loss)
    assert on.visual_tokens[rows, picks].mean() == pytest.approx(found.rung.visual_tokens)
    assert {each.floor for each in found.slices} <= set(SCALES)


def test_resources_of_a_focus_lie_between_those_of_the_scales(data) -> None:
    one = data.take(np.array([0]))
    one = replace(one, visual_tokens=np.array([[1.0, 9, 49, 36, 90, 144, 576]]))
    on = questions_of(one, (0.0, 0.1, 0.2, 0.5, 1.0), 10)
    assert on.costs[0].tolist() == pytest.approx([0, 0.1, 0.2 + 0.3 * 13 / 108, 0.2, 0.35, 0.5, 1])
    assert on.flops[0].tolist() == pytest.approx([10, 11, 14 + 14 * 13 / 108, 14, 21, 28, 80])
    assert on.over_scales.costs[0].tolist() == [0.0, 0.1, 0.2, 0.5, 1.0]
    assert on.over_scales.actions == uniform_space(SCALES)


def test_the_command_prints_both(tmp_path: Path, command) -> None:
    oracle = write_oracle(tmp_path / "oracle", 120)
    done = command("m3-train", "fit", "--oracle", oracle, "--out", tmp_path / "router")
    assert done.returncode == 0, done.stderr
    assert "always 36+576@250rx48" in done.stdout
    words = ("--router", tmp_path / "router", "--out", tmp_path / "report", "--resamples", 100)
    done = command("m3-train", "evaluate", "--oracle", oracle, *words)
    assert done.returncode == 0, done.stderr
    for said in ("always 9+144@500x12", "scales and foci", "scales alone", "tokens at 98 %"):
        assert said in done.stdout
