"""What equal accuracy costs: tokens, cost and GPU time of every policy, ratios, headroom.

Every policy is read off its own hull over the test questions, which favours it; the router's own
figures in ratios and headroom are those of its operating point, priced before. Intervals resample
pictures, the same for all policies. Knows lines and outcomes; does not know reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from training.figures.comparison import Outcome, Questions
from training.figures.curves import RESOURCES, Line, Resource
from training.figures.metrics import Array
from training.figures.resampling import percentiles

SHARES = {"99_percent_of_finest": 0.99, "98_percent_of_finest": 0.98}
HALF_POINT = "finest_minus_half_point"


def levels(on: Questions, ours: Outcome | None = None) -> dict[str, tuple[float, Array]]:
    """Return the accuracies to compare at: over all questions, and (R,) over each resample."""
    columns = [on.scores[:, -1]] if ours is None else [on.scores[:, -1], ours.score]
    finest, *router = on.resampler.means(np.stack(columns, axis=1)).T
    mean = float(on.scores[:, -1].mean())
    found = {name: (share * mean, share * finest) for name, share in SHARES.items()}
    found[HALF_POINT] = (mean - 0.005, finest - 0.005)
    if ours is not None:
        found["router_accuracy"] = (float(ours.score.mean()), router[0])
    return found


def at_equal_accuracy(
    lines: Mapping[str, Line], on: Questions, ours: Outcome
) -> dict[str, dict[str, Any]]:
    """Return, by level, ``{"accuracy", "policies": {name: {resource: {mean, low, high}}}}``.

    None where a policy never has the accuracy, or where too many of its resamples do not.
    """
    found = {}
    for name, (wanted, resampled) in levels(on, ours).items():
        policies = {
            policy: {resource: _needed(line, resource, wanted, resampled) for resource in RESOURCES}
            for policy, line in lines.items()
        }
        found[name] = {"accuracy": wanted, "policies": policies}
    return found


def _needed(
    line: Line, resource: Resource, wanted: float, resampled: Array
) -> dict[str, float | None] | None:
    mean = line.at(resource, wanted) if line.known(resource) else None
    if mean is None:
        return None
    spent, reached = line.resampled_at(resource, resampled)
    low, high = percentiles(np.where(reached, spent, np.inf))
    return {"mean": mean, "low": low, "high": high}


def token_ratios(
    lines: Mapping[str, Line], ours: Outcome, on: Questions
) -> dict[str, dict[str, float | None]]:
    """Return the router's tokens over those each policy needs for the router's accuracy.

    Where a policy never has that accuracy it is charged what its best accuracy takes, which
    understates the router's gain; ``reached`` is the share of resamples in which it has it.
    """
    tokens, accuracy = _resampled(ours, on)
    found = {}
    for name, line in lines.items():
        theirs, reached = line.resampled_at("visual_tokens", accuracy)
        low, high = percentiles(tokens / theirs)
        needed = line.at_or_best("visual_tokens", float(ours.score.mean()))
        found[name] = {
            "mean": float(ours.spent(on.tokens).mean()) / needed,
            "low": low,
            "high": high,
            "reached": float(reached.mean()),
        }
    return found


def headroom_recovered(
    table: Line, ceiling: Line, ours: Outcome, on: Questions
) -> dict[str, float | None] | None:
    """Return (table - router) / (table - ceiling) in tokens at the router's accuracy.

    1: as good as being told the scene; 0: as good as the table. Both lines are charged as in
    `token_ratios`. ``defined`` is the share of resamples with headroom, which the interval is of;
    None where the ceiling needs no fewer tokens than the table.
    """
    tokens, accuracy = _resampled(ours, on)
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


def _resampled(ours: Outcome, on: Questions) -> tuple[Array, Array]:
    """Return (R,) tokens and (R,) accuracy of an operating point."""
    both = np.stack([ours.spent(on.tokens), ours.score], axis=1)
    tokens, accuracy = on.resampler.means(both).T
    return tokens, accuracy
