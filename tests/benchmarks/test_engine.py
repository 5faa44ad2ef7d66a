"""The engine benchmark's own parts: its report has the promised keys, its baselines are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    "exact": {"equal", "of"},
    "throughput_ratio": {"vs_left_padded", "vs_per_scale"},
    "poisson": {"ttft_ratio_vs_per_scale", "p95_ratio_vs_per_scale"},
    "routed_vs_finest": {"measured", "analytic"},
    "kv_bytes": {"measured", "computed"},
    "bound_share": {"mixed", "all_finest"},
    "decode": {"ops_per_layer", "host_copies_per_step"},
}


def holds_the_keys(report: dict[str, object]) -> bool:
    told = {"gpu", "attention", "device", "dtype"}
    return told <= set(report) and all(keys <= set(report[name]) for name, keys in KEYS.items())


def test_the_committed_report_has_the_promised_keys() -> None:
    report = json.loads((ROOT / "benchmarks/results/engine.json").read_text("utf-8"))
    assert holds_the_keys(report)
    assert report["exact"]["equal"] == report["exact"]["of"] == 200
    assert not report["quick"]


@pytest.mark.slow
def test_it_runs_small(tmp_path: Path, python: Any) -> None:
    out = tmp_path / "engine.json"
    done = python(ROOT / "benchmarks/engine.py", "--quick", "--json", out)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text("utf-8"))
    assert holds_the_keys(report)
    exact = report["exact"]
    assert exact["equal"] == exact["of"] == exact["equal_when_all_share_every_pass"] == 20
    assert exact["prefixes_reused"] > 0
    assert exact["control_answers_changed_by_rolled_features"] > 15
    bf16 = exact["bf16"]
    assert (
        bf16["every_token_the_best_alone_too"] + bf16["first_difference_at_a_near_tie"]
        == bf16["of"]
    )
    kv = report["kv_bytes"]
    assert kv["measured"] == kv["computed"] >= kv["computed_without_page_rounding"]
    assert 0 < report["bound_share"]["mixed"] < 1
    assert report["decode"]["host_copies_per_step"] == 0
    assert report["growth"]["kv_pages_used_at_the_end"] == 0


@pytest.mark.slow
def test_what_a_gpu_must_show_runs_here_small_and_goes_on_where_it_stopped(
    tmp_path: Path, python: Any
) -> None:
    out = tmp_path / "gpu.json"
    parts = {"checks": {"returncode": 0}, "prefill": {"error": "RuntimeError: gone"}}
    out.write_text(json.dumps({"parts": parts, "left_out": ["memory"]}), "utf-8")
    words = ["-m", "benchmarks.engine", "--gpu-slot", "--quick", "--json", out]
    done = python(*words)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text("utf-8"))
    assert report["left_out"] == []
    found = report["parts"]
    assert not [name for name, part in found.items() if "error" in part], found
    assert set(found) >= {"device", "checks", "syncs", "decode", "mix and finest", "under load",
                          "prefill", "memory", "static batches", "m3-mini"}  # fmt: skip
    assert "checks:" not in done.stdout  # it was there already
    assert found["decode"]["16"]["eager_ms"] > 0
    assert 0 < found["mix and finest"]["mix"]["share_of_bound"] < 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_says_so(tmp_path: Path, python: Any) -> None:
    done = python("-m", "benchmarks.engine", "--gpu-slot", "--json", tmp_path / "x")
    assert done.returncode == 2
    assert "needs an NVIDIA GPU" in done.stderr
