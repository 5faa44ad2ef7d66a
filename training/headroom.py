"""How much is there to gain at all: oracles, and the share of their gap that a router recovers.

Knows test questions and curves; does not know routers or reports.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from training import comparison as cmp
from training.metrics import (
    accuracy_at_cost,
    any_correct_picks,
    gap_recovered,
    luck_corrected,
    picked,
    strict_picks,
)
from training.oracle_data import OracleData


def oracles(test: OracleData, on: cmp.Questions) -> dict[str, Any]:
    """Return accuracy and tokens of each oracle, and how luck was taken out (or why not)."""
    found: dict[str, Any] = {}
    for name, picks in (
        ("any_correct", any_correct_picks(on.scores)),
        ("strict", strict_picks(on.scores)),
    ):
        score = picked(on.scores, picks)
        if name == "strict":
            # Where the finest is wrong there is no stable scale: a lucky coarsest earns nothing.
            score = np.where(on.scores[:, -1] >= 0.5, score, 0.0)
        found[name] = {
            "accuracy": float(score.mean()),
            "visual_tokens": float(on.tokens[picks].mean()),
        }
    repeats = _repeats(test)
    found["luck_corrected"] = None
    found["luck_corrected_how"] = (
        "needs repeats of the same question (rows of one picture sharing metadata.repeat_of); "
        "these data have none"
    )
    if repeats is not None:
        accuracy, tokens = luck_corrected(*repeats, on.costs, on.tokens)
        found["luck_corrected"] = {"accuracy": accuracy, "visual_tokens": tokens}
        found["luck_corrected_how"] = (
            f"split-half over {len(repeats[0])} pairs: chosen on one repeat, scored on the other"
        )
    return found


def _repeats(test: OracleData) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the scores of two repeats of each repeated question, or None where there are none."""
    pairs: dict[tuple[str, str], list[int]] = {}
    for row, metadata in enumerate(test.metadata):
        if "repeat_of" in metadata:
            key = (str(test.picture_ids[row]), str(metadata["repeat_of"]))
            pairs.setdefault(key, []).append(row)
    twice = [rows[:2] for rows in pairs.values() if len(rows) > 1]
    if not twice:
        return None
    first, second = np.array(twice).T
    return test.scores[first], test.scores[second]


def gaps(
    ours: cmp.Outcome,
    on: cmp.Questions,
    fixed_points: list[dict[str, Any]],
    curves: dict[str, list[dict[str, float]]],
) -> dict[str, float | None]:
    """Return the gap recovered at the router's own tokens, against the hull and the type table."""

    def line(points: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
        return tuple(np.array([p[key] for p in points]) for key in ("visual_tokens", "accuracy"))  # type: ignore[return-value]

    here = (float(on.tokens[ours.picks].mean()), float(ours.score.mean()))
    oracle = cmp.oracle_curve(on)
    against = {"fixed_mixture": fixed_points}
    against |= {name: curves[name] for name in ("type_table", "question_only") if name in curves}
    found = {name: gap_recovered(here, line(points), oracle) for name, points in against.items()}
    found["privileged_headroom_over_type_table"] = None
    if "privileged" in curves and "type_table" in curves:
        ceiling = accuracy_at_cost(*line(curves["privileged"]), here[0])
        table = accuracy_at_cost(*line(curves["type_table"]), here[0])
        if ceiling is not None and table is not None and ceiling - table > 1e-9:
            found["privileged_headroom_over_type_table"] = (here[1] - table) / (ceiling - table)
    return found
