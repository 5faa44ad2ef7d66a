"""What bets let through: worked by hand at the edges, by simulation between them."""

import re
from dataclasses import replace

import numpy as np
import pytest

from training.promotion.weighing import (
    DELTA,
    EPSILON,
    Evidence,
    Floor,
    Played,
    bounded,
    least_pictures,
    weigh,
)


def evidence(pictures: int, *, tokens: float = 9.0, seed: int = 0, **gains: float) -> Evidence:
    """One question a picture, 4 % of the answers differ; the router in force reads 36 tokens.

    Gains are those of the candidate over the incumbent, the reference, the finest scale.
    """
    rng = np.random.default_rng(seed)
    ours = (rng.random(pictures) < 0.9).astype(float)

    def other(gain: float) -> Played:
        # Exact shares, so that nothing but the order is left to chance.
        differ, won = round(0.04 * pictures), round((0.04 + gain) / 2 * pictures)
        change = rng.permutation(np.r_[-np.ones(won), np.ones(differ - won)])
        right = ours.copy()
        places = np.r_[
            rng.permutation(np.flatnonzero(ours == 1))[:won],
            rng.permutation(np.flatnonzero(ours == 0))[: differ - won],
        ]
        right[places] += np.sort(change)
        return Played("other", right, np.full(pictures, 36.0))

    incumbent = other(gains.get("incumbent", 0.0))
    reference = other(gains["reference"]) if "reference" in gains else None
    ours_played = Played("ours", ours, np.full(pictures, tokens))
    finest = other(gains["floor"]).score if "floor" in gains else ours
    return Evidence(
        np.arange(pictures), ours_played, incumbent, reference, finest, Floor(0.995), 36.0
    )


def test_as_good_and_cheaper_passes() -> None:
    verdict = weigh(evidence(7000, reference=0.0))
    assert verdict.passed
    assert verdict.missing == 0
    assert "it saves 27.0 of 36.0 visual tokens a question" in verdict.sentence
    assert {check.name: check.passed for check in verdict.checks} == {
        "incumbent": True, "floor": True, "reference": True, "tokens": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"incumbent": -0.02}, r"worse than the router in force \(-2\.00 points.*would not show"),
        ({"reference": -0.02}, r"worse than the reference router \(-2\.00 points"),
        ({"floor": -0.03}, r"worse than the floor that the finest scale sets"),
        ({"tokens": 36.0}, r"not shown to be cheaper \(it saves \+0\.0 visual tokens"),
        ({"tokens": 36.0, "incumbent": 0.008}, r"not shown to be cheaper"),
    ],
)
def test_what_is_not_shown_is_refused(changes: dict[str, float], says: str) -> None:
    verdict = weigh(evidence(7000, **changes))
    assert not verdict.passed
    assert re.search(says, verdict.sentence), verdict.sentence
    assert verdict.missing is None


def test_a_dearer_router_passes_by_its_certificate_or_where_it_mends_a_loss() -> None:
    dearer = evidence(7000, tokens=36.0)
    assert not weigh(dearer).passed
    assert weigh(replace(dearer, stronger="it is certified")).why[-1] == "it is certified"
    mends = weigh(evidence(7000, tokens=36.0, incumbent=0.03))
    assert mends.passed
    assert mends.sentence.startswith("it answers better than the router in force (+3.00 points")


def test_of_always_the_finest_only_the_floor_must_be_kept() -> None:
    """A first router may lose what its target allows: .5 point here, which shows at 7,000; as a
    loss against a router in force it would not."""
    first = evidence(7000, incumbent=-0.007, floor=-0.007)
    assert not weigh(first).passed
    finest = replace(first.incumbent, version="")
    verdict = weigh(replace(first, incumbent=finest))
    assert verdict.passed, verdict.sentence
    assert [check.name for check in verdict.checks] == ["floor", "tokens"]
    assert verdict.sentence.startswith("it answers as well as the finest scale's floor (")


def test_a_certified_loss_is_what_the_floor_allows() -> None:
    lost = evidence(7000, floor=-0.02)
    assert not weigh(lost).passed
    assert weigh(replace(lost, floor=Floor(1.0, 0.02))).passed


def test_below_the_least_number_nothing_passes_and_what_is_missing_is_said() -> None:
    """No difference anywhere is the easiest case: by hand, capital grows by at most
    1 + .99 / .495 * .005 = 1.01 a picture, and 1.01 ** 394 > 1 / DELTA."""
    assert 393 < least_pictures() < 430
    same = evidence(least_pictures())
    same = replace(same, incumbent=replace(same.incumbent, score=same.candidate.score))
    assert weigh(same).passed
    few = weigh(evidence(least_pictures() - 1))
    assert (few.passed, few.missing) == (False, 1)
    assert "1 more are missing" in few.sentence
    assert weigh(evidence(0)).missing == least_pictures()


def test_what_is_said_to_be_missing_is_about_what_it_takes() -> None:
    short = weigh(evidence(2000))
    assert not short.passed
    assert short.missing is not None
    assert f"about {short.missing:,} more fresh audited pictures are missing" in short.sentence
    assert weigh(evidence(2000 + short.missing + 500)).passed
    assert not weigh(evidence(2000 + short.missing // 2)).passed


def test_the_ends_are_wrong_no_more_often_than_said() -> None:
    """Skewed gains of a known mean: a rare large loss among small wins."""
    rng, mean = np.random.default_rng(0), 0.95 * 0.05 - 0.05
    draws = np.where(rng.random((200, 300)) < 0.05, -1.0, 0.05)
    ends = [bounded(draw) for draw in draws]
    assert np.mean([each.low > mean for each in ends]) <= DELTA
    assert np.mean([each.high < mean for each in ends]) <= DELTA


def test_pictures_count_once_however_many_questions_they_have() -> None:
    """A thousand pictures of ten equal questions say no more than a thousand."""
    once = evidence(1000)
    tenfold = Evidence(
        np.repeat(once.units, 10), *(
            Played("x", np.repeat(p.score, 10), np.repeat(p.tokens, 10))
            for p in (once.candidate, once.incumbent)
        ), None, np.repeat(once.finest, 10), once.floor, once.most_tokens,
    )  # fmt: skip
    assert weigh(tenfold).checks == weigh(once).checks
    assert EPSILON == 0.01
