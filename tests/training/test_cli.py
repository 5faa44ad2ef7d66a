"""`m3-train`: bad input is one line and exit code 2; the light commands work end to end."""

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from router.records import DecisionRecord, picture_id, to_table
from router.registry import current_router_path
from training.cli.main import main


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Return (exit code, stdout, stderr) of m3-train."""
    old, sys.argv = sys.argv, ["m3-train", *map(str, words)]
    try:
        main()
        code = 0
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    finally:
        sys.argv = old
    seen = capsys.readouterr()
    return code, seen.out, seen.err


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
    ],
)
def test_bad_input_is_one_line(capsys, tmp_path, monkeypatch, words: list[str], says: str) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *words)
    assert code == 2
    lines = [line for line in err.splitlines() if line.strip()]
    assert lines[-1].startswith("error: ")
    assert says in lines[-1]
    assert "Traceback" not in err


def test_flags_are_checked(capsys) -> None:
    assert run(capsys, "fit", "--oracle", ".", "--out", "x", "--cost", "bananas")[0] == 2
    assert run(capsys, "--help")[0] == 0


def test_too_little_data_says_how_much(capsys, tiny_model: Path, tmp_path: Path) -> None:
    oracle = tmp_path / "oracle"
    code, _, err = run(
        capsys, "collect", "--scenes", 3, "--out", oracle, "--model", tiny_model, "--workers", 1,
        "--max-new-tokens", 2,
    )  # fmt: skip
    assert code == 0, err
    assert "questions about 3 pictures" in err
    code, _, err = run(capsys, "fit", "--oracle", oracle, "--out", tmp_path / "router")
    assert code == 2
    assert "too little data" in err
    assert not (tmp_path / "router").exists()
    code, _, err = run(
        capsys, "collect", "--scenes", 4, "--out", oracle, "--model", tiny_model, "--workers", 1
    )
    assert code == 2
    assert "was written by a run with another" in err


def test_retrain_turns_a_log_into_a_router_in_force(
    capsys, tiny_model: Path, tmp_path: Path
) -> None:
    """The whole turn of learning on a service's log, without a reference."""
    from datetime import UTC, datetime

    log, rng = tmp_path / "log", np.random.default_rng(0)
    decisions = []
    for name in ("decisions", "feedback", "images"):
        (log / name).mkdir(parents=True)
    for number in range(48):
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
    code, _, err = run(capsys, *words)
    assert code == 0, err
    folder = current_router_path(registry)
    assert folder is not None
    assert str(folder) in err
    report = json.loads((out / "report" / "report.json").read_text())
    assert report["scored_by"] == "agreement with the finest"
    assert report["finest_accuracy"] == 1.0
    code, shown, err = run(
        capsys, "replay", "--oracle", out / "oracle", "--router", folder, "--router", out / "router"
    )
    assert code == 0, err
    assert "+0.00 pt (+0.00 to +0.00)" in " ".join(shown.split())
    code, _, err = run(capsys, "promote", "--router", out / "router", "--registry", registry)
    assert code == 0
