"""Logs of before, of newer programs, and of nobody."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from router.log import NewerLog, Notes, compact, erase, read_log, tables
from router.log.stats import newest, stats
from router.records import DecisionRecord, from_table, to_table

from .conftest import decision, feedback, requests

V3 = ("shadow",)
V2 = (*V3, "constraints", "second_look", "temperature", "max_tokens", "messages", "certificate",
      "arm", "group_id", "label_recipe")  # fmt: skip
V1 = (*V2, "actions", "action_space", "cells")


def of_version(number, record):
    """Return a table as the version wrote it: without the columns that came later."""
    table = to_table([record], DecisionRecord)
    table = table.drop_columns(list({1: V1, 2: V2, 3: V3, 4: (), 5: ()}[number]))
    return table.replace_schema_metadata({b"schema_version": str(number).encode()})


def as_segment(table):
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def test_logs_of_before_are_read_beside_todays(tmp_path, segment):
    (tmp_path / "decisions").mkdir()
    for number in (1, 2, 3, 4):
        name = f"decisions-2026010{number}T000000.000000Z-7-000000.parquet"
        pq.write_table(of_version(number, decision(number)), tmp_path / "decisions" / name)
    segment(tmp_path, [decision(5)])
    found = from_table(read_log(tmp_path).decisions, DecisionRecord)
    assert found == [decision(n) for n in (1, 2, 3, 4, 5)]
    one = pa.concat_tables(tables(tmp_path, DecisionRecord, Notes(), ["cells", "scale"]))
    assert one.schema.names == ["cells", "scale"]
    assert one["scale"].to_pylist() == [36] * 5


@pytest.mark.parametrize("form", ["parquet", "segment"])
def test_a_newer_log_is_refused_and_kept(tmp_path, segment, form):
    segment(tmp_path, [decision(1)])
    table = of_version(5, decision(2))
    if form == "parquet":
        path = tmp_path / "decisions" / "later.parquet"
        path.parent.mkdir()
        pq.write_table(table, path)
    else:
        path = tmp_path / "live" / "decisions_host-9_20261127T000000.000000Z-000001.arrows"
        path.write_bytes(as_segment(table))  # of another host, a moment ago
    with pytest.raises(NewerLog, match=r"cannot read .*: it holds records of version 5, and this"):
        read_log(tmp_path)
    assert [each["file"] for each in stats(tmp_path)["skipped"]] == [
        str(path.relative_to(tmp_path))
    ]
    left = erase(tmp_path, "a" * 8).left  # it may hold the picture: whoever erases is told
    assert [each.file for each in left] == [str(path.relative_to(tmp_path))]
    compact(tmp_path)
    assert path.exists()


def test_a_record_of_another_schema_is_no_record(tmp_path):
    (tmp_path / "decisions").mkdir()
    table = to_table([decision(1)], DecisionRecord)
    bad = table.set_column(0, pa.field("request_id", pa.string()), pa.array([None], pa.string()))
    pq.write_table(bad, tmp_path / "decisions" / "a.parquet")
    pq.write_table(table, tmp_path / "decisions" / "b.parquet")
    log = read_log(tmp_path)
    assert log.decisions["request_id"].to_pylist() == ["r1"]
    assert [each.file for each in log.notes.skipped] == ["decisions/a.parquet"]


def test_numbers_and_the_newest(tmp_path, segment):
    segment(tmp_path, [decision(0), replace(decision(1), audited=False)], left=b"\xff" * 9)
    segment(tmp_path, [feedback(0, score=1.0)])
    compact(tmp_path)
    segment(tmp_path, [decision(2), decision(3)], left=b"\xff" * 9)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "x.png").write_bytes(b"12345")
    found = stats(tmp_path)
    assert found["decisions"] == {
        "rows": 4, "live_rows": 2, "parquet_files": 2, "audited": 3,
        "bytes": sum(f.stat().st_size for f in (tmp_path / "decisions").rglob("*.parquet")),
        "first": "2026-11-26T23:00:00+00:00", "last": "2026-11-27T01:00:00+00:00",
    }  # fmt: skip
    assert (found["feedback"]["rows"], found["live"]["segments"]) == (1, 1)
    assert found["pictures"] == {"files": 1, "bytes": 5}
    assert len(found["torn"]) == 1
    assert (found["skipped"], found["erased_pictures"]) == ([], 0)
    assert [row["request_id"] for row in newest(tmp_path, 2)] == ["r1", "r3"]
    with pytest.raises(FileNotFoundError):
        stats(tmp_path / "none")
    assert requests(tmp_path) == ["r0", "r1", "r2", "r3"]
