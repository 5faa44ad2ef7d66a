"""Compaction: wherever it dies and whoever reads meanwhile, each record is there once."""

from __future__ import annotations

import fcntl
import os
import shutil
from datetime import date, timedelta
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from router.log import LogBusy, compact, compaction, read_log, reading
from router.log.layout import only_compaction
from router.log.segments import END
from router.log.tombstones import hash_of_picture, write_tombstone
from router.records import DecisionRecord, to_table

from .conftest import DAY_ONE, decision, feedback, requests

TODAY = date(2026, 11, 27)


class Crash(BaseException):
    """The end of a process: nothing that handles errors handles it."""


@pytest.fixture
def log(tmp_path, segment):
    """Two replicas, two days, some of it compacted, a file of before, one erased picture."""
    folder = tmp_path / "log"
    segment(folder, [decision(0), decision(1)], [decision(2)])
    segment(folder, [decision(10, tenant="t"), decision(11, "b")], replica="host-2")
    segment(folder, [feedback(0, score=1.0), feedback(11, score=0.5)])
    compact(folder)
    segment(folder, [decision(3), decision(4, "b")], left=b"\xff\xff\xff\xff\x10")
    segment(folder, [decision(5)], [decision(6)])
    segment(folder, [decision(12), decision(13)], replica="host-2")
    old = folder / "decisions" / "decisions-20260101T000000.000000Z-7-000000.parquet"
    pq.write_table(to_table([decision(20), decision(21, "b")], DecisionRecord), old)
    write_tombstone(folder, hash_of_picture("b" * 8), frozenset(), swept=False)
    return folder


VISIBLE = sorted(f"r{n}" for n in (0, 1, 2, 3, 5, 6, 10, 12, 13, 20))


def test_segments_become_one_file_a_day_and_replica(log):
    assert requests(log) == VISIBLE
    done = compact(log)
    assert (done.segments, done.rows, done.growing, done.torn) == (3, 5, 0, 1)
    assert not done.skipped
    assert requests(log) == VISIBLE
    assert not os.listdir(log / "live")
    found = sorted((log / "decisions").glob("date=*/replica=*/*"))
    assert [str(path.relative_to(log / "decisions")) for path in found] == [
        f"date=2026-11-{day}/replica=host-{replica}/part-000000.parquet"
        for day in (26, 27) for replica in (1, 2)
    ]  # fmt: skip
    for path in found:
        (day,) = {when.date() for when in pq.read_table(path)["time_utc"].to_pylist()}
        assert f"date={day}" in str(path)
    before = [path.read_bytes() for path in found]
    assert compact(log).segments == 0
    assert [path.read_bytes() for path in found] == before


def dying(monkeypatch, at):
    """Let the process die before its change to the disk of this number."""
    made = []

    def counted(really):
        def change(*args, **kwargs):
            made.append(1)
            if len(made) > at:
                raise Crash
            return really(*args, **kwargs)

        return change

    for owner, name in ((Path, "replace"), (Path, "unlink"), (Path, "mkdir"), (Path, "rmdir")):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    monkeypatch.setattr(os, "fsync", counted(lambda _: None))  # it changes nothing to be seen


@pytest.mark.parametrize("keep_days", [None, 1])
def test_it_may_die_at_any_change_to_the_disk(log, tmp_path, monkeypatch, keep_days):
    """And goes on where it stopped: the records are there once, before and after."""
    young = sorted(f"r{n}" for n in (1, 3, 5, 13))
    today = TODAY + timedelta(days=1)
    at, finished = 0, False
    while not finished:
        here = tmp_path / f"died-{at}"
        shutil.copytree(log, here)
        with monkeypatch.context() as patched:
            dying(patched, at)
            try:
                compact(here, keep_days=keep_days, today=today)
                finished = True
            except Crash:
                pass
        found = requests(here)
        if keep_days is None:
            assert found == VISIBLE, at
        else:
            assert [each for each in found if each in young] == young, at
            assert len(set(found)) == len(found)
        compact(here, keep_days=keep_days, today=today)
        assert requests(here) == (VISIBLE if keep_days is None else young), at
        assert read_log(here).feedback["request_id"].to_pylist() == (
            ["r0"] if keep_days is None else []
        ), at
        at += 1
    assert at > 20


def test_a_reader_sees_each_record_once_whenever_compaction_comes_between(
    log, tmp_path, monkeypatch
):
    """Compaction runs whole between two looks of a reader at the disk, at each of them in turn."""
    looks: list[int] = []
    at, came_between = 0, True

    def between(really):
        def look(*args, **kwargs):
            nonlocal came_between
            looks.append(1)
            if len(looks) == at + 1:
                came_between = True
                compact(here)
            return really(*args, **kwargs)

        return look

    while came_between:
        here = tmp_path / f"read-{at}"
        shutil.copytree(log, here)
        looks.clear()
        came_between = False
        with monkeypatch.context() as patched:
            for owner, name in (
                (reading, "read_parquet"), (reading, "read_erased"), (os, "listdir"),
                (Path, "read_bytes"),
            ):  # fmt: skip
                patched.setattr(owner, name, between(getattr(owner, name)))
            found = requests(here)
        assert found == VISIBLE, at
        at += 1
    assert at > 10


def test_what_is_still_written_and_what_is_busy_is_left_alone(log):
    held = sorted((log / "live").glob("*host-2*"))[0]
    with held.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = compact(log)
    assert (done.segments, done.growing) == (2, 1)
    assert [path.name for path in (log / "live").iterdir()] == [held.name]
    assert requests(log) == VISIBLE
    with (
        only_compaction(log, 0.0),
        pytest.raises(LogBusy, match=r"another compaction of .* is running"),
    ):
        compact(log)
    # A host whose locks are perhaps not seen here wrote lately; this host's would be.
    os.utime(held)
    assert (compact(log).segments, compact(log).growing) == (0, 1)
    os.utime(held, (0, 0))
    # Whoever stops compacts its own alone.
    assert compact(log, replica="host-1").segments == 0
    assert compact(log, replica="host-2").segments == 1


def test_parts_grow_up_to_a_bound(log, monkeypatch, segment):
    monkeypatch.setattr(compaction, "PART_ROWS", 3)
    for number in range(30, 40, 2):
        segment(log, [decision(number)])
        compact(log)
    parts = sorted((log / "decisions" / "date=2026-11-26" / "replica=host-1").iterdir())
    assert [pq.read_metadata(path).num_rows for path in parts] == [2, 3, 3]
    assert requests(log) == sorted([*VISIBLE, *(f"r{n}" for n in range(30, 40, 2))])


def test_what_cannot_be_read_is_named_and_lost_by_nobody(log):
    (log / "decisions" / ".hidden.parquet").write_bytes(b"x")
    (log / "decisions" / "notes.txt").write_text("mine")
    (log / "live" / "notes.txt").write_text("mine")
    (log / "decisions" / "cut.parquet").write_bytes(b"PAR1 nonsense")
    other = pq.read_table(next((log / "feedback").rglob("*.parquet")))
    pq.write_table(other, log / "decisions" / "other.parquet")
    flipped = next((log / "decisions").rglob("replica=host-1/*.parquet"))
    data = bytearray(flipped.read_bytes())
    data[data.index(b"\x28\xb5\x2f\xfd") + 20] ^= 255  # within the first page that is compressed
    flipped.write_bytes(data)
    damaged = sorted((log / "live").glob("decisions_host-2*"))[0]
    bad = bytearray(damaged.read_bytes())
    bad[bad.index(b"aaaaaaaa")] ^= 1
    damaged.write_bytes(bad + END)  # of a writer that ended well
    os.utime(damaged, (0, 0))
    named = [damaged.name, "cut.parquet", "other.parquet", "part-000000.parquet"]
    for _ in range(2):
        skipped = read_log(log).notes.skipped
        assert sorted(Path(each.file).name for each in skipped) == sorted(
            [*named, ".hidden.parquet", "notes.txt", "notes.txt"]
        )
        assert all(each.why and "\n" not in each.why for each in skipped)
        assert "r5" in requests(log)
        done = compact(log)  # the rest goes on, and nothing of these is deleted
        assert sorted({Path(each.file).name for each in done.skipped}) == sorted(named)


def test_old_days_go_with_the_pictures_that_only_they_name(log, tmp_path):
    images = log / "images"
    images.mkdir()
    old = DAY_ONE.timestamp() - 30 * 86400
    for name in ("a" * 8, "c" * 8, "d" * 8):
        (images / f"{name}.png").write_bytes(b"p")
        os.utime(images / f"{name}.png", (old, old))
    (images / f"{'e' * 8}.png").write_bytes(b"its record is not written yet")
    os.utime(images / f"{'e' * 8}.png", (old + 60 * 86400,) * 2)
    done = compact(log, keep_days=1, today=TODAY + timedelta(days=1))
    assert requests(log) == sorted(f"r{n}" for n in (1, 3, 5, 13))
    assert sorted(path.stem for path in images.iterdir()) == ["a" * 8, "e" * 8]
    assert done.pictures == 2
    assert not (log / "decisions" / "date=2026-11-26").exists()
    assert not list((log / "decisions").glob("*.parquet"))  # its last record was of that day
    compact(log, keep_days=1, today=TODAY + timedelta(days=9))
    assert requests(log) == []
    assert not list((log / "decisions").iterdir())
