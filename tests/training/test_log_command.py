"""`m3-train log` as its user sees it: results on standard output, everything else beside it."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from router.log import read_log
from router.log.layout import only_compaction, segment_name, this_replica
from router.log.segments import SegmentStream
from router.records import DecisionRecord, FeedbackRecord, to_table
from training.cli.program import main

NOW = datetime.now(UTC)
GONE = "f" * 64


@pytest.fixture
def said(capsys: Any, monkeypatch: Any) -> Any:
    """Runs the command; returns (exit code, standard output, standard error)."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["m3-train", "log", *words])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log whose writer is gone: five decisions, one of long ago, and one said to be right."""
    decisions = [
        DecisionRecord(
            request_id=f"r{number}", time_utc=NOW - timedelta(days=40 * (number == 0)),
            picture_ids=(GONE,) if number == 4 else (), question=f"question {number}",
            model="m3-auto", scale=36, visual_tokens=36, reason="predicted", audited=number > 1,
        )
        for number in range(5)
    ]  # fmt: skip
    said = FeedbackRecord(request_id="r4", time_utc=NOW, score=1.0)
    (tmp_path / "log" / "live").mkdir(parents=True)
    for name, kind, records in (
        ("decisions", DecisionRecord, decisions), ("feedback", FeedbackRecord, [said]),
    ):  # fmt: skip
        data = SegmentStream(kind).batch(to_table(records, kind))
        (tmp_path / "log" / "live" / segment_name(name, this_replica(), 1)).write_bytes(data)
    return tmp_path / "log"


def test_stats_and_tail_tell_what_is_there(said: Any, folder: Path) -> None:
    code, out, _ = said("stats", "--log-dir", str(folder), "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["decisions"]["rows"], found["decisions"]["audited"]) == (5, 3)
    assert (found["feedback"]["rows"], found["skipped"], found["torn"]) == (1, [], [])
    (folder / "decisions").mkdir()
    (folder / "decisions" / "torn.parquet").write_bytes(b"PAR1")
    code, out, err = said("stats", "--log-dir", str(folder))
    assert (code, "decisions" in out) == (0, True)
    assert "left out: decisions/torn.parquet: " in err
    code, out, _ = said("tail", "--log-dir", str(folder), "-n", "2")
    assert [name for name in ("r0", "r1", "r2", "r3", "r4") if name in out] in (
        ["r3", "r4"], ["r1", "r2"], ["r2", "r3"],
    )  # fmt: skip


def test_old_days_and_pictures_go(said: Any, folder: Path) -> None:
    code, out, err = said("compact", "--log-dir", str(folder), "--keep-days", "30")
    assert (code, out) == (0, "")
    assert "1 records too old" in err
    assert "r0" not in read_log(folder).decisions["request_id"].to_pylist()
    code, _, err = said("erase", GONE, "--log-dir", str(folder))
    assert code == 0
    assert "erased: 0 pictures, 1 decisions, 1 feedback, 0 labels" in err
    assert read_log(folder).decisions["request_id"].to_pylist() == ["r1", "r2", "r3"]
    assert read_log(folder).feedback.num_rows == 0
    assert json.loads(said("stats", "--log-dir", str(folder), "--json")[1])["erased_pictures"] == 1


def test_what_nothing_names_is_erased_and_said(said: Any, folder: Path) -> None:
    code, _, err = said("erase", "e" * 64, "--log-dir", str(folder))
    assert code == 0
    assert f"nothing here names {'e' * 64}; should such a picture come, it is not kept" in err
    assert "nothing here" not in said("erase", GONE, "--log-dir", str(folder))[2]


def test_nothing_is_erased_where_labels_are_not_there(said: Any, folder: Path) -> None:
    words = ("erase", GONE, "--log-dir", str(folder), "--oracle", str(folder / "none"))
    code, _, err = said(*words)
    assert (code, "nothing is erased" in err) == (2, True)
    assert "r4" in read_log(folder).decisions["request_id"].to_pylist()


def test_mistakes_are_one_line(said: Any, folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("router.log.erasing.WAIT_S", 0.0)
    none = str(folder / "none")
    for words in (
        ("compact", "--log-dir", none), ("stats", "--log-dir", none), ("tail", "--log-dir", none),
        ("erase", GONE, "--log-dir", none), ("erase", "../../x", "--log-dir", str(folder)),
        ("compact", "--keep-days", "0"), ("erase",),
        ("erase", GONE, "--log-dir", str(folder), "--oracle", none),
    ):  # fmt: skip
        code, out, err = said(*words)
        assert (code, out) == (2, ""), words
        assert err.splitlines()[-1].startswith("error: "), words
    with only_compaction(folder, 0.0):
        code, _, err = said("compact", "--log-dir", str(folder))
    assert (code, err.count("\n"), "another compaction" in err) == (2, 1, True)
    # What cannot be read cannot be erased: whoever asks must know.
    (folder / "decisions").mkdir(exist_ok=True)
    (folder / "decisions" / "bad.parquet").write_bytes(b"PAR1")
    code, _, err = said("erase", GONE, "--log-dir", str(folder))
    assert code == 2
    assert "1 files cannot be read and may hold it, first decisions/bad.parquet" in err
    assert pa.types.is_string(read_log(folder).decisions.schema.field("question").type)
