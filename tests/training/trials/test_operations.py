"""Whether a canary is called worse: by simulated traffic, and from a log as services write it."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from router.records import DecisionRecord, to_table
from training.errors import TrainingError
from training.trials.operations import DELTA, Traffic, findings, log_wealth, traffic_of

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)
Command = Callable[..., Any]


def traffic(
    n: int, seed: int, canary: tuple[float, float, float], live: tuple[float, float, float]
) -> Traffic:
    """Returns requests of which a tenth are the canary's; rates of failures, tokens, slowness."""
    rng = np.random.default_rng(seed)
    ours = rng.random(n) < 0.1
    rates = np.where(ours[:, None], canary, live)
    tokens = rng.beta(2, np.maximum(2 / rates[:, 1] - 2, 0.01))
    drawn = rng.random((n, 2)) < rates[:, [0, 2]]
    return Traffic(ours, np.arange(n), drawn[:, 0].astype(float), tokens, drawn[:, 1].astype(float))


def worse(found: Any) -> list[str]:
    return [each.name.split()[-1] for each in found if each.worse]


def test_bets_by_hand() -> None:
    assert log_wealth(np.zeros(0), 0.0) == 0.0
    assert log_wealth(np.full(50, -0.5), 0.0) == 0.0  # the most is what one began with
    # The first stakes are the largest allowed, a half: 1.5 to the tenth.
    assert log_wealth(np.ones(10), 0.0) == pytest.approx(10 * math.log(1.5))
    assert log_wealth(np.ones(10), 0.25) == pytest.approx(10 * math.log(1 + 0.5 / 1.25 * 0.75))


def test_one_that_is_as_good_is_called_worse_as_seldom_as_promised() -> None:
    """Looked at after every block, and at the edge of what is allowed."""
    same, calls = (0.02, 0.1, 0.05), 0
    for seed in range(60):
        calls += bool(worse(findings(traffic(4000, seed, same, same))))
    assert calls <= 3  # 60 x 3 x 0.01 = 1.8 at most in the mean
    edge = np.random.default_rng(1)
    wins = 0
    for _ in range(400):
        differences = edge.choice([-1.0, 0.0, 1.0], size=500, p=[0.09, 0.8, 0.11])  # mean 0.02
        wins += log_wealth(differences, 0.02) >= math.log(1 / DELTA)
    assert wins <= 12  # 4 in the mean; more than 12 once in 3,000 runs


@pytest.mark.parametrize(
    ("canary", "found"),
    [
        ((0.3, 0.1, 0.05), "failures"),
        ((0.0, 0.2, 0.05), "read"),
        ((0.0, 0.1, 0.5), "requests"),
    ],
)
def test_one_that_is_much_worse_is_found(canary: tuple[float, float, float], found: str) -> None:
    for seed in range(5):
        assert worse(findings(traffic(4000, seed, canary, (0.0, 0.1, 0.05)))) == [found]


def test_a_dearer_one_may_be_allowed() -> None:
    some = traffic(6000, 0, (0.0, 0.2, 0.05), (0.0, 0.1, 0.05))
    assert worse(findings(some)) == ["read"]
    assert worse(findings(some, most_tokens=2.5)) == []


def test_what_holds_for_both_arms_is_no_ones_fault() -> None:
    """A bad hour: from then on both fail and are slow."""
    some = traffic(4000, 3, (0.0, 0.1, 0.05), (0.0, 0.1, 0.05))
    late = np.arange(4000) > 2500
    assert some.slow is not None
    bad = Traffic(
        some.canary, some.sessions, np.where(late, 1.0, 0.0), some.tokens,
        np.where(late, 1.0, some.slow),
    )  # fmt: skip
    assert worse(findings(bad)) == []


def test_one_long_session_is_one_observation() -> None:
    """Ten thousand failures within one session show no more than that session."""
    ours = np.r_[np.ones(10_000, bool), np.zeros(100, bool)]
    sessions = np.r_[np.zeros(10_000, int), np.arange(1, 101)]
    failed = ours.astype(float)
    assert worse(findings(Traffic(ours, sessions, failed, failed * 0.1, None))) == []


def record(number: int, arm: str | None, version: str, **more: Any) -> DecisionRecord:
    row: dict[str, Any] = {
        "request_id": f"r{number}", "time_utc": NOON + timedelta(seconds=number),
        "picture_ids": (f"p{number}",), "model": "m3-auto", "scale": 36, "visual_tokens": 36,
        "reason": "predicted", "router_version": version, "arm": arm, "total_ms": 100.0,
    }  # fmt: skip
    return DecisionRecord(**row | more)


def written(log: Path, records: list[DecisionRecord]) -> Path:
    (log / "decisions").mkdir(parents=True, exist_ok=True)
    pq.write_table(to_table(records, DecisionRecord), log / "decisions" / "a.parquet")
    return log


def test_a_log_tells_the_traffic(tmp_path: Path) -> None:
    before = [record(n, "live", "a", total_ms=float(n)) for n in range(200)]
    before += [record(n, "live", "a", total_ms=9e9) for n in range(-8 * 86_400, -8 * 86_400 + 99)]
    rows = [
        record(200, "canary", "b", visual_tokens=576),
        record(201, "live", "a", total_ms=500.0),
        record(202, "canary", "c"),  # of an earlier trial
        record(203, None, "a"),  # from a log of before
        record(204, "live", "a", reason="pinned"),
        record(205, "canary", "b", reason="no_image", picture_ids=()),
        record(206, "live", "a", status="context_length_exceeded"),  # the caller's
        record(207, "canary", "b", status="internal_error", group_id="g"),
        record(208, "canary", "b", reason="fallback", group_id="g", picture_ids=("x", "y"),
               visual_tokens=1152),
        record(209, "live", "a", group_id="g", total_ms=20.0),
        record(210, "live", "a", picture_ids=()),  # from elsewhere
    ]  # fmt: skip
    found = traffic_of(written(tmp_path / "log", before[::-1] + rows), "b", 576)
    assert found.canary.tolist() == [True, False, True, True, False]
    assert found.sessions.tolist() == [0, 1, 2, 2, 3]
    assert found.failed.tolist() == [0.0, 0.0, 1.0, 1.0, 0.0]
    assert found.tokens.tolist() == [0.5, 0.03125, 0.03125, 0.5, 0.03125]
    assert found.slow is not None
    assert found.slow.tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]  # slower than 189.05 ms
    empty = traffic_of(tmp_path / "log", "never", 576)
    assert len(empty.canary) == 0
    assert [each.evidence for each in findings(empty)] == [DELTA] * len(findings(empty))
    with pytest.raises(TrainingError, match="does not exist"):
        traffic_of(tmp_path / "none", "b", 576)
