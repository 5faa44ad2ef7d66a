"""Writes what a router was fitted on beside it, so that services can hold their traffic against it.

Knows oracle data and routers; what is told, and its file, are router.drift.population's.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from router.drift.population import (
    POPULATION_FILE,
    Population,
    deciles,
    effective_units,
    read_population,
)
from router.places import Place
from router.policy import choose_many, row_costs
from router.predictor.matrix import in_memory
from router.router import Router
from training.files import replacing
from training.oracle.data import OracleData, check_fits

MOST_ROWS = 20_000  # deciles of more are the same


def write_population(folder: Path, router: Router, data: OracleData) -> None:
    """Write beside a router what its training questions look like and what it makes of those of the
    calibration pictures."""
    rows = _rows(data, "train")
    edges, shares = deciles(in_memory(data.features[rows]))
    units = effective_units(np.unique(data.units[rows], return_counts=True)[1])
    told = Population(router.predictor_hash, units, edges, shares, 0.0, {}, {})
    _write(folder, _with_choices(told, router, data))


def carry_population(before: Place, folder: Path, router: Router, data: OracleData) -> None:
    """Write beside a router that was priced anew what lies beside it in the folder ``before``;
    nothing where nothing is told there."""
    told = read_population(before, router)
    if told is None:
        (folder / POPULATION_FILE).unlink(missing_ok=True)  # what lies there is another router's
    else:
        _write(folder, _with_choices(told, router, data))


def first_choices(router: Router, data: OracleData) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return (n,) the actions that a router's first look freely takes, and (n, A) its values."""
    on = check_fits(router, data)
    values = np.asarray(router.predict_values(on.features), dtype=np.float64)
    policy, look = router.policy, router.second_look
    if look is not None:
        policy = replace(policy, price=look.start_price, finest_only=False)
    if policy.finest_only:
        return np.full(len(on), len(on.space) - 1, dtype=np.intp), values
    costs = row_costs(on.visual_tokens, router.scales, policy.costs)
    return choose_many(values, costs, policy.price), values


def _with_choices(told: Population, router: Router, data: OracleData) -> Population:
    picks, values = first_choices(router, data.take(_rows(data, "calibration")))
    names = router.space.names
    share = np.bincount(picks, minlength=len(names)) / len(picks)
    return replace(
        told,
        price=router.price,
        choices=dict(zip(names, np.round(share, 5).tolist(), strict=True)),
        chances=dict(zip(names, np.round(values.mean(axis=0), 5).tolist(), strict=True)),
    )


def _rows(data: OracleData, split: str) -> NDArray[np.intp]:
    """Return the questions of a split, of many an even sample."""
    rows = np.flatnonzero(data.splits == split)
    if len(rows) <= MOST_ROWS:
        return rows
    return rows[np.linspace(0, len(rows) - 1, MOST_ROWS).astype(np.intp)]


def _write(folder: Path, told: Population) -> None:
    with replacing(folder / POPULATION_FILE) as temporary:
        temporary.write_bytes(told.to_bytes())
