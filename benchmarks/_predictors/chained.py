"""The kind that ships: soft heads, each going on from another's log odds: a scale from the next
coarser one, a focus from the action it is named to start from.

With it the other forests: foci with other bases, with few or slow trees, with what they would read
as features. Knows the other kinds and the product's boosters; does not know prices or tables.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from _predictors.kinds import (
    KINDS,
    MOST_TREES,
    PATIENCE,
    Fit,
    booster_values,
    mapped,
    raw_scores,
    soft,
    trimmed,
)
from _predictors.splits import Part, Splits, Values

from router.predictor.boosting import Rows, train
from router.predictor.forest import fitting_order

Bases = Callable[[Splits], Sequence[int]]


def own(splits: Splits) -> tuple[int, ...]:
    """Return the bases that the actions name."""
    return splits.space.bases


def fine_level(splits: Splits) -> tuple[int, ...]:
    """Return for a focus the scale of its fine level, for a scale the base it names."""
    actions, names = splits.space.actions, splits.space.names
    return tuple(
        base if action.is_uniform else names.index(str(action.fine))
        for action, base in zip(actions, splits.space.bases, strict=True)
    )


def like_tokens(splits: Splits) -> tuple[int, ...]:
    """Return for a focus the earlier action of the nearest mean tokens, compared by their logarithm
    on training questions; for a scale the base it names."""
    tokens = np.log(splits.train.tokens.mean(axis=0))
    return tuple(
        base if action.is_uniform or k == 0 else int(np.argmin(np.abs(tokens[:k] - tokens[k])))
        for k, (action, base) in enumerate(
            zip(splits.space.actions, splits.space.bases, strict=True)
        )
    )


def forest(
    bases: Bases = own,
    most: int = MOST_TREES,
    with_plan: bool = False,
    **of_foci: Any,
) -> Fit:
    """Return a kind of soft heads that go on from each other's log odds.

    Args:
        bases: where each action starts.
        most: trees of a focus at most.
        with_plan: whether the features tell how many cells every focus would read.
        of_foci: settings of LightGBM for foci alone.
    """

    def fit(splits: Splits, seed: int, settings: Mapping[str, Any]) -> Values:
        started = time.perf_counter()
        here = planned(splits) if with_plan else splits
        order = fitting_order(bases(here))
        boosters, tables = grown(here, bases(here), order, seed, settings, most, of_foci)
        both = mapped(tables[2], tables[3], here.calibration.scores)
        return booster_values(*both, boosters, started, here.test.X)

    return fit


def grown(
    splits: Splits,
    bases: Sequence[int],
    order: Sequence[int],
    seed: int,
    settings: Mapping[str, Any],
    most: int = MOST_TREES,
    of_foci: Mapping[str, Any] | None = None,
) -> tuple[list[Any], list[np.ndarray]]:
    """Return a booster for each action of an order, and what they add up to: (n, A) log odds of the
    questions learnt, watched, of calibration and of test; 0 for actions that are left out."""
    boosters = []
    parts = (splits.train, splits.watched, splits.calibration, splits.test)
    said = [np.zeros(part.scores.shape) for part in parts]
    parameters = {**settings, "objective": "cross_entropy", "seed": seed}
    for k in order:
        base, uniform = bases[k], splits.space.actions[k].is_uniform
        learnt, watched = (
            Rows(part.X, soft(part)[:, k], start=None if base < 0 else table[:, base])
            for part, table in zip(parts[:2], said[:2], strict=True)
        )
        wanted = parameters if uniform else {**parameters, **(of_foci or {})}
        trees = MOST_TREES if uniform else most
        booster = trimmed(train(learnt, wanted, trees, watched, PATIENCE))
        for part, table in zip(parts, said, strict=True):
            before = 0.0 if base < 0 else table[:, base]
            table[:, k] = before + raw_scores([booster], part.X)[:, 0]
        boosters.append(booster)
    return boosters, said


def planned(splits: Splits) -> Splits:
    """Return the splits with one feature more a focus: how many tokens it would take."""
    foci = [k for k, action in enumerate(splits.space.actions) if not action.is_uniform]

    def told(part: Part) -> Part:
        counts = part.tokens[:, foci].astype(np.float32)
        return replace(part, X=np.ascontiguousarray(np.hstack([part.X, counts])))

    parts = (splits.train, splits.watched, splits.calibration, splits.test)
    return Splits(*map(told, parts), splits.space)


chained = forest()
ALL_KINDS: dict[str, Fit] = {"heads, soft labels, chained": chained, **KINDS}
