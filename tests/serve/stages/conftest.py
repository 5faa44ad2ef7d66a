"""Encoders of the tiny model, closed when a test ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from router.decision import Constraints
from serve.metrics import LocalMetrics
from serve.settings import ServeSettings
from serve.stages.checkpoint import Checkpoint, load_checkpoint
from serve.stages.encoder import Encoder
from serve.stages.messages import Encoded, EncodeRequest


@pytest.fixture(scope="module")
def checkpoint(tiny_model: Path) -> Checkpoint:
    return load_checkpoint(tiny_model, half="encoder", device="cpu")


@pytest.fixture
def make_encoder(checkpoint: Checkpoint, tiny_model: Path) -> Iterator[Callable[..., Encoder]]:
    made: list[Encoder] = []

    def make(**more: Any) -> Encoder:
        settings = ServeSettings(
            model=tiny_model, **{"registry": None, "registry_poll_s": 0.02, **more}
        )
        made.append(Encoder(checkpoint, settings, LocalMetrics()))
        return made[-1]

    yield make
    for encoder in made:
        encoder.close()


def ask(encoder: Encoder, *pictures: bytes, **constraints: Any) -> Encoded:
    request = EncodeRequest(pictures, "What is it?", Constraints(**constraints))
    return asyncio.run(encoder.encode_and_route(request))
