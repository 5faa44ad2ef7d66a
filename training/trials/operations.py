"""Whether a canary costs more than it may: failures, visual tokens and time, beside the live arm.

Each comparison is a bet. Sessions of both arms are taken in the order of their first request, in
blocks that end as soon as both arms have one in it; the difference of the arms' means in a block is
one bet, with a stake that depends on earlier blocks alone. While the canary is not worse than
allowed, wealth does not grow in expectation, so by Ville's inequality it ever reaches
1 / `DELTA` with probability `DELTA` at most: one may look as often as one likes. Both arms are met
at the same time, so whatever changes in the traffic changes for both.

Knows the decision log; knows nothing of oracles, of the registry or of what is done about it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.records import DecisionRecord
from router.records.rows import SERVICE_FAULTS
from training.errors import BadRecord, TrainingError

Array = NDArray[np.float64]
DELTA = 0.01  # most chance of each comparison to call a canary worse that is not
FAILURES, SLOW = 0.01, 0.05  # more of the requests than with the live router, that are allowed
TOKENS = 1.1  # times the live router's visual tokens, that are allowed
QUICK = 0.95  # a request is slow that takes longer than this share of those before the trial
FEWEST_BEFORE, MOST_BEFORE = 100, 1000  # of those, the last before the trial
LARGEST_BET = 0.5  # of what one block can lose
DECIDED = ("predicted", "budget_cap", "unfamiliar", "degraded", "fallback")
_COLUMNS = (
    "time_utc", "arm", "router_version", "tenant", "group_id", "picture_ids", "reason", "status",
    "visual_tokens", "total_ms",
)  # fmt: skip


@dataclass(frozen=True)
class Traffic:
    """Requests that a router decided since a canary's first one, in the order of time.

    Attributes:
        canary: (n,) whether the canary decided.
        sessions: (n,) integers, the same for requests that belong together.
        failed: (n,) 1 where the decision or the service failed.
        tokens: (n,) visual tokens as a share of the most that the request could take.
        slow: (n,) 1 where it took longer than most before the trial; None where too few came.
    """

    canary: NDArray[np.bool_]
    sessions: NDArray[np.int64]
    failed: Array
    tokens: Array
    slow: Array | None


@dataclass(frozen=True)
class Finding:
    """One comparison of the arms.

    Attributes:
        name: what was compared, in words.
        canary, live: means by request; NaN without any.
        evidence: the wealth of the bets, as a share of what shows that the canary is worse.
    """

    name: str
    canary: float
    live: float
    evidence: float

    @property
    def worse(self) -> bool:
        """Whether the canary is shown to be worse than allowed."""
        return self.evidence >= 1.0

    @property
    def sentence(self) -> str:
        """Return what was found in words."""
        return f"{self.name} {self.canary:.4g} beside {self.live:.4g}"


def traffic_of(log: Path, version: str, finest: int) -> Traffic:
    """Return what a log tells of a canary and, at the same time, of the live router.

    Args:
        log: folder of the service's decision log.
        version: of the canary.
        finest: visual tokens of its finest scale.

    Raises:
        TrainingError: the log is not there, or was written by a newer program.
    """
    rows = sorted(_rows(log), key=lambda row: row["time_utc"])
    ours = [row["arm"] == "canary" and row["router_version"] == version for row in rows]
    first = ours.index(True) if True in ours else len(rows)
    before = [row["total_ms"] for row in rows[:first] if row["arm"] == "live"][-MOST_BEFORE:]
    since = list(zip(rows, ours, strict=True))[first:]
    both = [(row, our) for row, our in since if our or row["arm"] == "live"]
    names: dict[Any, int] = {}
    told = [row for row, _ in both]
    slow = None
    if len(before) >= FEWEST_BEFORE:
        limit = float(np.quantile(before, QUICK))
        slow = np.array([float(row["total_ms"] > limit) for row in told])
    return Traffic(
        np.array([our for _, our in both], dtype=bool),
        np.array([names.setdefault(_session(row), len(names)) for row in told], dtype=np.int64),
        np.array(
            [float(row["reason"] == "fallback" or row["status"] != "ok") for row in told]
        ),
        np.array([_share(row, finest) for row in told]),
        slow,
    )  # fmt: skip


def findings(traffic: Traffic, most_tokens: float = TOKENS) -> tuple[Finding, ...]:
    """Return how the canary compares in each respect that can be judged.

    Args:
        most_tokens: times the live router's visual tokens, that are allowed.
    """
    compared = [
        ("share of failures", traffic.failed, 1.0, FAILURES),
        ("share of the tokens that could be read", traffic.tokens, most_tokens, 0.0),
    ]
    if traffic.slow is not None:
        compared.append(("share of slow requests", traffic.slow, 1.0, SLOW))
    canary = traffic.canary
    return tuple(
        Finding(
            name,
            float(values[canary].mean()) if canary.any() else math.nan,
            float(values[~canary].mean()) if not canary.all() else math.nan,
            math.exp(min(log_wealth(_differences(traffic, values, times), allowed), 700.0)) * DELTA,
        )
        for name, values, times, allowed in compared
    )


def log_wealth(differences: Array, allowed: float) -> float:
    """Return the greatest log wealth of bets that the mean difference is above what is allowed.

    Args:
        differences: in [-1, 1], in an order that does not depend on them.
        allowed: in [0, 1).
    """
    wealth = most = 0.0
    mean, squares = 0.0, 0.25
    for number, difference in enumerate(differences.tolist(), 1):
        spread = squares / number
        bet = math.sqrt(2 * math.log(1 / DELTA) / (spread * number * math.log(1 + number)))
        bet = min(bet, LARGEST_BET / (1 + allowed))
        wealth += math.log1p(bet * (difference - allowed))
        most = max(most, wealth)
        mean += (difference - mean) / (number + 1)
        squares += (difference - mean) ** 2
    return most


def _differences(traffic: Traffic, values: Array, times: float) -> Array:
    """Return the differences of the arms by block, in [-1, 1].

    Args:
        times: what the live router's values count.
    """
    n_sessions = int(traffic.sessions.max(initial=-1)) + 1
    sums = np.bincount(traffic.sessions, values, n_sessions)
    means = sums / np.maximum(np.bincount(traffic.sessions, minlength=n_sessions), 1)
    # A session is of one arm; its number says when it began.
    arms = np.zeros(n_sessions, dtype=bool)
    arms[traffic.sessions] = traffic.canary
    differences: list[float] = []
    block: dict[bool, list[float]] = {True: [], False: []}
    for canary, mean in zip(arms.tolist(), means.tolist(), strict=True):
        block[canary].append(mean)
        if block[True] and block[False]:
            theirs, ours = (sum(block[arm]) / len(block[arm]) for arm in (True, False))
            differences.append((theirs - times * ours) / max(times, 1.0))
            block = {True: [], False: []}
    return np.array(differences)


def _rows(log: Path) -> list[dict[str, Any]]:
    from router.log import NewerLog, Notes, tables

    if not log.is_dir():
        raise TrainingError(f"the log folder {log} does not exist; give --log-dir")
    try:
        found = [table.to_pylist() for table in tables(log, DecisionRecord, Notes(), _COLUMNS)]
    except NewerLog as error:
        raise BadRecord(str(error)) from error
    kept = ("ok", *SERVICE_FAULTS)
    return [
        row
        for rows in found
        for row in rows
        if row["reason"] in DECIDED and row["status"] in kept and row["arm"] is not None
    ]


def _session(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return what tells requests apart that do not belong together; the first words of their
    conversation are not in every log, its first picture is."""
    return row["arm"], row["tenant"], row["group_id"], row["group_id"] or row["picture_ids"][0]


def _share(row: dict[str, Any], finest: int) -> float:
    """Two looks at the finest scale are the most."""
    return min(float(row["visual_tokens"]) / (2 * finest * len(row["picture_ids"])), 1.0)
