"""The whole turn of learning past the gate: a log in which most tokens are wasted, then a router.

The model is random but blind: what it reads of a picture is nothing, so its answer depends on the
question and on how much nothing it reads. To one question 36 tokens say what 576 do, to the other
only 576. A router that knows the questions apart loses nothing, and the gate can see it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from router import Router
from router.records import DecisionRecord, picture_id, to_table
from router.registry import current_router_path, history
from training.oracle.data import read_oracle
from training.promotion.weighing import least_pictures

PICTURES = 1560  # of which test pictures, about three in ten, must be as many as the gate needs
EASY, HARD = "what shape is it?", "read it."


@pytest.fixture(scope="module")
def blind(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("blind") / "model"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if "multi_modal_projector.linear_2" in name:
            weights[name].zero_()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A question about each picture, of either kind in turn, answered at the finest scale."""
    folder, rng = tmp_path_factory.mktemp("served") / "log", np.random.default_rng(0)
    for name in ("decisions", "images"):
        (folder / name).mkdir(parents=True)
    records = []
    for number in range(PICTURES):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        identity = picture_id(pixels)
        Image.fromarray(pixels).save(folder / "images" / f"{identity}.png")
        records.append(
            DecisionRecord(
                request_id=f"r{number}", time_utc=datetime.now(UTC), picture_ids=(identity,),
                question=(EASY, HARD)[number % 2], model="m3-auto", scale=576, visual_tokens=576,
                reason="predicted", audited=True, max_tokens=1,
            )
        )  # fmt: skip
    pq.write_table(to_table(records, DecisionRecord), folder / "decisions" / "d.parquet")
    return folder


@pytest.mark.slow
def test_a_log_turns_into_a_router_that_the_gate_lets_through(
    blind: Path, log: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    registry, out = tmp_path / "registry", tmp_path / "out"
    done = command(
        "m3-train", "retrain", "--from-log", log, "--out", out, "--model", blind,
        "--registry", registry, "--workers", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the gate passed: it answers as well as the finest scale's floor" in done.stderr
    [entry] = history(registry)
    assert (entry.action, entry.forced) == ("promote", False)
    verdict = json.loads((out / "report" / "verdict.json").read_text("utf-8"))
    assert verdict["passed"]
    assert verdict["pictures"] >= least_pictures()
    folder = current_router_path(registry)
    assert folder is not None
    router = Router.from_pretrained(folder)
    assert router.version == Router.from_pretrained(out / "router").version
    # Half of the questions need 36 tokens, or a focus that reads as little; the rest all 576.
    candidate = verdict["candidate"]
    assert candidate["accuracy"] > 0.995
    assert 288 <= candidate["visual_tokens"] < 400
    data = read_oracle([out / "oracle"])
    easy = data.scores[:, data.space.index("36")] > 0
    picks = np.array([router.route(row).scale for row in data.features[:200]])
    assert (picks[~easy[:200]] == 576).all()
    assert (picks[easy[:200]] <= 144).mean() > 0.95
    # What made it may not be offered again as something new, and what is worse does not follow it.
    done = command("m3-train", "promote", "--router", out / "router", "--registry", registry)
    assert done.returncode == 0
    assert "it is the router in force already" in done.stderr
