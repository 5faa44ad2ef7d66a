"""An encoder watches what it decides about, against what lies beside its router."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from router import Router
from router.drift.population import POPULATION_FILE, Population, deciles
from serve.stages.encoder import Encoder

from .conftest import ask


def test_an_encoder_watches_its_own_decisions(
    make_encoder: Callable[..., Encoder], make_router: Any, picture_bytes: Any, tmp_path: Path
) -> None:
    """A population in which nothing of the tiny model's pictures lies, and 100 pictures."""
    version = make_router(tmp_path, 36)
    router = Router.from_pretrained(tmp_path)
    n_features, names = len(router.schema.names), router.space.names
    far = np.random.default_rng(0).normal(1e4, 1, size=(3000, n_features))
    told = Population(
        router.predictor_hash, 3000.0, *deciles(far), router.price,
        dict.fromkeys(names, 0.2), dict.fromkeys(names, 0.5),
    )  # fmt: skip
    (tmp_path / POPULATION_FILE).write_bytes(told.to_bytes())
    encoder = make_encoder(router=tmp_path)
    assert encoder._router.version == version  # the file counts for nothing
    for seed in range(100):
        ask(encoder, picture_bytes(seed))
    status = asyncio.run(encoder.status())
    assert f"{n_features} of {n_features} features have moved" in status.drift
    text = asyncio.run(encoder._metrics.text())
    assert f"m3_drift_features {n_features}.0" in text
