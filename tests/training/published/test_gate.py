"""The gate on routers and oracle data: who is live, what is fresh, what is refused and why."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from router import Certificate, ComplexityPredictor, Policy, Router, default_router_path
from router.actions import ActionSpace, CellRule, uniform_space
from router.certificate.promise import Rung
from router.certificate.proof import betting_order
from router.policy import token_costs
from training.errors import TrainingError
from training.oracle.data import OracleData, read_oracle
from training.promotion.gate import (
    Contender,
    at_the_gate,
    judge,
    live,
    tightest_harm,
)
from training.promotion.seen import SEEN_FILE, marks, read_seen, write_seen
from training.promotion.verdict_report import write_verdict
from training.promotion.weighing import least_pictures
from training.registry.changes import promote

from .conftest import FOCUS_SPACE, SCALES, SCHEMA, write_oracle

NOTHING_SEEN = np.zeros(0, np.uint64)
CHEAP, MIDDLE, DEAR = 9.0, 0.1, 0.0  # prices: always the coarsest, always 9, always the finest


@cache
def router(price: float, *, model: str | None = "feed", space: ActionSpace | None = None) -> Router:
    """A router that finds the coarsest scale bad and all else good, the finest a little better."""
    space = uniform_space(SCALES) if space is None else space
    chances = np.array([0.2, *[0.8] * (len(space) - 2), 0.9])
    features = np.random.default_rng(0).normal(size=(200, len(SCHEMA.names)))
    right = np.random.default_rng(1).random((200, len(space))) < chances
    predictor = ComplexityPredictor(n_estimators=3).fit(features, right)
    facts = {} if model is None else {"model_hash": model}
    return Router(predictor, SCHEMA, Policy(token_costs(SCALES), price), metadata=facts,
                  space=space)  # fmt: skip


def fresh(price: float, **more: object) -> Contender:
    return Contender("it", router(price, **more), NOTHING_SEEN)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def audits(tmp_path_factory: pytest.TempPathFactory) -> OracleData:
    """450 pictures: of "easy" all scales are right, of "middle" the two finer, of "lost" the
    middle alone, of "never" none. The finest is never right on the last two: they say nothing."""
    return read_oracle([write_oracle(tmp_path_factory.mktemp("audits") / "a", pictures=450)])


FINEST = Contender("always the finest scale")


def test_as_good_and_cheaper_than_the_finest_goes_live(audits: OracleData) -> None:
    verdict = judge(fresh(MIDDLE), FINEST, None, audits)
    assert verdict.passed, verdict.sentence
    assert (verdict.pictures, verdict.questions) == (450, 900)
    assert verdict.facts["candidate"]["accuracy"] == 1.0
    assert verdict.facts["incumbent"]["visual_tokens"] == 36.0
    assert "it saves 27.0 of 36.0 visual tokens" in verdict.sentence
    left_out = "left out: questions of kind scenes/never, of which the finest scale answers 0.0%"
    assert left_out in verdict.notes
    assert any(note.startswith("judged on scenes: only a uniform") for note in verdict.notes)


@pytest.mark.parametrize(
    ("price", "incumbent", "reference", "says"),
    [
        (CHEAP, MIDDLE, None, "worse than the router in force (-50.00 points"),
        (CHEAP, CHEAP + 1, MIDDLE, "worse than the reference router"),
        (CHEAP, CHEAP + 1, None, "worse than the floor that the finest scale sets"),
        (DEAR, MIDDLE, None, "not shown to be cheaper (it saves -27.0 visual tokens"),
        (MIDDLE, MIDDLE + 0.01, None, "not shown to be cheaper (it saves +0.0"),
    ],
)
def test_a_worse_or_dearer_one_does_not(
    audits: OracleData, price: float, incumbent: float, reference: float | None, says: str
) -> None:
    pin = None if reference is None else fresh(reference)
    verdict = judge(fresh(price), fresh(incumbent), pin, audits)
    assert not verdict.passed
    assert says in verdict.sentence
    assert verdict.missing is None


OTHER_RULE = replace(FOCUS_SPACE.actions[1], rule=CellRule(400, "none", 5))
STRANGE = ActionSpace((FOCUS_SPACE.actions[0], OTHER_RULE, *FOCUS_SPACE.actions[2:]))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"model": "beef"}, "is for model beef, the audits are of feed"),
        ({"model": None}, "is for model None"),
        ({"space": STRANGE}, "the data do not hold the actions 1+36@500x5"),
    ],
)
def test_what_cannot_be_compared_is_refused(audits: OracleData, more: dict, says: str) -> None:
    """Whichever side it stands on: unknown means refused."""
    strange, known = fresh(MIDDLE, **more), fresh(DEAR)
    for sides in ((strange, known, None), (known, strange, None), (known, FINEST, strange)):
        verdict = judge(*sides, audits)
        assert not verdict.passed
        assert verdict.sentence.startswith("not comparable: it")
        assert says in verdict.sentence


def test_scores_that_say_nothing_pass_nobody(audits: OracleData) -> None:
    """All wrong, every answer costs nothing to lose: 36 tokens to 1 would look ideal."""
    for scores, says in (
        (0.0, "the finest scale is right on 0.0% of 1800 questions (scored by exact match)"),
        (1.0, "every action scores the same on each of 1800 questions"),
    ):
        same = replace(audits, scores=np.full_like(audits.scores, scores))
        verdict = judge(fresh(CHEAP), FINEST, None, same)
        assert not verdict.passed
        assert verdict.sentence.startswith(says)


@pytest.mark.parametrize(("known", "judged"), [(420, 420), (30, 420)])
def test_agreement_is_not_judged_beside_references(
    audits: OracleData, known: int, judged: int
) -> None:
    """Those with a reference judge where they suffice, else those without, never both."""
    told = audits.pictures < known
    verdict = judge(fresh(MIDDLE), FINEST, None, replace(audits, has_reference=told))
    assert verdict.pictures == judged
    kinds = ("without", "with") if known == judged else ("with", "without")
    gone = (~told if known == judged else told).sum()
    assert any(
        note.startswith(f"{gone} of {len(audits)} questions {kinds[0]} a reference do not count")
        and f"beside those {kinds[1]} one" in note
        for note in verdict.notes
    )


def test_pictures_that_shaped_a_router_are_not_fresh(audits: OracleData) -> None:
    """With 450 pictures the test split alone is too small; what neither saw is enough."""
    test = audits.split("test").n_pictures
    by_rule = judge(replace(fresh(MIDDLE), seen=None), FINEST, None, audits)
    assert (by_rule.passed, by_rule.pictures) == (False, test)
    assert by_rule.missing == least_pictures() - test
    assert f"{by_rule.missing} more are missing to the {least_pictures()}" in by_rule.sentence
    names = np.unique(audits.picture_ids)
    seen = replace(fresh(MIDDLE), seen=marks(names[:10].tolist()))
    assert judge(seen, FINEST, None, audits).pictures == 440
    other = replace(fresh(DEAR), seen=marks(names[5:25].tolist()))
    assert judge(seen, other, None, audits).pictures == 425
    assert judge(seen, FINEST, other, audits).pictures == 425


def test_what_a_router_saw_lies_beside_it(audits: OracleData, tmp_path: Path) -> None:
    folder = router(MIDDLE).save_pretrained(tmp_path / "r")
    assert Contender.read("it", folder).seen is None
    write_seen(folder, audits)
    found = Contender.read("it", folder)
    assert set(np.unique(audits.picture_ids[found.unseen(audits)])) == set(
        audits.split("test").picture_ids
    )
    assert Router.from_pretrained(folder).version == found.version
    promoted = promote(folder, tmp_path / "registry")
    assert read_seen(promoted).tolist() == found.seen.tolist()
    # Certified on other data: both shaped it. Where one is not known the rule of splits is safe.
    part = audits.take(audits.pictures < 100)
    write_seen(tmp_path / "r", part, promoted)
    assert len(read_seen(folder)) == len(found.seen)
    write_seen(folder, part, tmp_path / "nowhere")
    assert not (folder / SEEN_FILE).exists()
    (folder / SEEN_FILE).write_bytes(b"torn")
    assert read_seen(folder) is None


def test_the_order_of_the_bets_is_that_of_a_hash() -> None:
    names = np.array([f"doc-{number:03d}" for number in (3, 1, 3, 2, 0)])
    order = betting_order(names)
    assert sorted(set(order.tolist())) == [0, 1, 2, 3]
    assert order[0] == order[2]
    many = betting_order(np.array([f"{number:05d}" for number in range(1000)]))
    assert abs(np.corrcoef(many, np.arange(1000))[0, 1]) < 0.1


def test_who_is_live(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    assert live(registry, None, "feed") == replace(FINEST, assumed=True)
    given = router(DEAR).save_pretrained(tmp_path / "given")
    assert live(registry, given, "feed").version == router(DEAR).version
    promoted = promote(router(MIDDLE).save_pretrained(tmp_path / "promoted"), registry)
    found = live(registry, given, "feed")
    assert found.version == router(MIDDLE).version
    assert found.name == f"the router in force {promoted}"
    with pytest.raises(TrainingError, match="nowhere is not a usable router"):
        live(tmp_path / "empty", tmp_path / "nowhere", "feed")


@pytest.mark.skipif(not default_router_path().is_dir(), reason="no shipped router in this checkout")
def test_the_shipped_router_is_live_for_its_own_model_alone(tmp_path: Path) -> None:
    shipped = Router.from_pretrained(default_router_path())
    found = live(tmp_path / "registry", None, shipped.metadata["model_hash"])
    assert (found.version, found.assumed) == (shipped.version, True)
    assert tightest_harm(found.router) is not None


def test_a_log_that_another_router_answered_is_no_evidence(audits: OracleData) -> None:
    told = replace(audits, metadata=[{"router_version": "0123456789ab"}] * len(audits))
    verdict = judge(fresh(MIDDLE), replace(FINEST, assumed=True), None, told)
    assert not verdict.passed
    assert "answered by router 0123456789ab, not by always the finest scale" in verdict.sentence
    assert judge(fresh(MIDDLE), FINEST, None, told).passed  # told to be live


def certified(made: Router, bound: float) -> Router:
    found = Certificate(
        loss="harm", bound=bound, delta=0.05, method="betting", population="pictures",
        scored_by="exact match", pictures=500, questions=900, created_utc="2026-11-22T10:00:00",
        router_version=made.version, predictor_hash=made.predictor_hash, model_hash="feed",
        feature_schema=SCHEMA.hash, data_hash="d", prices=(0.1,),
        ladder=(Rung(bound / 2, None, 36.0, 0.0), Rung(bound, 0.1, 9.0, 0.0)), slices=(),
    )  # fmt: skip
    return made.with_certificate(found)


def test_a_stronger_certificate_stands_in_for_tokens(audits: OracleData) -> None:
    live_one = Contender("live", certified(router(MIDDLE + 0.01), 0.05), NOTHING_SEEN)
    ours = router(MIDDLE)
    for made, passes in ((certified(ours, 0.02), True), (certified(ours, 0.05), False)):
        verdict = judge(Contender("it", made, NOTHING_SEEN), live_one, None, audits)
        assert verdict.passed == passes
    bare = judge(fresh(MIDDLE), live_one, None, audits)
    assert not bare.passed
    assert any("requests with routing.max_harm would be refused" in note for note in bare.notes)


def test_the_verdict_is_written_in_words_numbers_and_a_plot(
    audits: OracleData, tmp_path: Path
) -> None:
    passed = judge(fresh(MIDDLE), FINEST, fresh(DEAR), audits)
    paths = write_verdict(passed, tmp_path / "deep" / "report")
    assert [path.name for path in paths] == ["verdict.json", "verdict.md", "verdict.png"]
    found = json.loads(paths[0].read_text())
    assert (found["passed"], found["forced"], found["missing"]) == (True, False, 0)
    assert [check["name"] for check in found["checks"]] == [
        "floor", "reference", "tokens",
    ]  # fmt: skip
    assert found["incumbent"]["version"] == ""
    assert "| visual tokens saved a question | +27.0 |" in paths[1].read_text()
    assert paths[2].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    few = judge(fresh(MIDDLE), FINEST, None, audits.split("test"))
    paths = write_verdict(few, tmp_path / "deep" / "report", forced=True)
    assert [path.name for path in paths] == ["verdict.json", "verdict.md"]
    assert not (tmp_path / "deep" / "report" / "verdict.png").exists()
    assert paths[1].read_text().startswith("# The gate: refused, and forced\n")


def test_given_a_log_and_more_the_log_judges(tmp_path: Path) -> None:
    """Scenes would drown it; alone they judge, and it is said."""
    log = write_oracle(tmp_path / "log", pictures=45, dataset="log", source="log", question="?")
    scenes = write_oracle(tmp_path / "scenes", pictures=450)
    folder = router(MIDDLE).save_pretrained(tmp_path / "it")
    both = at_the_gate(folder, tmp_path / "registry", (log, scenes))
    assert both.pictures == at_the_gate(folder, tmp_path / "registry", (log,)).pictures < 45
    assert not [note for note in both.notes if note.startswith("judged on")]
    alone = at_the_gate(folder, tmp_path / "registry", (scenes,))
    assert alone.pictures > both.pictures
    assert [note for note in alone.notes if note.startswith("judged on scenes")]


def test_without_audits_only_what_is_live_may_be_promoted(tmp_path: Path) -> None:
    registry, folder = tmp_path / "registry", router(MIDDLE).save_pretrained(tmp_path / "a")
    verdict = at_the_gate(folder, registry, ())
    assert not verdict.passed
    assert "nothing shows that it may replace always the finest scale" in verdict.sentence
    promoted = promote(folder, registry)
    assert at_the_gate(folder, registry, ()).passed
    (promoted / "config.json").write_text("{")
    assert "what is live cannot be read" in at_the_gate(folder, registry, ()).sentence


def test_the_command_refuses_says_why_and_can_be_forced(command, tmp_path: Path) -> None:
    oracle = write_oracle(tmp_path / "oracle", pictures=40)
    folder = router(MIDDLE).save_pretrained(tmp_path / "candidate")
    words = ["m3-train", "promote", "--router", folder, "--registry", tmp_path / "registry",
             "--oracle", oracle, "--verdict", tmp_path / "verdict"]  # fmt: skip
    done = command(*words)
    assert done.returncode == 2
    assert "fresh audited pictures cannot show anything" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "registry").exists()
    assert not json.loads((tmp_path / "verdict" / "verdict.json").read_text())["passed"]
    done = command(*words, "--force")
    assert done.returncode == 0, done.stderr
    assert "forced against the gate: " in done.stderr
    assert json.loads((tmp_path / "verdict" / "verdict.json").read_text())["forced"]
