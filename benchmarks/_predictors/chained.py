"""The kind that ships: soft heads, each going on from another's log odds: a scale from the next
coarser one, a focus from the action it is named to start from.

Knows the other kinds and the product's boosters; does not know prices or tables.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from _predictors.kinds import (
    KINDS,
    MOST_TREES,
    PATIENCE,
    Fit,
    booster_values,
    raw_scores,
    soft,
    trimmed,
)
from _predictors.splits import Splits, Values

from router.predictor.boosting import Rows, train
from router.predictor.calibration import fit_calibration
from router.predictor.forest import fitting_order


def chained(splits: Splits, seed: int, settings: Mapping[str, Any]) -> Values:
    """Return one probability an action, mapped to scores on calibration pictures."""
    started, boosters = time.perf_counter(), []
    parts = (splits.train, splits.watched, splits.calibration, splits.test)
    said = [np.zeros(part.scores.shape) for part in parts]
    parameters = {**settings, "objective": "cross_entropy", "seed": seed}
    for k in fitting_order(splits.space.bases):
        base = splits.space.bases[k]
        learnt, watched = (
            Rows(part.X, soft(part)[:, k], start=None if base < 0 else table[:, base])
            for part, table in zip(parts[:2], said[:2], strict=True)
        )
        booster = trimmed(train(learnt, parameters, MOST_TREES, watched, PATIENCE))
        for part, table in zip(parts, said, strict=True):
            before = 0.0 if base < 0 else table[:, base]
            table[:, k] = before + raw_scores([booster], part.X)[:, 0]
        boosters.append(booster)
    raw, of_test = said[2:]
    scores = splits.calibration.scores
    maps = [fit_calibration("platt", raw[:, k], scores[:, k]) for k in range(raw.shape[1])]
    both = (
        np.stack([at(table[:, k]) for k, at in enumerate(maps)], axis=1) for table in (raw, of_test)
    )
    return booster_values(*both, boosters, started, splits.test.X)


ALL_KINDS: dict[str, Fit] = {"heads, soft labels, chained": chained, **KINDS}
