"""fit, evaluate, report, replay and the gate on simulated oracle data that a router can win."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard

from router import Router, default_router_path
from router.features.schema import feature_schema
from router.policy import Policy
from router.records import OracleRecord, split_of, to_table
from training.errors import MixedData, NotEnoughData, TrainingError
from training.evaluation.evaluate import evaluate
from training.evaluation.report import markdown, write_report
from training.fitting.fit import LESSER, fit
from training.oracle.data import read_oracle
from training.promotion.replay import replay
from training.sources.target_cells import METADATA_KEY, names

SCALES = (1, 9, 36, 144, 576)
SCHEMA = feature_schema(SCALES, 24, 32)
KINDS = ("color", "word", "bar")


def write_oracle(
    folder: Path, pictures: int = 240, *, seed: int = 0, reference: bool = True, **manifest: object
) -> Path:
    """Write questions whose needed scale depends on the type and, more, on one feature."""
    rng = np.random.default_rng(seed)
    need_column = SCHEMA.names.index("fill_36")
    words = [column for column, name in enumerate(SCHEMA.names) if name.startswith("word_")]
    records = []
    for picture in range(pictures):
        for question in range(4):
            kind = int(rng.integers(3))
            need = rng.uniform(0.0, 4.5) + 0.5 * (kind - 1)  # in steps of the scale
            chance = 0.95 / (1 + np.exp(-3.0 * (np.arange(5) + 0.5 - need)))
            scores = (rng.random(5) < chance).astype(float)
            features = rng.normal(size=len(SCHEMA.names)).astype(np.float32)
            features[words] = 0.0  # they cost most of the fitting and tell nothing here
            features[need_column] = need + 0.2 * rng.normal()
            features[SCHEMA.names.index("n_words")] = kind
            records.append(
                OracleRecord(
                    picture_id=f"{seed:04d}{picture:060d}",
                    question_id=f"{seed}-{picture}-{question}",
                    question=f"{KINDS[kind]} {question}?",
                    kind=KINDS[kind],
                    dataset="simulated",
                    reference="x" if reference else None,
                    source="scenes",
                    scales=SCALES,
                    answers=tuple("x" if s else "y" for s in scores),
                    scores=tuple(scores),
                    p_reference=tuple(chance),
                    confidence=tuple(chance),
                    visual_tokens=SCALES,
                    features=features,
                    feature_schema=SCHEMA.hash,
                    model_hash="0123456789abcdef",
                    size_px=float(np.exp(-need)),
                    metadata=json.dumps({"clutter": kind, METADATA_KEY: [need] * len(names())}),
                )
            )
    folder.mkdir(parents=True)
    pq.write_table(to_table(records, OracleRecord), folder / "oracle-00000.parquet")
    content = {
        "model_hash": "0123456789abcdef", "feature_schema": SCHEMA.hash, "scales": list(SCALES),
        "grid_side": 24, "embedding_dim": 32, "relevance": SCHEMA.relevance,
        "flops": [10.0, 11.0, 14.0, 28.0, 80.0],
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps({**content, **manifest}))
    return folder


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_oracle(tmp_path_factory.mktemp("oracle") / "a")


@pytest.fixture(scope="module")
def data(oracle):
    return read_oracle([oracle])


@pytest.fixture(scope="module")
def told() -> dict[str, list[tuple[int, int, str]]]:
    """What was said of the steps of the three calls below."""
    return {"fit": [], "evaluate": [], "second look": []}


@pytest.fixture(scope="module")
def fitted(data, told):
    return fit(data, target=0.98, progress=lambda *call: told["fit"].append(call))


@pytest.fixture(scope="module")
def telling(data):
    """The same answers, with a confidence that tells right ones from wrong ones."""
    return replace(data, confidence=np.where(data.scores > 0.5, 0.95, 0.3))


@pytest.fixture(scope="module")
def looked(telling, told):
    note = told["second look"].append
    return fit(telling, target=0.98, second_look=True, progress=lambda *call: note(call))


@pytest.fixture(scope="module")
def report(fitted, data, told):
    note = told["evaluate"].append
    return evaluate(
        fitted.router, data, target=0.98, resamples=300, progress=lambda *call: note(call)
    )


def test_split_is_by_picture_and_complete(data) -> None:
    parts = [data.split(name) for name in ("train", "calibration", "test")]
    assert sum(len(part) for part in parts) == len(data) == 960
    pictures = [set(part.picture_ids) for part in parts]
    assert len(set.union(*pictures)) == sum(map(len, pictures)) == 240
    assert all(split_of(p) == "test" for p in pictures[2])


def test_a_router_keeps_the_scripts_of_its_questions(fitted) -> None:
    assert fitted.router.metadata["scripts"] == ["LATIN"]
    assert not fitted.router.knows("что?")


def test_router_beats_what_sees_less(report) -> None:
    at = report["visual_tokens_at"]["0.95_of_finest"]
    assert report["router"]["accuracy"] > report["finest_accuracy"] - 0.06
    assert at["router"] < 0.7 * at["fixed_mixture"]
    assert at["router"] < 0.9 * at["type_table"]
    assert at["privileged"] is not None


def test_report_keeps_its_contract(report, data) -> None:
    test = data.split("test")
    assert report["n_questions"] == len(test)
    assert report["n_pictures"] == test.n_pictures
    assert report["finest_accuracy"] == pytest.approx(test.scores[:, -1].mean())
    assert [point["scale"] for point in report["fixed"]] == list(SCALES)
    assert set(report["fixed"][0]) >= {"scale", "accuracy", "visual_tokens", "cost"}
    router = report["router"]
    assert set(router) >= {"price", "accuracy", "visual_tokens", "cost", "difference_from_finest"}
    assert set(router["difference_from_finest"]) == {"mean", "low", "high"}
    difference = router["accuracy"] - report["finest_accuracy"]
    assert router["difference_from_finest"]["mean"] == pytest.approx(difference)
    assert router["rescue"] - router["harm"] == pytest.approx(difference)
    assert set(report["curve"][0]) == {"price", "accuracy", "visual_tokens", "cost"}
    assert set(report["visual_tokens_at_router_accuracy"]) >= {
        "type_table", "question_only", "fixed_mixture", "privileged",
    }  # fmt: skip
    assert set(report["oracle"]) >= {"any_correct", "strict", "luck_corrected"}
    assert report["oracle"]["luck_corrected"] is None
    assert report["oracle"]["any_correct"]["accuracy"] >= report["finest_accuracy"]
    assert report["oracle"]["strict"]["accuracy"] == pytest.approx(report["finest_accuracy"])


def test_report_says_what_equal_accuracy_takes(report) -> None:
    policies = {
        "type_table", "question_only", "image_only", "fixed_mixture", "dataset_policy",
        "privileged", "privileged_metadata",
    }  # fmt: skip
    assert set(report["token_ratio_at_equal_accuracy"]) == policies
    for ratio in report["token_ratio_at_equal_accuracy"].values():
        assert set(ratio) == {"mean", "low", "high", "reached"}
    needed, tokens = report["visual_tokens_at_router_accuracy"], report["router"]["visual_tokens"]
    with_foci = {"uniform_router", "type_table_same_actions"}
    assert set(needed) == policies | with_foci | {"router_on_its_hull"}
    assert {needed[name] for name in with_foci} == {None}
    reached = {name for name in policies if needed[name] is not None}
    assert "privileged" in reached
    for name, ratio in report["token_ratio_at_equal_accuracy"].items():
        assert name not in reached or ratio["mean"] == pytest.approx(tokens / needed[name])
    assert "true mask" in report["privileged_knows"]
    recovered, ratios = report["headroom_recovered"], report["token_ratio_at_equal_accuracy"]
    table, ceiling = (tokens / ratios[name]["mean"] for name in ("type_table", "privileged"))
    assert recovered["mean"] == pytest.approx((table - tokens) / (table - ceiling))
    for level in report["at_equal_accuracy"].values():
        assert set(level["policies"]) == policies | {"router"}
    half = report["at_equal_accuracy"]["finest_minus_half_point"]
    assert half["accuracy"] == pytest.approx(report["finest_accuracy"] - 0.005)
    assert half["policies"]["router"]["gpu_ms"] is None  # these data do not tell
    assert set(report["static_policies"]["kind"]["scale_of"]) == {
        f"simulated/{kind}" for kind in KINDS
    }
    assert report["static_policies"]["dataset"]["scale_of"].keys() == {"simulated"}
    assert report["gpu_ms"] is None
    assert {"fixed_mixture", "dataset_policy", "type_table"} <= set(report["gap_recovered"])


def test_slices_add_up(report) -> None:
    slices = report["slices"]
    assert sum(part["n_questions"] for part in slices) == report["n_questions"]
    for key in ("harm", "rescue", "unsolvable_share"):
        whole = report[key] if key in report else report["router"][key]
        parts = sum(part["n_questions"] * part[key] for part in slices)
        assert parts / report["n_questions"] == pytest.approx(whole)
    regret = report["router"]["priced_regret"]
    assert regret["total"] == pytest.approx(regret["under"] + regret["over"] + regret["unsolvable"])
    assert len(slices[0]["calibration"]["per_scale"]) == len(SCALES)


def test_report_files(report, tmp_path) -> None:
    paths = write_report(report, tmp_path / "report")
    assert [path.name for path in paths] == [
        "report.json", "report.md", "curve.png", "cost_curve.png",
    ]  # fmt: skip
    assert json.loads(paths[0].read_text())["n_questions"] == report["n_questions"]
    assert "told the scene (ceiling)" in paths[1].read_text()
    assert paths[2].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_saved_router_decides_the_same(fitted, data, tmp_path) -> None:
    folder = fitted.router.save_pretrained(tmp_path / "router")
    again = Router.from_pretrained(folder)
    row = data.split("test").features[0]
    assert again.version == fitted.router.version
    assert again.route(row).scale == fitted.router.route(row).scale
    assert "960" not in (folder / "README.md").read_text()  # counts are those of the parts
    assert "Fitted on" in (folder / "README.md").read_text()


def test_flops_are_a_cost(tmp_path) -> None:
    router = fit(read_oracle([write_oracle(tmp_path / "a", pictures=80)]), cost="flops").router
    assert router.policy.costs == pytest.approx((0.125, 0.1375, 0.175, 0.35, 1.0))
    assert "operations" in router.policy.cost_unit


def test_each_step_is_told_once_and_in_order(fitted, report, looked, told) -> None:
    """A bar that is fed these calls moves with every booster, line, section and kind."""

    def heard(name: str) -> tuple[list[int], int, str]:
        calls = told[name]
        assert calls[-1] == (calls[0][1], calls[0][1], "")
        return [done for done, *_ in calls], calls[0][1], " | ".join(now for *_, now in calls)

    done, total, words = heard("evaluate")
    assert done == list(range(total + 1))
    for now in (
        "question_only: booster 5 of 5", "type_table: intervals of visual_tokens",
        "equal accuracy", "simulated/bar",
    ):  # fmt: skip
        assert now in words
    done, total, words = heard("fit")
    assert done == list(range(total + 1))
    assert "booster 1 of 5" in words
    done, total, words = heard("second look")
    assert done == sorted(set(done))
    assert "start price 2 of" in words


def test_a_warning_for_people_is_said(fitted, data) -> None:
    said: list[str] = []
    other = replace(data.split("test"), model_hash="feed")  # without the baselines' pictures
    evaluate(fitted.router, other, resamples=100, say=said.append)
    assert said == [
        "the router was fitted for model 0123456789abcdef, these data are of feed",
        "the same calibration pictures fitted this router's probabilities, gates and price",
    ]


def test_the_card_is_one_a_hub_reads(fitted, data, tmp_path) -> None:
    """Read back by the Hub's own library: both cards a router can have."""
    router = fitted.router
    for name, made in (("fitted", router), ("plain", router.with_policy(router.policy))):
        card = ModelCard.load(made.save_pretrained(tmp_path / name) / "README.md")
        assert (card.data.license, card.data.library_name) == ("apache-2.0", "m3-router")
        assert "lightgbm" in card.data.tags
    assert f"Router {made.version}" in card.text
    assert json.loads(card.text.split("```json")[1].split("```")[0]) == made.metadata
    accuracy = data.scores[:, 0].mean()
    rows = [line for line in router.card_text.splitlines() if line.startswith("| 1 |")]
    assert float(rows[0].split("|")[3]) == pytest.approx(accuracy, abs=0.1)
    assert "{{" not in router.card_text + card.text


def test_too_little_data_says_how_much(tmp_path) -> None:
    few = read_oracle([write_oracle(tmp_path / "few", pictures=6)])
    with pytest.raises(NotEnoughData, match=r"at least 10 with 30 questions"):
        fit(few)


def test_mixed_models_are_refused(oracle, tmp_path) -> None:
    other = write_oracle(tmp_path / "other", pictures=3, seed=1, model_hash="feed")
    with pytest.raises(MixedData, match="model_hash"):
        read_oracle([oracle, other])


def test_a_router_names_whose_answers_it_learnt(fitted, oracle, tmp_path) -> None:
    """What its data have in common; data of another tokenizer or template do not mix."""
    few = {name: write_oracle(tmp_path / name, 60, seed=seed, label_recipe=recipe)
           for name, seed, recipe in [("a", 1, "ab-float32-16"), ("b", 2, "ab-float32"),
                                      ("c", 3, "cd-float32-16")]}  # fmt: skip
    both = read_oracle([few["a"], few["b"]])
    assert both.label_recipe == both.split("test").label_recipe == "ab-float32"
    assert fit(both).router.metadata["label_recipe"] == "ab-float32"
    with pytest.raises(MixedData, match=r"ab-float32-16 and cd-float32-16.*template"):
        read_oracle([few["a"], few["c"]])
    assert read_oracle([few["a"], oracle]).label_recipe is None  # of before: nothing is known
    assert "label_recipe" not in fitted.router.metadata


def test_shards_of_another_model_are_refused(tmp_path) -> None:
    with pytest.raises(MixedData, match="differ in model_hash"):
        read_oracle([write_oracle(tmp_path / "x", pictures=3, model_hash="feed")])


def test_folder_without_data_is_named(tmp_path) -> None:
    with pytest.raises(TrainingError, match="no oracle data"):
        read_oracle([tmp_path])


def test_a_question_in_two_folders_counts_once(oracle, tmp_path) -> None:
    same = write_oracle(tmp_path / "same", pictures=240)
    assert len(read_oracle([oracle, same])) == 960


def test_without_references_scores_are_learnt(tmp_path) -> None:
    data = read_oracle([write_oracle(tmp_path / "log", pictures=120, reference=False)])
    report = evaluate(fit(data).router, data, resamples=200)
    assert report["scored_by"] == "agreement with the finest"


def test_replay_is_exact_and_paired(fitted, data) -> None:
    finest = fitted.router.with_policy(Policy(fitted.router.policy.costs, 0.0, finest_only=True))
    test = data.split("test")
    rows = replay([("finest", finest), ("router", fitted.router)], test, resamples=300)
    assert rows[0]["accuracy"] == pytest.approx(test.scores[:, -1].mean())
    assert rows[0]["visual_tokens"] == 576
    assert rows[0]["minus_first"]["accuracy"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    difference = rows[1]["minus_first"]
    assert difference["accuracy"]["mean"] == pytest.approx(
        rows[1]["accuracy"] - rows[0]["accuracy"]
    )
    assert difference["visual_tokens"]["high"] < 0


def test_router_of_other_features_is_refused(fitted, data) -> None:
    with pytest.raises(MixedData, match="fit a router on these data"):
        evaluate(fitted.router, replace(data, feature_schema="0" * 12))


@pytest.mark.skipif(not default_router_path().is_dir(), reason="no shipped router in this checkout")
def test_shipped_router_loads() -> None:
    assert Router.from_pretrained(default_router_path()).scales == SCALES


def test_a_second_look_is_fitted_where_asked_for_and_pays(
    data, telling, fitted, looked, report, tmp_path: Path
) -> None:
    assert fitted.router.second_look is None
    with pytest.raises(TrainingError, match="leave out --cost flops"):
        fit(data, second_look=True, cost="flops")
    made = looked.router
    assert made.policy == fitted.router.policy
    assert made.predictor_hash == fitted.router.predictor_hash
    look = Router.from_pretrained(made.save_pretrained(tmp_path / "router")).second_look
    assert look == made.second_look is not None
    facts = made.metadata["second_look"]
    assert (
        facts["cost"]
        < facts["single_look_cost"]
        == pytest.approx(fitted.router.metadata["on_calibration"]["cost"])
    )
    assert facts["accuracy"] >= 0.98 * facts["finest_accuracy"]
    assert "Second look, to keep 98.0%: starts at" in made.card_text
    judged = evaluate(made, telling, target=0.98, resamples=100)
    found, both = judged["second_look"], judged["router"]
    assert found["single_look"]["visual_tokens"] == report["router"]["visual_tokens"]
    for key in ("accuracy", "visual_tokens"):
        difference = both[key] - report["router"][key]
        assert found["minus_single_look"][key]["mean"] == pytest.approx(difference)
    assert both["visual_tokens"] < report["router"]["visual_tokens"]
    assert "Both looks are counted" in markdown(judged)
    rows = replay([("one", fitted.router), ("two", made)], telling.split("test"), resamples=100)
    assert [row["visual_tokens"] for row in rows] == [
        report["router"]["visual_tokens"], both["visual_tokens"],
    ]  # fmt: skip


def test_one_look_is_priced_for_less_where_only_two_keep_the_target(telling) -> None:
    kept = fit(telling, target=1.0, second_look=True)
    facts = kept.router.metadata["second_look"]
    assert facts["kept"]
    assert facts["target"] == 1.0
    assert facts["single_look_target"] in LESSER
    assert not kept.router.policy.finest_only
    share = facts["single_look_target"]
    alone = fit(telling, target=share).router
    assert kept.router.price == alone.price
    assert any(f"priced for {share:.1%}" in line for line in kept.advice)
    assert f"chosen to keep {share:.1%}" in kept.router.card_text
    # Without a second look the target is kept by the finest scale alone, and that is said.
    assert fit(telling, target=1.0).router.policy.finest_only
