"""The peers: their choices against loops, attention against the plain form, losses by hand."""

import math

import numpy as np
import pytest
import torch
from _peers import avg, families, models

SCALES = (1, 4, 16)


def test_thresholds_take_the_coarsest_scale_that_reaches_its_own() -> None:
    p = np.array([[0.9, 0.1, 0.1], [0.2, 0.8, 0.1], [0.2, 0.3, 0.1], [0.9, 0.9, 0.9]])
    family = families.by_threshold(p, p, [[0.5, 0.5, 0.5], [1.1, 0.25, 0.0]])
    assert family.test.tolist() == [[0, 1, 2, 0], [2, 1, 1, 1]]


def test_two_scales_goes_from_always_dear_to_always_cheap() -> None:
    wins = np.array([0.1, 0.4, 0.7])
    family = families.two_scales(wins, wins, cheap=0, dear=2, dials=3)
    assert family.test.tolist() == [[2, 2, 2], [0, 2, 2], [0, 0, 2], [0, 0, 0]]


def test_precise_thresholds_are_the_least_that_keep_the_share() -> None:
    p = np.array([[0.9, 0.0], [0.8, 0.0], [0.7, 0.0], [0.6, 0.0]])
    scores = np.array([[1, 1], [1, 1], [0, 1], [1, 1]], float)
    assert families.precise_thresholds(p, scores, 1.0) == [0.8, -np.inf]
    assert families.precise_thresholds(p, scores, 0.75) == [0.6, -np.inf]
    assert families.precise_thresholds(p, 1 - scores, 1.0) == [np.inf, -np.inf]


def test_the_operating_point_is_the_cheapest_setting_that_keeps_the_target() -> None:
    scores = np.tile(np.array([[0, 1, 1], [1, 1, 1]], float), (100, 1))
    wise, coarse, fine = np.tile([1, 0], 100), np.zeros(200, int), np.full(200, 2)
    family = families.Family(np.stack([coarse, wise, fine]), np.stack([coarse, wise, fine]))
    figures = families.judge_family(family, (scores, scores), np.arange(200), SCALES)
    assert figures["accuracy"] == 1.0
    assert figures["visual_tokens"] == pytest.approx(2.5)
    hopeless = families.Family(coarse[None], coarse[None])
    figures = families.judge_family(hopeless, (scores, scores), np.arange(200), SCALES)
    assert figures["visual_tokens"] == 16.0
    assert figures["tokens_at_0.99"] is None


def test_win_labels() -> None:
    scores = np.array([[1, 1], [0, 1], [1, 0], [0, 0]], float)
    assert models.wins(scores, 0, 1).ravel().tolist() == [0, 1, 0, 0]


def test_neighbours_equal_a_loop() -> None:
    rng = np.random.default_rng(0)
    X, scores = rng.normal(size=(120, 5)).astype(np.float32), rng.random((120, 2))
    near = models.Neighbours(X, scores, split=3)
    row = X[7:8] + 0.1
    x, known = near.scaled(row)[0], near.scaled(X)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    likeness = [cosine(x[:3], k[:3]) + cosine(x[3:], k[3:]) for k in known]
    nearest = np.argsort(likeness)[-models.NEIGHBOURS :]
    np.testing.assert_allclose(near(row)[0], scores[nearest].mean(axis=0))


def test_the_perceptron_learns_and_repeats_itself() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 4)).astype(np.float32)
    y = (X[:, :1] + np.array([0.0, 1.0]) > 0).astype(float)
    one, two = (models.MultiLayer((X[:500], y[:500]), (X[500:], y[500:]), 3) for _ in range(2))
    assert ((one(X[500:]) > 0.5) == (y[500:] > 0.5)).mean() > 0.93
    np.testing.assert_array_equal(one(X), two(X))


def test_shared_attention_equals_the_plain_form() -> None:
    torch.manual_seed(0)
    router, width = avg.AvgRouter(SCALES, 16), 16
    torch.nn.init.normal_(router.votes)
    grid, question = torch.randn(16, width), torch.randn(5, width)
    visual = torch.cat(
        [grid.mean(0, keepdim=True), grid.view(2, 2, 2, 2, width).mean((1, 3)).view(4, width), grid]
    )
    x = torch.cat([visual, question]) + router.place[: len(visual) + 5]
    query, key, value = router._heads(x)
    attended = (query @ key.transpose(1, 2) / math.sqrt(width / avg.HEADS)).softmax(-1) @ value
    x = x + router.out(attended.transpose(0, 1).flatten(1))
    x = x + router.wide(router.between(x))
    plain = router.votes[: len(x)].softmax(0) @ router.logits(x)
    torch.testing.assert_close(router(grid, [question])[0], plain)


def test_ranking_loss_equals_a_loop_over_pairs() -> None:
    torch.manual_seed(0)
    logits, losses = torch.randn(4, 3), torch.rand(4, 3)
    said = logits.log_softmax(-1)
    total = 0.0
    for row in range(4):
        order = losses[row].argsort().tolist()
        for i, better in enumerate(order):
            for j in range(i + 1, 3):
                gap = losses[row, order[j]] - losses[row, better]
                margin = (j - i) * gap - (said[row, better] - said[row, order[j]])
                total += max(float(margin), 0.0)
        total -= 0.1 * float(said[row, order[0]])
    assert float(avg.ranking_loss(logits, losses)) == pytest.approx(total / 4, rel=1e-5)
