"""Rows without a reference beside rows with one: agreement never passes for being right.

Neither where a predictor learns, nor where a price is chosen, a router certified or judged.
"""

from dataclasses import replace

import numpy as np
import pytest

from router.actions import uniform_space
from router.features import feature_schema
from training.errors import ScoresSayNothing, TrainingError
from training.evaluation.evaluate import evaluate
from training.fitting.calibration_parts import certifying
from training.fitting.certify import certify
from training.fitting.fit import fit, parts_of
from training.fitting.predictor import fit_predictor, labels_of
from training.fitting.references import LEAST_TOLD
from training.fitting.telling import untelling_kinds
from training.oracle.data import OracleData

SCALES = (1, 9, 36)
SCHEMA = feature_schema(SCALES, 6, 4)
WIDTH = len(SCHEMA.names)


def drawn(n: int, seed: int, known: float) -> tuple[OracleData, np.ndarray]:
    """Return questions of which a share has a reference, and (n, A) the chance to be right.

    The first feature tells how often the finest is right (.3 or .9), the second how often a coarser
    answer is the finest's (.5 or .95); a coarser answer that differs is wrong.
    """
    random = np.random.default_rng(seed)
    features = np.zeros((n, WIDTH), np.float32)
    features[:, :2] = random.choice([-1, 1], (n, 2)) + 0.1 * random.standard_normal((n, 2))
    finest = np.where(features[:, 0] < 0, 0.3, 0.9)
    same = np.where(features[:, 1] < 0, 0.5, 0.95)
    agrees = np.stack([random.random(n) < same, random.random(n) < same, np.ones(n)], axis=1)
    right = agrees * (random.random(n) < finest)[:, None]
    told = random.random(n) < known
    scores = np.where(told[:, None], right, agrees).astype(float)
    names = np.array([f"{seed}-{row}" for row in range(n)])
    data = OracleData(
        picture_ids=names, units=names, question_ids=names, groups=np.array(["d/k"] * n),
        scores=scores, soft=scores, confidence=scores, features=features, has_reference=told,
        metrics=np.where(told, "exact_match", "agreement"), thresholds=np.full(n, 0.5),
        size_px=np.full(n, np.nan), metadata=[{}] * n,
        visual_tokens=np.tile(np.array(SCALES, float), (n, 1)), space=uniform_space(SCALES),
        flops=None, schema=SCHEMA, feature_schema=SCHEMA.hash, model_hash="m", sources=("log",),
        data_hash="d",
    )  # fmt: skip
    return data, np.stack([same * finest, same * finest, finest], axis=1)


def predicted(train: OracleData, held: OracleData, asked: OracleData) -> np.ndarray:
    return fit_predictor((train.features, held.features), train, held).predict_proba(asked.features)


@pytest.fixture(scope="module")
def asked() -> tuple[OracleData, np.ndarray]:
    return drawn(400, 9, 1.0)


def test_agreement_is_brought_to_being_right(asked: tuple[OracleData, np.ndarray]) -> None:
    """Four of five rows know nothing of the finest: learnt as right, its chance would be .92."""
    train, held = drawn(2000, 0, 0.2)[0], drawn(1000, 1, 0.2)[0]
    questions, truth = asked
    found = predicted(train, held, questions)
    assert found.mean(axis=0) == pytest.approx(truth.mean(axis=0), abs=0.06)
    assert np.abs(found - truth).mean() < 0.1
    blind = found[questions.features[:, 0] < 0, -1]
    assert blind.mean() == pytest.approx(0.3, abs=0.08)


def test_too_few_references_are_left_out(asked: tuple[OracleData, np.ndarray]) -> None:
    train, held = drawn(800, 2, 0.02)[0], drawn(400, 3, 0.02)[0]
    assert 0 < held.has_reference.sum() < 30
    alone = [part.take(~part.has_reference) for part in (train, held)]
    questions = asked[0]
    mixed, apart = predicted(train, held, questions), predicted(*alone, questions)
    assert np.array_equal(mixed, apart)
    assert mixed[:, -1].min() > 0.99  # of the finest, agreement says nothing else


def test_graded_scores_are_learnt_themselves() -> None:
    data, _ = drawn(4, 0, 1.0)
    data.metrics[:] = ["exact_match", "anls", "choice", "token_f1"]
    data.soft[:] = 0.125
    labels = labels_of(data)
    assert (labels[[0, 2]] == 0.125).all()
    assert (labels[[1, 3]] == data.scores[[1, 3]]).all()


def test_a_question_without_likelihoods_is_learnt_from_its_scores() -> None:
    """Beside others: NaN is no label, and nothing of a row whose likelihoods are half known."""
    data, _ = drawn(6, 3, 1.0)
    soft = np.full((6, 3), 0.25)
    soft[2], soft[4, 1] = np.nan, np.nan
    told = replace(data, soft=soft)
    wanted = np.full((6, 3), 0.25)
    wanted[[2, 4]] = data.scores[[2, 4]]
    np.testing.assert_array_equal(labels_of(told), wanted)
    np.testing.assert_array_equal(labels_of(told, "hard"), data.scores)
    with pytest.raises(TrainingError, match="2 of 6 training questions lack"):
        labels_of(told, "soft")


def sold_short(n: int = 4000, seed: int = 0) -> OracleData:
    """Return questions that no feature tells apart, a quarter of them with a reference.

    The finest is right on half of those, the coarser ones lose 6 of 100 of its right answers. The
    others always agree. So a coarse scale keeps 94 % of the finest's accuracy. Counted together it
    would seem to keep (0.25 x 0.47 + 0.75) / (0.25 x 0.5 + 0.75) = 99.1 %.
    """
    random = np.random.default_rng(seed)
    told, finest = random.random(n) < 0.25, random.random(n) < 0.5
    coarse = finest & (random.random(n) < 0.94)
    right = np.stack([coarse, coarse, finest], axis=1)
    scores = np.where(told[:, None], right, True).astype(float)
    data = drawn(n, seed, 1.0)[0]
    return replace(
        data, scores=scores, soft=scores, confidence=scores, has_reference=told,
        features=np.zeros((n, WIDTH), np.float32),
        metrics=np.where(told, "exact_match", "agreement"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def mixed() -> OracleData:
    return sold_short()


def test_a_price_is_not_sold_short_by_agreement(mixed: OracleData) -> None:
    """At 98 % of the finest's accuracy a scale that keeps 94 % is no choice."""
    made = fit(mixed, target=0.98)
    here = made.metrics["on_calibration"]
    assert here["cost"] == 1.0
    assert here["finest_accuracy"] == pytest.approx(0.5, abs=0.08)
    parts = parts_of(mixed, "tokens")
    assert parts.pricing.has_reference.all()
    assert parts.fitting.has_reference.all()
    assert not parts.train.has_reference.all()
    [said] = [line for line in made.advice if line.startswith("price: ")]
    assert "without a reference do not count beside those with one" in said
    assert made.router.metadata["priced_apart"] in said
    assert made.router.metadata["priced_apart"] in made.router.card_text


def test_with_few_references_agreement_prices_alone(mixed: OracleData) -> None:
    few = mixed.take(~mixed.has_reference | (np.arange(len(mixed)) < 100))
    parts = parts_of(few, "tokens")
    assert 0 < few.split("calibration").has_reference.sum() < LEAST_TOLD
    assert not parts.pricing.has_reference.any()
    assert not parts.fitting.has_reference.any()
    assert parts.apart is not None


def test_data_of_one_kind_are_left_as_they_are(mixed: OracleData) -> None:
    for rows in (mixed.has_reference, ~mixed.has_reference):
        data = mixed.take(rows)
        parts = parts_of(data, "tokens")
        assert parts.apart is None
        assert len(parts.pricing) + len(parts.fitting) == len(data.split("calibration"))


def test_agreement_does_not_hide_that_no_answer_matched_a_reference(mixed: OracleData) -> None:
    """Three of four rows agree, so the finest would seem right on 75 %."""
    wrong = np.where(mixed.has_reference[:, None], 0.0, np.array([0.9, 1.0, 1.0]))
    with pytest.raises(ScoresSayNothing, match=r"right on 0\.0% of \d+ questions .*exact match"):
        fit(replace(mixed, scores=wrong))
    assert list(untelling_kinds(replace(mixed, scores=wrong))) == ["d/k"]


def test_audits_price_by_the_kind_that_they_have_enough_of(mixed: OracleData) -> None:
    """References of other data do not stand in for what the traffic shows."""
    traffic = mixed.take(~mixed.has_reference)
    parts = parts_of(mixed, "tokens", traffic)
    assert not parts.pricing.has_reference.any()
    assert set(parts.pricing.units.tolist()) <= set(traffic.units.tolist())
    assert parts.audits == parts.pricing.n_pictures >= 100
    some = parts_of(mixed, "tokens", traffic.take(np.arange(300)))
    assert some.pricing.has_reference.all()
    assert some.audits is not None
    assert some.audits < 100


def test_a_certificate_counts_disagreement_as_lost_and_tells_how_often_the_finest_is_right(
    mixed: OracleData,
) -> None:
    router = fit(mixed, target=0.98).router
    found = certify(router, mixed, loss="harm", bound=0.05)
    on = certifying(mixed)
    assert found.questions == len(on)
    assert found.finest_right == on.scores[on.has_reference, -1].mean() < 0.6


def test_a_report_judges_one_kind_and_says_so(mixed: OracleData) -> None:
    said: list[str] = []
    report = evaluate(fit(mixed, target=0.98).router, mixed, resamples=100, say=said.append)
    test = mixed.split("test")
    known = test.take(test.has_reference)
    assert report["n_questions"] == len(known) < len(test)
    assert report["finest_accuracy"] == pytest.approx(known.scores[:, -1].mean())
    assert report["scored_by"] == "exact match"
    assert said == [
        f"test: {len(test) - len(known)} of {len(test)} questions without a reference do not count "
        "beside those with one: agreement with the finest scale is not being right"
    ]
