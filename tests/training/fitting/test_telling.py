"""Scores that say nothing are refused, a kind of them is warned of, audits alone price."""

from dataclasses import replace

import numpy as np
import pytest

from training.errors import ScoresSayNothing
from training.fitting.calibration_parts import certifying
from training.fitting.fit import fit, parts_of
from training.fitting.telling import LEAST_RIGHT, warnings, why_untelling
from training.oracle.data import OracleData, read_oracle

from .test_certify import write_oracle


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> OracleData:
    """Two kinds of question about each of 300 pictures; the finest scale is always right."""
    return read_oracle([write_oracle(tmp_path_factory.mktemp("oracle") / "a", 300)])


def with_scores(data: OracleData, row: list[float]) -> OracleData:
    return replace(data, scores=np.tile(np.array(row), (len(data), 1)))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([0.0, 0.0, 0.0], r"scale is right on 0\.0% of \d+ questions \(scored by exact match\)"),
        ([1.0, 1.0, 1.0], r"every action scores the same on each .* right on 100\.0%"),
        ([1.0, 1.0, 0.02], r"the finest scale is right on 2\.0% of"),
    ],
)
def test_scores_that_say_nothing_teach_nothing(data: OracleData, row: list, says: str) -> None:
    with pytest.raises(ScoresSayNothing, match=says):
        fit(with_scores(data, row))


def test_few_questions_with_a_few_right_answers_are_data() -> None:
    """30 questions are the fewest that are fitted: two right ones are enough to go on."""
    scores = np.zeros((30, 3))
    scores[:2, -1] = 1.0
    assert why_untelling(scores, "exact match") is None
    scores[1, -1] = 0.0  # 1 of 30 is below the floor
    assert 1 / 30 < LEAST_RIGHT < 2 / 30
    assert why_untelling(scores, "exact match") is not None
    # Agreement with the finest answer: always right there, and coarser ones differ.
    agrees = np.ones((30, 3))
    agrees[0, 0] = 0.0
    assert why_untelling(agrees, "agreement with the finest") is None


def test_a_kind_that_is_never_right_is_warned_of_and_learnt_beside_the_others(
    data: OracleData,
) -> None:
    assert warnings(data) == []
    wrong = np.where((data.groups == "made/b")[:, None], 0.0, data.scores)
    [said] = warnings(replace(data, scores=wrong))
    assert said.startswith("the finest scale is right on 0.0% of the questions of kind made/b")
    assert said in fit(replace(data, scores=wrong)).advice
    coarse = data.scores.copy()
    coarse[:, 0] = 0.0
    assert warnings(replace(data, scores=coarse)) == [
        "every answer at 1 is wrong: about that nothing can be learnt"
    ]


def test_audits_alone_choose_the_price_where_they_suffice(
    data: OracleData, monkeypatch: pytest.MonkeyPatch
) -> None:
    pricing = np.unique(parts_of(data, "tokens").pricing.picture_ids)
    half = np.unique(certifying(data).picture_ids)[::2]
    audits = data.take(np.isin(data.picture_ids, half))
    few = fit(data, audits=audits)
    assert f"only {len(half)} audited pictures can choose the price" in " ".join(few.advice)
    assert few.router.policy == fit(data).router.policy
    assert "priced_on_audits" not in few.router.metadata
    assert set(parts_of(data, "tokens", audits).pricing.picture_ids) == set(pricing)
    monkeypatch.setattr("training.fitting.fit.PRICING_AUDITS", len(half))
    parts = parts_of(data, "tokens", audits)
    assert set(parts.pricing.picture_ids) == set(half)
    assert set(parts.fitting.picture_ids) == set(parts_of(data, "tokens").fitting.picture_ids)
    assert fit(data, audits=audits).router.metadata["priced_on_audits"] == len(half)
