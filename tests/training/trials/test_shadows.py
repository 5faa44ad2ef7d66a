"""What a log tells of shadows, by hand."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from router.records import DecisionRecord, to_table
from training.errors import BadRecord, TrainingError
from training.trials.shadows import report

NOON = datetime(2026, 11, 28, 12, tzinfo=UTC)


def log_of(folder: Path, shadows: list[Any]) -> Path:
    rows = [
        DecisionRecord(
            request_id=f"r{number}", time_utc=NOON + timedelta(seconds=number), picture_ids=("p",),
            model="m3-auto", scale=36, visual_tokens=36, reason="predicted",
            shadow=each if each is None or isinstance(each, str) else json.dumps(each),
        )
        for number, each in enumerate(shadows)
    ]  # fmt: skip
    (folder / "decisions").mkdir(parents=True)
    pq.write_table(to_table(rows, DecisionRecord), folder / "decisions" / "a.parquet")
    return folder


def decided(version: str, actions: str, tokens: int, served: str, read: int) -> dict[str, Any]:
    first = {"actions": served.split(), "visual_tokens": read}
    return {"version": version, "actions": actions.split(), "visual_tokens": tokens,
            "served": first, "ms": 0.5}  # fmt: skip


def test_differences_are_counted_by_kind_of_action(tmp_path: Path) -> None:
    log = log_of(tmp_path, [
        decided("new", "9", 9, "36", 36), None, decided("old", "36", 36, "36", 36),
        decided("new", "9", 9, "36", 36), decided("new", "36+576@250x9", 60, "144", 144),
        decided("new", "36", 36, "36", 36), {"version": "new", "failed": "ValueError"},
        decided("new", "9 1", 10, "9 9", 18), decided("new", "576", 576, "36", 36),
    ])  # fmt: skip
    new, old = report(log)
    assert (new.version, new.decided, new.same, dict(new.failed)) == (
        "new",
        6,
        1,
        {"ValueError": 1},
    )
    assert (new.served_tokens, new.shadow_tokens, new.ms) == (306, 700, 3.0)
    assert new.commonest(2) == [
        (("36",), ("9",), 2, 54),
        (("144",), ("36+576@250x9",), 1, 84),
    ]
    assert (("36",), ("576",), 1, -540) in new.commonest()
    assert (("9", "9"), ("9", "1"), 1, 8) in new.commonest()
    assert (old.version, old.decided, old.same, old.commonest()) == ("old", 1, 1, [])


@pytest.mark.parametrize(
    "damaged", ["{", "[]", "{}", '{"version": "a"}', '{"version": "a", "served": 1}']
)
def test_what_is_damaged_is_named(tmp_path: Path, damaged: str) -> None:
    with pytest.raises(BadRecord, match="what a shadow did is damaged"):
        report(log_of(tmp_path, [damaged]))


def test_without_a_shadow_it_says_how_to_begin_one(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="tells of no shadow; m3-train shadow ROUTER begins"):
        report(log_of(tmp_path, [None]))
