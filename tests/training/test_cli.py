"""`m3-train`: bad input is one line and exit code 2; the light commands work end to end."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from router.records import DecisionRecord, picture_id, to_table
from router.registry import current_router_path, history


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["collect", "--out", "x"], "exactly one of --scenes"),
        (["collect", "--out", "x", "--scenes", "2", "--from-log", "y"], "exactly one of"),
        (["collect", "--out", "x", "--data", "d.json"], "--data needs --images"),
        (["collect", "--out", "x", "--data", "d.json", "--images", "."], "cannot read d.json"),
        (["collect", "--out", "x", "--scenes", "0", "--model", "."], "between 1 and"),
        (["collect", "--out", "x", "--scenes", "2", "--model", "."], "no config.json"),
        (["collect", "--out", "x", "--from-log", "nowhere"], "does not exist"),
        (["collect", "--out", "x", "--scenes", "2", "--metric", "anls"], "scenes have exact"),
        (["collect", "--out", "x", "--from-log", "y", "--repeats", "2"], "--repeats needs"),
        (["collect", "--out", "x", "--scenes", "2", "--device", "tpu"], "no device tpu"),
        (["collect", "--out", "/dev/null/x", "--scenes", "2", "--workers", "1"], "/dev/null/x: "),
        (["fit", "--oracle", "nowhere", "--out", "x"], "no oracle data"),
        (
            ["evaluate", "--oracle", "nowhere", "--out", "x", "--router", "no"],
            "not a router folder",
        ),
        (["evaluate", "--oracle", "nowhere", "--out", "x", "--router", "."], "missing"),
        (["promote", "--router", ".", "--registry", "r"], "not a usable router"),
        (["rollback", "--registry", "nowhere"], "not a registry"),
        (["retrain", "--from-log", "nowhere", "--out", "x", "--model", "."], "no config.json"),
        (["model", "--out", "x"], "either --preset mini, or --init"),
        (["model", "--out", "x", "--preset", "maxi"], "unknown preset"),
        (["model", "--out", "x", "--preset", "mini", "--lr", "1"], "leave out --lr"),
        (["model", "--out", "x", "--init", "."], "--init needs --data"),
        (["model", "--out", "x", "--init", ".", "--stage", "cut"], "--stage goes with --preset"),
        (["model", "--out", "x", "--preset", "mini", "--focus"], "its folder as --start"),
        (["model", "--out", "x", "--preset", "mini", "--stage", "fine"], "its folder as --start"),
    ],
)
def test_bad_input_is_one_line(command, tmp_path, monkeypatch, words: list[str], says: str) -> None:
    monkeypatch.chdir(tmp_path)
    done = command("m3-train", *words)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert lines[-1].startswith("error: ")
    assert says in lines[-1]
    assert "Traceback" not in done.stderr


def test_flags_are_checked(command, python) -> None:
    wrong = command("m3-train", "fit", "--oracle", ".", "--out", "x", "--cost", "bananas")
    assert wrong.returncode == 2
    assert "certify" in python("-m", "training.cli", "--help").stdout


def test_too_little_data_says_how_much(command, tiny_model: Path, tmp_path: Path) -> None:
    oracle = tmp_path / "oracle"
    done = command(
        "m3-train", "collect", "--scenes", 3, "--out", oracle, "--model", tiny_model,
        "--workers", 1, "--max-new-tokens", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "questions about 3 pictures" in done.stderr
    assert "accuracy (" in done.stdout
    assert "no answer at any action earned anything" in done.stderr  # a random model
    done = command("m3-train", "fit", "--oracle", oracle, "--out", tmp_path / "router")
    assert done.returncode == 2
    assert "too little data" in done.stderr
    assert not (tmp_path / "router").exists()
    done = command(
        "m3-train", "collect", "--scenes", 4, "--out", oracle, "--model", tiny_model, "--workers", 1
    )
    assert done.returncode == 2
    assert "was written by a run with another" in done.stderr


@pytest.mark.slow
def test_retrain_turns_a_log_into_a_router_in_force(
    command, tiny_model: Path, tmp_path: Path
) -> None:
    """The whole turn of learning on a service's log, without a reference."""
    from datetime import UTC, datetime

    log, rng = tmp_path / "log", np.random.default_rng(0)
    decisions = []
    for name in ("decisions", "feedback", "images"):
        (log / name).mkdir(parents=True)
    for number in range(36):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        identity = picture_id(pixels)
        Image.fromarray(pixels).save(log / "images" / f"{identity}.png")
        decisions += [
            DecisionRecord(
                request_id=f"{number}-{word}", time_utc=datetime.now(UTC), picture_ids=(identity,),
                question=f"what {word} is it?", model="m3-auto", scale=36, visual_tokens=36,
                reason="predicted", audited=True,
            )
            for word in ("color", "shape")
        ]  # fmt: skip
    pq.write_table(to_table(decisions, DecisionRecord), log / "decisions" / "d.parquet")
    registry, out = tmp_path / "registry", tmp_path / "out"
    words = [
        "retrain", "--from-log", log, "--out", out, "--model", tiny_model, "--registry", registry,
        "--workers", 1,
    ]  # fmt: skip
    for bad, says in (
        (["--max-harm", 2], "--max-harm must be between 0 and 1"),
        (["--target", 0], "--target must be above 0"),
        (["--second-look", "--cost", "flops"], "leave out --cost flops"),
    ):
        done = command("m3-train", *words, *bad)
        assert done.returncode == 2
        assert says in done.stderr
        assert not out.exists()  # before an hour of labelling
    done = command("m3-train", *words)
    assert done.returncode == 2
    assert "to replace always the finest scale: target 0.995, costs in tokens" in done.stderr
    assert "fresh audited pictures cannot show anything" in done.stderr.splitlines()[-1]
    assert current_router_path(registry) is None
    verdict = json.loads((out / "report" / "verdict.json").read_text())
    assert not verdict["passed"]
    assert verdict["missing"] == verdict["least_pictures"] - verdict["pictures"] > 300
    done = command("m3-train", "promote", "--router", out / "router", "--registry", registry)
    assert done.returncode == 2
    assert "nothing shows that it may replace always the finest scale" in done.stderr
    done = command("m3-train", *words, "--force")
    assert done.returncode == 0, done.stderr
    [entry] = history(registry)
    assert entry.forced
    assert entry.why.startswith("forced against the gate: ")
    folder = current_router_path(registry)
    assert folder is not None
    assert str(folder) in done.stderr
    report = json.loads((out / "report" / "report.json").read_text())
    assert report["scored_by"] == "agreement with the finest"
    assert report["finest_accuracy"] == 1.0
    assert report["gate"]["why"] == verdict["why"]
    assert report["gate"]["forced"]
    both = ("--router", folder, "--router", out / "router")
    done = command("m3-train", "replay", "--oracle", out / "oracle", *both)
    assert done.returncode == 0, done.stderr
    assert "+0.00 pt (+0.00 to +0.00)" in " ".join(done.stdout.split())
    done = command("m3-train", "promote", "--router", out / "router", "--registry", registry)
    assert done.returncode == 0
