"""What equal accuracy costs: tokens, cost and GPU time of every policy, and ratios.

Every policy is read off its own hull over the test questions, which favours it; the router's own
figures in ratios are those of its operating point, priced before. Intervals resample pictures, the
same for all policies. Knows lines and outcomes; does not know reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from training.figures.comparison import Outcome, Questions, resampled_point
from training.figures.curves import RESOURCES, Line, Resource
from training.figures.metrics import Array
from training.figures.resampling import percentiles

SHARES = {f"{percent}_percent_of_finest": percent / 100 for percent in (99, 98, 95)}
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
    tokens, accuracy = resampled_point(ours, on)
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
