"""The kinds of predictor that were compared, each small enough to serve: what it learns, how.

Most are one LightGBM booster a scale with the same settings; they differ in the target. Knows
splits and LightGBM; does not know prices or tables.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightgbm
import numpy as np
from _predictors.splits import Part, Splits, Values

from router.predictor.calibration import fit_calibration
from router.predictor.trees import table_of
from training.figures.metrics import Array

SETTINGS: Mapping[str, Any] = {
    "learning_rate": 0.1,
    "num_leaves": 15,
    "min_data_in_leaf": 40,
    "feature_fraction": 0.5,
    "lambda_l2": 5.0, "max_bin": 63,
    "deterministic": True, "force_row_wise": True, "num_threads": 1, "verbosity": -1,
}  # fmt: skip
MOST_TREES, PATIENCE = 600, 40
RANK_PRICES = (0.02, 0.1, 0.5)  # quality per unit of cost at which the ranker learns to choose
RANK_LEVELS, RANK_STEEPNESS = 30, 4.0
TIMED_ROWS = 200
Fit = Callable[[Splits, int, Mapping[str, Any]], Values]
Label = Callable[[Part], Array]


def hard(part: Part) -> Array:
    """Return (n, A) scores."""
    return part.scores


def soft(part: Part) -> Array:
    """Return (n, A) P(reference answer), or scores where there is no reference."""
    return part.soft


def mixed(part: Part) -> Array:
    """Return (n, A) means of score and P(reference answer)."""
    return 0.5 * part.scores + 0.5 * part.soft


def first_sufficient(part: Part) -> Array:
    """Return (n, A): 1 where this scale or a coarser one is right."""
    return np.maximum.accumulate(part.scores, axis=1)


def heads(label: Label) -> Fit:
    """Return a kind with one probability a scale, mapped to scores on calibration pictures."""

    def fit(splits: Splits, seed: int, settings: Mapping[str, Any]) -> Values:
        started = time.perf_counter()
        boosters = _boosters(
            splits, label(splits.train), label(splits.watched), "cross_entropy", seed, settings
        )
        raw, of_test = (raw_scores(boosters, part.X) for part in (splits.calibration, splits.test))
        truth = (first_sufficient if label is first_sufficient else hard)(splits.calibration)
        return booster_values(*mapped(raw, of_test, truth), boosters, started, splits.test.X)

    return fit


def gain_over(reference: int, label: Label) -> Fit:
    """Return a kind that learns each scale's gain over one scale (its index), by least squares."""

    def fit(splits: Splits, seed: int, settings: Mapping[str, Any]) -> Values:
        started = time.perf_counter()
        others = np.delete(np.arange(len(splits.space)), reference)

        def target(part: Part) -> Array:
            y = label(part)
            return (y - y[:, [reference]])[:, others]

        boosters = _boosters(
            splits, target(splits.train), target(splits.watched), "regression", seed, settings
        )
        both = []
        for part in (splits.calibration, splits.test):
            table = np.zeros((len(part.X), len(splits.space)))
            table[:, others] = raw_scores(boosters, part.X)
            both.append(table)
        return booster_values(*both, boosters, started, splits.test.X)

    return fit


def steps(label: Label) -> Fit:
    """Return a kind that learns what each scale adds to the next coarser one; values are sums."""

    def fit(splits: Splits, seed: int, settings: Mapping[str, Any]) -> Values:
        started = time.perf_counter()
        targets = [np.diff(label(part), axis=1) for part in (splits.train, splits.watched)]
        boosters = _boosters(splits, targets[0], targets[1], "regression", seed, settings)
        both = (
            np.pad(raw_scores(boosters, part.X).cumsum(axis=1), ((0, 0), (1, 0)))
            for part in (splits.calibration, splits.test)
        )
        return booster_values(*both, boosters, started, splits.test.X)

    return fit


def scale_as_feature(monotone: bool) -> Fit:
    """Return a kind with one model of (question, scale) rows, soft labels."""

    def fit(splits: Splits, seed: int, settings: Mapping[str, Any]) -> Values:
        started, k = time.perf_counter(), len(splits.space)
        width = splits.train.X.shape[1]
        extra = {"monotone_constraints": [0] * width + [1]} if monotone else {}
        booster = _train(
            (_with_scale(splits.train.X, k), soft(splits.train).ravel()),
            (_with_scale(splits.watched.X, k), soft(splits.watched).ravel()),
            {**settings, **extra, "objective": "cross_entropy", "seed": seed},
        )
        raw, of_test = (
            raw_scores([booster], _with_scale(part.X, k)).reshape(-1, k)
            for part in (splits.calibration, splits.test)
        )
        both = mapped(raw, of_test, splits.calibration.scores)
        return booster_values(*both, [booster], started, _with_scale(splits.test.X, k), passes=k)

    return fit


def ranker(splits: Splits, seed: int, settings: Mapping[str, Any]) -> Values:
    """Return values by LambdaRank over (question, scale) rows.

    Each question ranks its scales by utility at a price drawn for it. The price enters as the
    score's starting point: what is learnt is the value alone, and any price can be set later.
    """
    started, k = time.perf_counter(), len(splits.space)
    rng = np.random.default_rng(seed)

    def rows(part: Part) -> dict[str, Any]:
        price = rng.choice(RANK_PRICES, size=(len(part.X), 1))
        utility = soft(part) - price * part.costs
        grades = np.rint(np.clip((utility + 0.5) / 1.5, 0.0, 1.0) * RANK_LEVELS).astype(int)
        return {
            "data": _with_scale(part.X, k),
            "label": grades.ravel(),
            "group": np.full(len(part.X), k),
            "init_score": (-RANK_STEEPNESS * price * part.costs).ravel(),
        }

    parameters = {
        **settings,
        "objective": "lambdarank", "metric": "ndcg", "eval_at": [1],
        "label_gain": list(range(RANK_LEVELS + 1)),
        "lambdarank_truncation_level": k,
        "seed": seed,
    }  # fmt: skip
    data = lightgbm.Dataset(**rows(splits.train), params=parameters)
    watched = lightgbm.Dataset(**rows(splits.watched), reference=data, params=parameters)
    booster = _stopped(parameters, data, watched)
    both = (
        raw_scores([booster], _with_scale(part.X, k)).reshape(-1, k) / RANK_STEEPNESS
        for part in (splits.calibration, splits.test)
    )
    return booster_values(*both, [booster], started, _with_scale(splits.test.X, k), passes=k)


def mean_of(*kinds: Fit) -> Fit:
    """Return a kind whose values are the mean of other kinds', relative to the finest scale."""

    def fit(splits: Splits, seed: int, settings: Mapping[str, Any]) -> Values:
        made = [kind(splits, seed, settings) for kind in kinds]

        def mean(tables: Sequence[Array]) -> Array:
            return np.mean([table - table[:, -1:] for table in tables], axis=0)

        return replace(
            made[0],
            calibration=mean([one.calibration for one in made]),
            test=mean([one.test for one in made]),
            parameters=sum(one.parameters for one in made),
            fit_seconds=sum(one.fit_seconds for one in made),
            ms_a_decision=sum(one.ms_a_decision for one in made),
            note=" + ".join(one.note for one in made),
        )

    return fit


KINDS: dict[str, Fit] = {
    "heads, hard labels": heads(hard),
    "heads, soft labels": heads(soft),
    "heads, mean of both": heads(mixed),
    "gain over coarsest": gain_over(0, soft),
    "gain over finest": gain_over(-1, soft),
    "gain over previous": steps(soft),
    "gain over previous, mean of both": steps(mixed),
    "scale as feature": scale_as_feature(False),
    "scale as feature, monotone": scale_as_feature(True),
    "ordinal": heads(first_sufficient),
    "LambdaRank": ranker,
    "mean of soft heads and gain over previous": mean_of(heads(soft), steps(soft)),
}


def _with_scale(X: np.ndarray, k: int) -> np.ndarray:
    """Return (n * k, F + 1): each row once for every scale, the scale's number behind it."""
    rows = np.repeat(X, k, axis=0)
    return np.hstack([rows, np.tile(np.arange(k, dtype=np.float32), len(X))[:, None]])


def _boosters(
    splits: Splits,
    targets: Array,
    watched: Array,
    objective: str,
    seed: int,
    settings: Mapping[str, Any],
) -> list[lightgbm.Booster]:
    parameters = {**settings, "objective": objective, "seed": seed}
    return [
        _train((splits.train.X, targets[:, k]), (splits.watched.X, watched[:, k]), parameters)
        for k in range(targets.shape[1])
    ]


def _train(
    learnt: tuple[np.ndarray, Array], watched: tuple[np.ndarray, Array], parameters: dict[str, Any]
) -> lightgbm.Booster:
    data = lightgbm.Dataset(*learnt, params=parameters)
    return _stopped(parameters, data, lightgbm.Dataset(*watched, reference=data, params=parameters))


def _stopped(
    parameters: dict[str, Any], data: lightgbm.Dataset, watched: lightgbm.Dataset
) -> lightgbm.Booster:
    booster = lightgbm.train(
        parameters,
        data,
        num_boost_round=MOST_TREES,
        valid_sets=[watched],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )
    return trimmed(booster)


def trimmed(booster: lightgbm.Booster) -> lightgbm.Booster:
    """Return the booster read back without the trees that did not help, as one that is served."""
    text = booster.model_to_string(num_iteration=booster.best_iteration)
    return lightgbm.Booster(model_str=text)


def raw_scores(boosters: Sequence[lightgbm.Booster], X: np.ndarray) -> Array:
    """Return (n, boosters) raw scores."""
    return np.stack([b.predict(X, raw_score=True, num_threads=1) for b in boosters], axis=1)


def mapped(raw: Array, of_test: Array, truth: Array) -> tuple[Array, Array]:
    """Return the probabilities (m, A), (n, A) of raw scores of calibration and test questions.

    Args:
        truth: (m, A) of the calibration questions, which an action's map is fitted on.
    """
    maps = [fit_calibration("platt", raw[:, k], truth[:, k]) for k in range(raw.shape[1])]
    first, second = (
        np.stack([at(table[:, k]) for k, at in enumerate(maps)], axis=1) for table in (raw, of_test)
    )
    return first, second


def booster_values(
    calibration: Array,
    test: Array,
    boosters: Sequence[lightgbm.Booster],
    started: float,
    X: np.ndarray,
    passes: int = 1,
) -> Values:
    """Return the values with what the boosters weigh and take for one decision."""
    seconds = time.perf_counter() - started
    texts = [booster.model_to_string() for booster in boosters]
    table, times = table_of(texts), []
    for start in range(0, min(passes * TIMED_ROWS, len(X)), passes):
        begun = time.perf_counter()
        if table is not None:
            table(X[start : start + passes])
        times.append(time.perf_counter() - begun)
    trees = [booster.num_trees() for booster in boosters]
    leaves = sum(int(count) for text in texts for count in re.findall(r"num_leaves=(\d+)", text))
    return Values(
        calibration,
        test,
        leaves,
        seconds,
        1e3 * float(np.median(times)),
        f"{'+'.join(map(str, trees))} trees",
    )
