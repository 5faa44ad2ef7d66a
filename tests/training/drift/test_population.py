"""What `fit` writes beside a router, and what becomes of it when the router is priced anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from router import Policy, Router
from router.drift.population import POPULATION_FILE, read_population
from router.drift.stability import stability
from training.drift.population import carry_population, write_population
from training.fitting.fit import fit
from training.oracle.data import OracleData, read_oracle
from training.registry.changes import promote

from .conftest import SCHEMA, draw, write_oracle


@pytest.fixture(scope="module")
def data(audits: Path) -> OracleData:
    return read_oracle([audits])


@pytest.fixture(scope="module")
def fitted(data: OracleData) -> Router:
    return fit(data).router


def test_it_tells_of_the_training_rows(fitted: Router, data: OracleData, tmp_path: Path) -> None:
    version = Router.from_pretrained(fitted.save_pretrained(tmp_path)).version
    write_population(tmp_path, fitted, data)
    again = Router.from_pretrained(tmp_path)
    assert again.version == version  # the file counts for no version
    told = read_population(tmp_path, again)
    assert told is not None
    train = data.split("train")
    assert told.units == len(train)  # one question a picture
    assert told.edges[0] == pytest.approx(
        np.quantile(train.features[:, 0], np.arange(1, 10) / 10, method="inverted_cdf")
    )
    assert sum(told.choices.values()) == pytest.approx(1.0, abs=1e-4)
    assert told.chances["36"] == pytest.approx(1.0, abs=0.02)  # the finest is always right
    assert not stability(told, told.counts(train.features), len(train)).moved.any()
    moved = draw(400, seed=9, shift=1.0).features
    found = stability(told, told.counts(moved), 400.0)
    assert [SCHEMA.names[k] for k in found.worst(5)] == [SCHEMA.names[2]]


def test_the_fit_command_writes_it_and_a_promotion_takes_it_along(
    command, audits: Path, tmp_path: Path
) -> None:
    done = command("m3-train", "fit", "--oracle", audits, "--out", tmp_path / "router")
    assert done.returncode == 0, done.stderr
    folder = promote(tmp_path / "router", tmp_path / "registry")
    assert read_population(folder, Router.from_pretrained(folder)) is not None


def test_another_price_has_its_own_choices(
    fitted: Router, data: OracleData, tmp_path: Path
) -> None:
    (tmp_path / "before").mkdir()
    write_population(tmp_path / "before", fitted, data)
    cheapest = fitted.with_policy(Policy(fitted.policy.costs, 9.0))
    (tmp_path / "after").mkdir()
    carry_population(tmp_path / "before", tmp_path / "after", cheapest, data)
    told = read_population(tmp_path / "after", cheapest)
    before = read_population(tmp_path / "before", fitted)
    assert told is not None
    assert before is not None
    assert told.edges == before.edges
    assert told.choices == {"1": 1.0, "9": 0.0, "36": 0.0}
    assert before.choices["1"] < 0.9
    other = write_oracle(tmp_path / "other", draw(1200, seed=4))
    stranger = fit(read_oracle([other])).router
    carry_population(tmp_path / "after", tmp_path / "after", stranger, data)
    assert not (tmp_path / "after" / POPULATION_FILE).exists()
