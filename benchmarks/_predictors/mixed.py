"""The kinds that are compared over scales and foci: forests, one model that is told the action, the
table of question types.

Knows splits and the other kinds; does not know prices or how they are printed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import lightgbm
import numpy as np
from _predictors.chained import ALL_KINDS, chained, fine_level, forest, grown, like_tokens
from _predictors.kinds import (
    MOST_TREES,
    PATIENCE,
    Fit,
    booster_values,
    heads,
    mapped,
    mean_of,
    raw_scores,
    soft,
    trimmed,
)
from _predictors.splits import Part, Splits, Values

from router.actions import Action, ActionSpace
from router.predictor.boosting import Rows, train
from training.evaluation.baselines import look_up, type_table
from training.figures.metrics import Array

AROUND = ("none", "row", "ring")  # by how much is read around a cell
_EDGE = 1e-4  # of mean labels, whose log odds must be finite


def table_of_types(splits: Splits, seed: int, settings: Mapping[str, Any]) -> Values:
    """Return the mean score an action of the question's type: the strongest cheap baseline."""
    started = time.perf_counter()
    table = type_table(splits.train)
    both = (look_up(table, part) for part in (splits.calibration, splits.test))
    numbers = len(table) * len(splits.space)
    return Values(*both, numbers, time.perf_counter() - started, 0.0, f"{len(table)} types")


def described(most: int = MOST_TREES, foci_alone: bool = False, **how: Any) -> Fit:
    """Return a kind with one model of (question, action) rows, which are told what the action is
    and how many tokens it takes on this question.

    Args:
        most: trees at most.
        foci_alone: scales have the chained heads; the model has the foci and goes on from the log
            odds of their coarse scales. Else it has all actions, from those of their mean labels.
        how: settings of LightGBM for this model.
    """

    def fit(splits: Splits, seed: int, settings: Mapping[str, Any]) -> Values:
        started = time.perf_counter()
        parts = (splits.train, splits.watched, splits.calibration, splits.test)
        boosters, said, columns = _starts(splits, seed, settings, foci_alone)
        rows = [_rows(part, splits.space, columns) for part in parts]
        parameters = {**settings, **how, "objective": "cross_entropy", "seed": seed}
        learnt, watched = (
            Rows(x, soft(part)[:, columns].ravel(), start=table[:, columns].ravel())
            for part, x, table in zip(parts[:2], rows[:2], said[:2], strict=True)
        )
        one = trimmed(train(learnt, parameters, most, watched, PATIENCE))
        for table, x in zip(said[2:], rows[2:], strict=True):
            table[:, columns] += raw_scores([one], x).reshape(-1, len(columns))
        both = mapped(said[2], said[3], splits.calibration.scores)
        values = booster_values(*both, [one], started, rows[3], passes=len(columns))
        return values if not boosters else _beside(values, boosters, splits)

    return fit


def _starts(
    splits: Splits, seed: int, settings: Mapping[str, Any], foci_alone: bool
) -> tuple[list[lightgbm.Booster], list[Array], list[int]]:
    """Return heads of the scales where the foci alone have the model, (n, A) log odds to go on from
    for all four parts, and the actions of the model."""
    parts = (splits.train, splits.watched, splits.calibration, splits.test)
    space = splits.space
    if not foci_alone:
        mean = np.clip(soft(splits.train).mean(axis=0), _EDGE, 1.0 - _EDGE)
        odds = np.log(mean / (1.0 - mean))
        return [], [np.tile(odds, (len(part.X), 1)) for part in parts], list(range(len(space)))
    heads_of, said = grown(splits, space.bases, space.uniform, seed, settings)
    foci = [k for k in range(len(space)) if k not in space.uniform]
    coarse = [space.index(str(space.actions[k].coarse)) for k in foci]
    for table in said:
        table[:, foci] = table[:, coarse]
    return heads_of, said, foci


def _beside(values: Values, boosters: list[lightgbm.Booster], splits: Splits) -> Values:
    """Return the values with what other boosters weigh and take beside the one that made them."""
    more = booster_values(
        values.calibration, values.test, boosters, time.perf_counter(), splits.test.X
    )
    return replace(
        values,
        parameters=values.parameters + more.parameters,
        ms_a_decision=values.ms_a_decision + more.ms_a_decision,
        note=f"{more.note} + {values.note}",
    )


def _rows(part: Part, space: ActionSpace, columns: list[int]) -> np.ndarray:
    """Return (n * columns, F + 6): each question once for every action, which stands behind it."""
    described = np.array([_told(space.actions[k]) for k in columns])
    tokens = np.log(part.tokens[:, columns]).reshape(-1, 1)
    x = np.repeat(part.X, len(columns), axis=0)
    return np.hstack([x, np.tile(described, (len(part.X), 1)), tokens]).astype(np.float32)


def _told(action: Action) -> tuple[float, ...]:
    """Return coarse and fine level, and the rule's share, surroundings and most cells."""
    rule = action.rule
    if rule is None:
        return (float(action.coarse), 0.0, 0.0, 0.0, 0.0)
    numbers = (action.coarse, action.fine or 0, rule.share, AROUND.index(rule.around), rule.most)
    return tuple(map(float, numbers))


# Rows stand for a question once an action: as many more must agree in a leaf.
_WIDE = {"num_leaves": 31, "min_data_in_leaf": 300}
FOCI: dict[str, Fit] = {
    "forest": chained,
    "forest, foci from their fine scale": forest(fine_level),
    "forest, foci from like tokens": forest(like_tokens),
    "forest, foci of 10 trees": forest(most=10),
    "forest, foci of 20 trees": forest(most=20),
    "forest, foci of 40 trees": forest(most=40),
    "forest, foci slow": forest(learning_rate=0.03),
    "forest, foci small": forest(num_leaves=4, min_data_in_leaf=100),
    "forest, told the plan": forest(with_plan=True),
    "heads, soft labels": heads(soft),
    "action described": described(**_WIDE),
    "action described, 100 trees": described(100, **_WIDE),
    "action described, 30 trees": described(30, **_WIDE),
    "chain, foci described": described(foci_alone=True, **_WIDE),
    "mean of forest and action described": mean_of(chained, described(**_WIDE)),
    "table of types": table_of_types,
}


def kinds_of(space: ActionSpace) -> Mapping[str, Fit]:
    """Return the kinds to compare over a space."""
    return ALL_KINDS if space.is_uniform else FOCI
