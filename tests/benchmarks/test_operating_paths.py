"""Paths of settings, worked by hand: chosen on one set of questions, walked on another."""

from __future__ import annotations

import numpy as np
import pytest
from _operating_paths import Draws, Runs, Walk, interval_of


def runs(score, cost):
    score, cost = np.array(score, float), np.array(cost, float)
    return Runs(score, cost, np.ones_like(score))


def test_the_path_is_chosen_on_calibration_and_walked_on_test():
    # Settings: cheap (0.5 right), middle (0.5 right too: not on the hull), dear (all right).
    calibration = runs([[1, 0], [1, 0], [1, 1]], [[1, 1], [2, 2], [3, 3]])
    test = runs([[0, 0, 1, 0], [1, 1, 1, 1], [0, 1, 1, 1]], [[1] * 4, [2] * 4, [3, 3, 3, 7]])
    walk = Walk.along(calibration, test, Draws.of(np.array([0, 0, 1, 2]), resamples=5))
    assert calibration.on_hull() == [0, 2]
    assert walk.accuracy[0].tolist() == [0.25, 0.75]  # the test's better middle is not taken
    assert walk.cost[0].tolist() == [1.0, 4.0]


def test_budgets_and_accuracies_mix_neighbours():
    one = np.ones(1)
    walk = Walk(np.array([[0.5, 0.7, 0.9]]), np.array([[1.0, 2.0, 6.0]]), np.array([[1, 1, 2.0]]))
    accuracy, answers = walk.at_cost(4 * one)
    assert (accuracy[0], answers[0]) == pytest.approx((0.8, 1.5))
    assert walk.at_cost(9 * one)[0] == pytest.approx(0.9)
    assert np.isnan(walk.at_cost(0.5 * one)[0])
    assert walk.at_accuracy(0.6 * one) == pytest.approx(1.5)
    assert np.isnan(walk.at_accuracy(0.95 * one))


def test_an_accuracy_that_dips_is_reached_where_it_first_came():
    walk = Walk(np.array([[0.5, 0.8, 0.7]]), np.array([[1.0, 2.0, 3.0]]), np.ones((1, 3)))
    assert walk.at_accuracy(np.array([0.8])) == pytest.approx(2.0)


def test_draws_weigh_whole_pictures():
    pictures = np.array([0, 0, 1, 2, 2, 2])
    values = np.array([[1.0, 0.0, 1.0, 0.0, 0.0, 1.0]])
    draws = Draws.of(pictures, resamples=50, seed=3)
    means = draws.means(values)[:, 0]
    assert means[0] == pytest.approx(0.5)
    for weights, mean in zip(draws.weights, means, strict=True):
        repeated = np.concatenate(
            [np.tile(values[0, pictures == p], int(w)) for p, w in enumerate(weights)]
        )
        assert mean == pytest.approx(repeated.mean())


def test_settings_are_joined_in_order():
    both = Runs.joined([runs([[0, 1]], [[1, 1]]), runs([[1, 1]], [[2, 4]])])
    assert both.score.mean(axis=1).tolist() == [0.5, 1.0]
    assert both.cost.mean(axis=1).tolist() == [1.0, 3.0]


def test_an_interval_needs_its_values():
    draws = np.concatenate([[0.5], np.linspace(0.0, 1.0, 401)])
    found = interval_of(draws)
    assert found == pytest.approx({"mean": 0.5, "low": 0.025, "high": 0.975})
    assert interval_of(np.concatenate([[np.nan], draws[1:]])) is None
    assert interval_of(np.where(draws > 0.9, np.nan, draws)) is None
