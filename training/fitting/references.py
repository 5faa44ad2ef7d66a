"""Rows with a reference and rows without one, told apart: their scores do not mean the same.

Without a reference an answer is compared with the finest scale's: the finest is always right then.
Counted beside rows that know better, such rows would let a price lose more than its target says:
at 98 % of the finest's accuracy a row without a reference allows 2 points to be lost, one whose
finest is right half the time only 1. So what prices, gates and judges is of one kind; what teaches
may be of both (see `training.fitting.predictor`). Knows which rows have a reference; knows nothing
of routers, prices or pictures' splits.
"""

from __future__ import annotations

from training.oracle.data import OracleData

LEAST_TOLD = 30  # questions with a reference that say what the finest is worth
LEAST_PICTURES = 4  # of one kind, below which it can price nothing


def speaking(*parts: OracleData) -> bool | None:
    """Return whether rows with a reference say what is right, or (False) those without.

    References do where every part has `LEAST_TOLD` of them, and where a part has nothing else.
    None: all parts are of one kind.
    """
    told = [part.has_reference for part in parts]
    if all(each.all() for each in told) or not any(each.any() for each in told):
        return None
    fewest = min(int(each.sum()) for each in told)
    others = min(int((~each).sum()) for each in told)
    return fewest >= LEAST_TOLD or others == 0


def of_one_kind(data: OracleData, referenced: bool | None) -> OracleData:
    """Return the rows of the kind that speaks; all, where there are too few pictures of it."""
    if referenced is None:
        return data
    rows = data.has_reference == referenced
    if rows.all():
        return data
    found = data.take(rows)
    return data if found.n_pictures < LEAST_PICTURES else found


def left_out(before: OracleData, after: OracleData) -> str | None:
    """Return in words which questions do not count; None where all do."""
    gone = len(before) - len(after)
    if not gone:
        return None
    kept = "with" if after.has_reference.all() else "without"
    other = "without" if kept == "with" else "with"
    return (
        f"{gone} of {len(before)} questions {other} a reference do not count beside those {kept} "
        "one: agreement with the finest scale is not being right"
    )
