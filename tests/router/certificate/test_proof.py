"""Certified prices: exact small cases, monotone bounds, validity by simulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.certificate.proof import (
    certified_member,
    clopper_pearson,
    keeps,
    log_capital,
    picture_losses,
    price_family,
    question_losses,
    upper_bound,
)
from router.policy import choose_many

COSTS = (1 / 576, 9 / 576, 36 / 576, 144 / 576, 1.0)


# scipy.stats.beta.ppf(1 - delta, k + 1, n - k), scipy 1.17.1, for delta .05 and .1
BETA_QUANTILES = {
    (0, 1): (0.95, 0.9),
    (0, 298): (0.01000243, 0.00769702),
    (3, 40): (0.18258685, 0.15944931),
    (17, 900): (0.02819853, 0.02613255),
    (39, 40): (0.99871849, 0.99736945),
}


@pytest.mark.parametrize(("k", "n"), BETA_QUANTILES)
def test_clopper_pearson_is_the_beta_quantile(k: int, n: int) -> None:
    found = [clopper_pearson(k, n, delta) for delta in (0.05, 0.1)]
    assert found == pytest.approx(BETA_QUANTILES[k, n], abs=1e-8)
    assert clopper_pearson(n, n, 0.05) == 1.0


def test_clopper_pearson_without_an_event_has_a_closed_form() -> None:
    assert clopper_pearson(0, 298, 0.05) == pytest.approx(1 - 0.05 ** (1 / 298), abs=2e-9)
    with pytest.raises(ValueError, match="is no count"):
        clopper_pearson(3, 2, 0.05)


def test_capital_is_the_product_of_the_bets() -> None:
    """The same numbers from a loop written from the paper, bet by bet."""
    losses = np.array([0.0, 0.25, 0.0, 1.0, -0.5, 0.0])
    level, delta, n = 0.3, 0.05, len(losses)
    wealth, best, seen = 1.0, -np.inf, []
    means, total = [], 0.25
    for t, loss in enumerate(losses, 1):
        variance = total / t
        bet = min(np.sqrt(2 * np.log(1 / delta) / (n * variance)), 0.99 / (1 - level))
        wealth *= 1 + bet * (level - loss)
        best = max(best, np.log(wealth))
        seen.append(loss)
        means.append((0.5 + sum(seen)) / (t + 1))
        total = 0.25 + sum((x - m) ** 2 for x, m in zip(seen, means, strict=True))
    assert log_capital(losses, level, delta) == pytest.approx(best)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-1.0, 1.0), min_size=1, max_size=60), st.floats(0.01, 0.9))
def test_a_looser_level_is_never_harder_to_keep(losses: list[float], level: float) -> None:
    x = np.array(losses)
    assert log_capital(x, level, 0.05) <= log_capital(x, level + 0.05, 0.05) + 1e-9
    bound = upper_bound(x, 0.05)
    assert bound == 1.0 or keeps(x, bound, 0.05)
    assert bound <= 1e-8 or not keeps(x, bound - 1e-8, 0.05)
    assert upper_bound(x, 0.2) <= bound + 1e-9


def test_more_pictures_without_a_loss_bound_tighter() -> None:
    bounds = [upper_bound(np.zeros(n), 0.05) for n in (50, 100, 400, 1600)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < 0.003


@pytest.mark.parametrize(("mean", "kind"), [(0.02, "shares"), (0.05, "events"), (0.02, "signed")])
def test_betting_is_wrong_as_rarely_as_promised(mean: float, kind: str) -> None:
    """4,000 samples from worlds whose mean is exactly the level: at most delta are accepted."""
    rng, runs, n, delta = np.random.default_rng(5), 4000, 400, 0.1
    if kind == "events":
        losses = (rng.random((runs, n)) < mean).astype(float)
    elif kind == "shares":  # one question of five, in five times as many pictures
        losses = 0.2 * (rng.random((runs, n)) < 5 * mean)
    else:
        losses = 0.25 * rng.choice([1.0, 0.0, -1.0], (runs, n), p=[0.14, 0.8, 0.06])
        assert mean == pytest.approx(0.25 * (0.14 - 0.06))
    accepted = (log_capital(losses, mean, delta) >= -np.log(delta)).mean()
    assert accepted <= delta + 3 * np.sqrt(delta * (1 - delta) / runs)
    assert (log_capital(losses, 3 * mean, delta) >= -np.log(delta)).mean() > 0.8  # and has power


def test_the_family_leads_from_always_finest_to_always_coarsest() -> None:
    prices = price_family(COSTS)
    assert (np.diff(prices) > 0).all()
    assert 0.0 in prices
    values = np.array(list(itertools.product((0.0, 0.5, 1.0), repeat=5)))
    assert (choose_many(values, COSTS, prices[0]) == 4).all()
    assert (choose_many(values, COSTS, prices[-1]) == 0).all()
    spent = [np.take(COSTS, choose_many(values, COSTS, p)).mean() for p in prices]
    assert (np.diff(spent) <= 1e-12).all()
    with pytest.raises(ValueError, match="finest scale must cost more"):
        price_family((0.5, 1.0, 1.0))


def test_losses_by_hand() -> None:
    outcomes = np.array([[1.0, 1.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    coarse = np.zeros(4, dtype=np.intp)
    assert question_losses(outcomes, coarse, "harm").tolist() == [0, 1, 0, 0]
    assert question_losses(outcomes, coarse, "drop").tolist() == [0, 1, -1, 0]
    table = picture_losses(
        np.zeros((4, 2)),
        outcomes,
        (0.1, 1.0),
        np.array([0, 0, 0, 1]),
        np.array([-9.0, 1.0]),
        "harm",
    )
    assert table == pytest.approx(np.array([[0, 0], [0, 0], [1 / 3, 0]]))


def test_the_sequence_stops_at_the_first_failure() -> None:
    n = 400
    bad = np.full(n, 0.5)
    family = np.stack([np.zeros(n), np.zeros(n), np.zeros(n), bad, np.zeros(n)])
    assert certified_member(family, 0.05, 0.05) == 2  # the last one would pass, but is not tried
    assert certified_member(family[:3], 0.05, 0.05) == 2
    assert certified_member(np.stack([np.zeros(n), bad]), 0.05, 0.05) == 0
    assert certified_member(family[:, :20], 0.05, 0.05) == 0  # too few pictures to show anything
    with pytest.raises(ValueError, match="always the finest"):
        certified_member(family[::-1][1:], 0.05, 0.05)


def test_clopper_pearson_needs_one_question_a_picture() -> None:
    """Five questions that fail together, counted as five: wrong far more often than promised."""
    rng, level, wrong, runs = np.random.default_rng(1), 0.05, 0, 400
    for _ in range(runs):
        pictures = rng.random(100) < level
        wrong += clopper_pearson(5 * int(pictures.sum()), 500, 0.1) < level
    assert wrong / runs > 0.2
