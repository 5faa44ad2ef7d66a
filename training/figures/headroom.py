"""How much is there to gain at all: oracles, and the share of the gap that a router recovers.

Knows test questions and curves; does not know routers or reports.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from training.figures import comparison as cmp
from training.figures.curves import Line, oracle_line
from training.figures.metrics import (
    Array,
    accuracy_at_cost,
    any_correct_picks,
    gap_recovered,
    luck_corrected_over,
    picked,
    strict_picks,
)
from training.figures.resampling import percentiles


def oracles(on: cmp.Questions, repeats: Array | None) -> dict[str, Any]:
    """Return accuracy and tokens of each oracle, and how luck was taken out (or why not).

    Args:
        on: n questions.
        repeats: (n, R, A) scores of other wordings of the same questions (NaN where there are
            none), or None. What a focus takes is that of the first wording.
    """
    found: dict[str, Any] = {}
    for name, picks in (
        ("any_correct", any_correct_picks(on.scores, on.tokens)),
        ("strict", strict_picks(on.scores, on.tokens)),
    ):
        score = picked(on.scores, picks)
        if name == "strict":
            # Where the finest is wrong no action is stable: a lucky coarsest earns nothing.
            score = np.where(on.scores[:, -1] >= 0.5, score, 0.0)
        found[name] = {
            "accuracy": float(score.mean()),
            "visual_tokens": float(picked(on.tokens, picks).mean()),
        }
    found["luck_corrected"] = None
    found["luck_corrected_how"] = (
        "needs repeats of the same question in other words (collect --scenes N --repeats 2); "
        "these data have none"
    )
    if repeats is not None and np.isfinite(repeats).any():
        asked = np.concatenate([on.scores[:, None], repeats], axis=1)
        pairs = int(np.isfinite(repeats[:, :, 0]).any(axis=1).sum())
        accuracy, tokens = luck_corrected_over(asked, on.costs, on.tokens)
        found["luck_corrected"] = {"accuracy": accuracy, "visual_tokens": tokens}
        found["luck_corrected_how"] = (
            f"over {pairs} questions asked in other words too: chosen on one wording, scored on "
            "another"
        )
    return found


def gaps(ours: cmp.Outcome, on: cmp.Questions, lines: dict[str, Line]) -> dict[str, float | None]:
    """Return the share of the gap to the budgeted oracle that the router recovers at its tokens.

    ``fixed_mixture`` is the hull of fixed scales, ``dataset_policy`` one choice per dataset, the
    others are named as their lines. The oracle chooses among all actions.
    """
    here = (float(ours.spent(on.tokens).mean()), float(ours.score.mean()))
    ends = {name: (line.mean("visual_tokens"), line.accuracy) for name, line in lines.items()}
    oracle = oracle_line(on)
    best = oracle.mean("visual_tokens"), oracle.accuracy
    against = (
        "fixed_mixture", "dataset_policy", "type_table", "question_only",
        "type_table_same_actions", "uniform_router",
    )  # fmt: skip
    found = {name: gap_recovered(here, ends[name], best) for name in against if name in ends}
    found["privileged_headroom_over_type_table"] = None
    if "privileged" in ends and "type_table" in ends:
        ceiling = accuracy_at_cost(*ends["privileged"], here[0])
        table = accuracy_at_cost(*ends["type_table"], here[0])
        if ceiling is not None and table is not None and ceiling - table > 1e-9:
            found["privileged_headroom_over_type_table"] = (here[1] - table) / (ceiling - table)
    return found


def headroom_recovered(
    table: Line, ceiling: Line, ours: cmp.Outcome, on: cmp.Questions
) -> dict[str, float | None] | None:
    """Return (table - router) / (table - ceiling) in tokens at the router's accuracy.

    1: as good as being told the scene; 0: as good as the table. Both lines are charged as in
    `equal_accuracy.token_ratios`, the router at its operating point. ``defined`` is the share of
    resamples with headroom, which the interval is of; None where the ceiling needs no fewer tokens
    than the table.
    """
    tokens, accuracy = cmp.resampled_point(ours, on)
    high_end, low_end = (
        line.at_or_best("visual_tokens", float(ours.score.mean())) for line in (table, ceiling)
    )
    if high_end - low_end <= 1e-9:
        return None
    above, below = (line.resampled_at("visual_tokens", accuracy)[0] for line in (table, ceiling))
    defined = above - below > 1e-9
    low, high = percentiles((above - tokens)[defined] / (above - below)[defined])
    return {
        "mean": (high_end - float(ours.spent(on.tokens).mean())) / (high_end - low_end),
        "low": low,
        "high": high,
        "defined": float(defined.mean()),
    }
