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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from router.places import Place
from router.records import DecisionRecord
from router.records.rows import SERVICE_FAULTS
from training.errors import BadRecord, TrainingError

if TYPE_CHECKING:
    import pyarrow as pa

Array = NDArray[np.float64]
DELTA = 0.01  # most chance of each comparison to call a canary worse that is not
FAILURES, SLOW = 0.01, 0.05  # more of the requests than with the live router, that are allowed
TOKENS = 1.1  # times the live router's visual tokens, that are allowed
QUICK = 0.95  # a request is slow that takes longer than this share of those before the trial
FEWEST_BEFORE, MOST_BEFORE = 100, 1000  # of those, the last before the trial
BEFORE = timedelta(days=7)  # older ones tell nothing of now
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


def traffic_of(log: Place, version: str, finest: int) -> Traffic:
    """Return what a log tells of a canary and, at the same time, of the live router.

    Args:
        log: folder of the service's decision log.
        version: of the canary.
        finest: visual tokens of its finest scale.

    Raises:
        TrainingError: the log is not there, or was written by a newer program.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if not log.is_dir():
        raise TrainingError(f"the log folder {log} does not exist; give --log-dir")
    # The first pass reads little of all days, the second all of a few.
    begins = [
        pc.min(table.filter(_is_of(table, version))["time_utc"]).as_py()
        for table in _read(log, ("time_utc", "arm", "router_version"))
    ]
    first = min((each for each in begins if each is not None), default=None)
    read = [] if first is None else list(_read(log, _COLUMNS, first - BEFORE))
    if first is None or not read:
        nothing = np.zeros(0)
        return Traffic(nothing > 0, nothing.astype(np.int64), nothing, nothing, None)
    rows = pa.concat_tables(read).sort_by("time_utc")
    rows = rows.filter(pc.greater(pc.list_value_length(rows["picture_ids"]), 0))
    is_live = _bools(pc.equal(rows["arm"], "live"))
    began = _bools(pc.greater_equal(rows["time_utc"], pa.scalar(first, rows["time_utc"].type)))
    before = _floats(rows["total_ms"])[is_live & ~began][-MOST_BEFORE:]
    ours = _bools(_is_of(rows, version))
    rows, ours = rows.filter(pa.array(began & (ours | is_live))), ours[began & (ours | is_live)]
    failed = pc.or_(pc.equal(rows["reason"], "fallback"), pc.not_equal(rows["status"], "ok"))
    most = 2.0 * finest * _floats(pc.list_value_length(rows["picture_ids"]))  # of two looks
    slow = None
    if len(before) >= FEWEST_BEFORE:
        slow = (_floats(rows["total_ms"]) > np.quantile(before, QUICK)).astype(np.float64)
    return Traffic(
        ours,
        _sessions(rows),
        _bools(failed).astype(np.float64),
        np.minimum(_floats(rows["visual_tokens"]) / most, 1.0),
        slow,
    )


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


def _read(log: Place, columns: Sequence[str], since: datetime | None = None) -> Iterator[pa.Table]:
    """Yield the requests of a log that a router decided, and that no caller's fault ended."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from router.log import NewerLog, Notes, tables

    wanted = dict.fromkeys((*columns, "time_utc", "arm", "reason", "status"))
    kept = pa.array(("ok", *SERVICE_FAULTS))
    try:
        for table in tables(log, DecisionRecord, Notes(), wanted):
            if since is not None:
                begin = pa.scalar(since, table["time_utc"].type)
                table = table.filter(pc.greater_equal(table["time_utc"], begin))
            decided = pc.is_in(table["reason"], value_set=pa.array(DECIDED))
            fair = pc.is_in(table["status"], value_set=kept)
            known = pc.is_valid(table["arm"])
            yield table.filter(pc.and_(pc.and_(decided, fair), known)).select(list(columns))
    except NewerLog as error:
        raise BadRecord(str(error)) from error


def _is_of(rows: pa.Table, version: str) -> pa.ChunkedArray:
    """Return (n,): whether the canary decided, not one of an earlier trial."""
    import pyarrow.compute as pc

    return pc.and_(pc.equal(rows["arm"], "canary"), pc.equal(rows["router_version"], version))


def _sessions(rows: pa.Table) -> NDArray[np.int64]:
    """Return (n,) a number for what belongs together, in the order of the first request.

    The first words of a conversation are not in every log; its first picture is.
    """
    import pyarrow.compute as pc

    picture = pc.list_element(rows["picture_ids"], 0)
    kind = pc.if_else(pc.is_valid(rows["group_id"]), "group", "picture")
    name = pc.coalesce(rows["group_id"], picture)
    parts = (rows["arm"], pc.coalesce(rows["tenant"], ""), kind, name)
    texts = pc.binary_join_element_wise(*parts, "\x1f").combine_chunks()
    return np.asarray(texts.dictionary_encode().indices, dtype=np.int64)


def _bools(column: Any) -> NDArray[np.bool_]:
    return np.asarray(column, dtype=bool)


def _floats(column: Any) -> Array:
    return np.asarray(column, dtype=np.float64)
