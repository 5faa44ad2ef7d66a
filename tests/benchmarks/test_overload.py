"""The benchmark of overload: what it counts, by hand."""

import pytest
from overload import Reply, before_refusals, by_second, judged

IDLE = [Reply(0, 0.0, 200, 50.0, 100, "predicted"), Reply(1, 0.1, 200, 70.0, 300, "predicted")]
LOADED = [
    Reply(0, 0.1, 200, 60.0, 100, "predicted"),
    Reply(0, 0.2, 200, 90.0, 9, "degraded", 0.2),
    Reply(1, 0.3, 200, 110.0, 111, "degraded", 0.4),
    Reply(1, 0.4, 429, 1.0),
    Reply(1, 1.5, 200, 120.0, 36, "degraded", 0.8),
]
AFTER = [Reply(0, 2.0, 200, 50.0, 9, "degraded", 0.2), Reply(0, 2.5, 200, 50.0, 100, "predicted")]


def test_tokens_before_the_first_refusal_are_those_under_a_raised_price_alone() -> None:
    assert before_refusals(LOADED) == LOADED[1:3]
    assert before_refusals(LOADED[:1]) == []
    assert before_refusals(LOADED[:3]) == LOADED[1:3]


def test_the_goals_compare_with_the_same_questions_when_idle() -> None:
    found = judged(IDLE, LOADED, AFTER, [LOADED])
    assert found["before_first_429"]["tokens_share"] == pytest.approx((9 + 111) / 400)
    assert found["loaded"]["tokens_share"] == pytest.approx((100 + 9 + 111 + 36) / 800)
    assert (found["loaded"]["accepted"], found["loaded"]["refused"]) == (4, 1)
    assert found["price_back_s"] == pytest.approx(2.05)
    assert found["p95_ratio"] == pytest.approx(118.5 / 69.0, abs=1e-3)
    assert [row["price"] for row in by_second(LOADED, IDLE)] == [0.4, 0.8]
