"""The engine benchmark's own parts: its report has the promised keys, its baselines are right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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
