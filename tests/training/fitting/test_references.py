"""Rows without a reference beside rows with one: agreement never passes for being right."""

from dataclasses import replace

import numpy as np
import pytest

from router.actions import uniform_space
from router.features import feature_schema
from training.errors import TrainingError
from training.fitting.predictor import fit_predictor, labels_of
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
