"""Budgets, against worked tables and against every way to spend."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import RateLimited
from serve.tenants.budgets import Budget, Budgets, duration


class Clock:
    def __init__(self) -> None:
        self.s = 1000.0

    def __call__(self) -> float:
        return self.s


def refused(budget: Budget, visual_tokens: int) -> int | None:
    """Returns the Retry-After of a refusal, None where there is none."""
    try:
        budget.take(visual_tokens)
    except RateLimited as error:
        return error.retry_after_s
    return None


def test_a_minute_by_hand() -> None:
    clock = Clock()
    budget = Budget(480.0, clock)  # 8 a second
    steps: list[tuple[float, int, int | None, str, str]] = [
        # seconds later, visual tokens, Retry-After, remaining, full again in
        (0.0, 36, None, "444", "4.5s"),
        (1.0, 576, None, "0", "1m15.5s"),  # 452 left, less 576: 124 in debt
        (0.0, 1, 16, "0", "1m15.5s"),  # paid in 15.5 s
        (15.375, 1, 1, "0", "1m0.125s"),  # 1 in debt
        (0.25, 576, None, "0", "2m11.875s"),  # 1 above: let in, 575 in debt
        (71.875, 1, 1, "0", "1m0s"),  # nothing owed, nothing left
        (0.5, 1, None, "3", "59.625s"),
        (600.0, 0, None, "480", "0s"),
    ]
    for later_s, tokens, retry_after_s, remaining, full in steps:
        clock.s += later_s
        assert refused(budget, tokens) == retry_after_s
        assert budget.headers() == {
            "x-ratelimit-limit-tokens": "480",
            "x-ratelimit-remaining-tokens": remaining,
            "x-ratelimit-reset-tokens": full,
        }


def test_what_was_not_read_is_given_back_and_second_looks_are_owed() -> None:
    budget = Budget(100.0, Clock())
    budget.take(90)
    budget.owe(144)  # let in before: not refused, but the next one is
    assert refused(budget, 1) == 81  # 134 in debt at 5 / 3 a second: 80.4 s
    budget.give_back(144)
    assert budget.headers()["x-ratelimit-remaining-tokens"] == "10"
    budget.give_back(1000)
    assert budget.headers()["x-ratelimit-remaining-tokens"] == "100"


@given(
    st.floats(1, 1e6),
    st.lists(st.tuples(st.floats(0, 90), st.integers(0, 5000)), min_size=1, max_size=60),
)
def test_nobody_reads_more_than_the_budget_and_one_request(
    limit: float, steps: list[tuple[float, int]]
) -> None:
    clock = Clock()
    budget, began, read = Budget(limit, clock), clock.s, 0
    for later_s, tokens in steps:
        clock.s += later_s
        granted = limit + (clock.s - began) / 60.0 * limit
        wait_s = refused(budget, tokens)
        if wait_s is None:
            assert read <= granted + 1e-6 * granted
            read += tokens
        else:  # what Retry-After says is true: then the same request is let in
            clock.s += wait_s
            assert refused(budget, tokens) is None
            read += tokens


def test_gateways_share_a_budget_and_names_do_not() -> None:
    clock, there = Clock(), [2]
    budgets = Budgets(lambda: there[0], clock)
    a, b = budgets.of("a", 1000), budgets.of("b", 1000)
    assert a is not None
    assert b is not None
    assert a.headers()["x-ratelimit-limit-tokens"] == "500"
    a.take(300)
    assert budgets.of("a", 1000) is a
    assert b.headers()["x-ratelimit-remaining-tokens"] == "500"
    there[0] = 4  # another two come: what is left is capped
    assert budgets.of("b", 1000).headers()["x-ratelimit-remaining-tokens"] == "250"  # type: ignore[union-attr]
    there[0] = 1
    more = budgets.of("a", 6000)  # the file says more now: no fresh bucket, but a faster one
    assert more is a
    assert a.headers()["x-ratelimit-remaining-tokens"] == "200"
    clock.s += 3.0
    assert a.headers()["x-ratelimit-remaining-tokens"] == "500"
    assert budgets.of("a", None) is None


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0s"), (0.017, "17ms"), (0.9999, "1s"), (8.64, "8.64s"), (59.9996, "1m0s"),
     (360, "6m0s"), (72.5, "1m12.5s"), (3723, "1h2m3s")],
)  # fmt: skip
def test_times_are_said_as_openai_says_them(seconds: float, told: str) -> None:
    assert duration(seconds) == told
