"""A log in an object store: several compactions at once lose nothing and double nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any

import pyarrow.parquet as pq
import pytest

from router.log import compact, compaction, erase, read_log
from router.log.compaction import Compacted
from router.log.layout import KINDS, LIVE, segment_name
from router.log.reading import taken_by
from router.log.segments import END, SegmentStream
from router.log.stats import newest, stats
from router.log.tombstones import hash_of_picture, read_erased, write_tombstone
from router.places import StoredPlace, as_place, together
from router.records import to_table

from .conftest import decision, feedback, requests

CHANGES = ("write_bytes", "create", "replace", "unlink")


@pytest.fixture
def log(s3: str) -> StoredPlace:
    """Six segments of two replicas and two days."""
    log = as_place(s3)
    assert isinstance(log, StoredPlace)
    for number in range(0, 8, 2):
        put(log, number, [decision(number), decision(number + 1)])
    put(log, 8, [decision(8, "b"), decision(9)], replica="host-2")
    put(log, 9, [feedback(0, score=1.0), feedback(8, score=0.5)])
    return log


ALL = [f"r{number}" for number in range(10)]


def put(log: StoredPlace, number: int, records: list[Any], replica: str = "host-1") -> str:
    """Write a segment and return its name."""
    kind = type(records[0])
    (name,) = (name for name, each in KINDS.items() if each is kind)
    content = SegmentStream(kind).batch(to_table(records, kind)) + END
    path = log / LIVE / segment_name(name, replica, number)
    path.write_bytes(content)
    return path.name


@contextmanager
def before_change(number: int, do: Callable[[], Any]) -> Iterator[list[int]]:
    """Does something just before the so many-th change to the store, once; counts the changes."""
    changes, doing = [0], [False]
    with pytest.MonkeyPatch.context() as patch:

        def hooked(really: Callable[..., Any]) -> Callable[..., Any]:
            def change(*arguments: Any, **more: Any) -> Any:
                if not doing[0]:
                    if changes[0] == number:
                        doing[0] = True
                        do()
                        doing[0] = False
                    changes[0] += 1
                return really(*arguments, **more)

            return change

        for name in CHANGES:
            patch.setattr(StoredPlace, name, hooked(getattr(StoredPlace, name)))
        patch.setattr(compaction, "remove_all", hooked(together.remove_all))
        yield changes


class Dies(BaseException):
    """Ends a compaction as a kill does."""


def die() -> None:
    raise Dies


def copy_of(log: StoredPlace, name: str) -> StoredPlace:
    """Return a copy of all there is."""
    copy = log / "copies" / name
    for each in log.rglob("*"):
        if "copies" not in each.key:
            (copy / each.key[len(log.key) + 1 :]).write_bytes(each.read_bytes())
    return copy


def bytes_below(log: StoredPlace) -> bytes:
    return b"".join(each.read_bytes() for each in log.rglob("*"))


def test_segments_become_one_file_a_day_and_replica(log: StoredPlace) -> None:
    assert requests(log) == sorted(ALL)
    done = compact(log)
    assert (done.segments, done.rows, done.skipped) == (6, 12, [])
    assert requests(log) == sorted(ALL)
    assert [str(each.relative_to(log)) for each in log.rglob("*")] == [
        f"{kind}/date={day}/replica={replica}/part-000000.parquet"
        for kind, day, replica in [
            ("decisions", "2026-11-26", "host-1"), ("decisions", "2026-11-26", "host-2"),
            ("decisions", "2026-11-27", "host-1"), ("decisions", "2026-11-27", "host-2"),
            ("feedback", "2026-11-26", "host-1"),
        ]
    ]  # fmt: skip
    put(log, 20, [decision(20)])
    assert compact(log, replica="host-2").segments == 0
    assert compact(log, replica="host-1").segments == 1
    assert len(list(log.rglob("part-*"))) == 5  # the last part grows
    found = stats(log)
    assert (found["decisions"]["rows"], found["decisions"]["live_rows"]) == (11, 0)
    assert [row["request_id"] for row in newest(log, 2)] == ["r7", "r9"]
    with pytest.raises(FileNotFoundError, match="no such log folder"):
        read_log(log / "nowhere")


def test_a_part_is_full_for_good_before_the_next_is_made(
    log: StoredPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "PART_ROWS", 4)
    compact(log)
    for number in range(20, 26):
        put(log, number, [decision(2 * number)])
        compact(log)
    parts = list((log / "decisions/date=2026-11-26/replica=host-1").iterdir())
    assert [each.name for each in parts] == [f"part-{number:06d}.parquet" for number in range(3)]
    told = [taken_by(pq.read_schema(each.open())) for each in parts]
    assert [each.full for each in told] == [True, True, False]
    assert [len(each.segments) for each in told] == [4, 4, 2]
    assert len(requests(log)) == len(set(requests(log))) == 16


@pytest.mark.slow
@pytest.mark.parametrize("keep_days", [None, 0])
def test_it_may_die_at_any_change(log: StoredPlace, keep_days: int | None) -> None:
    today = date(2026, 11, 27)
    wanted = sorted(ALL if keep_days is None else ALL[1::2])
    for number in range(100):
        copy = copy_of(log, str(number))
        with before_change(number, die):
            try:
                compact(copy, keep_days=keep_days, today=today)
                break
            except Dies:
                pass
        assert set(wanted) <= set(requests(copy))
        assert len(requests(copy)) == len(set(requests(copy)))
        compact(copy, keep_days=keep_days, today=today)
        assert requests(copy) == wanted
        assert not list((copy / LIVE).iterdir())
    assert 4 < number < 99


@pytest.mark.slow
@pytest.mark.parametrize("part_rows", [3, 65_536])
def test_another_compaction_may_come_between_any_two_changes(
    log: StoredPlace, monkeypatch: pytest.MonkeyPatch, part_rows: int
) -> None:
    monkeypatch.setattr(compaction, "PART_ROWS", part_rows)
    compact(log)
    for number in range(10, 16):
        put(log, number, [decision(2 * number), decision(2 * number + 1)])
    wanted = sorted({*ALL, *(f"r{number}" for number in range(20, 32)), "r50"})
    for number in range(100):
        copy, others = copy_of(log, str(number)), list[Compacted]()

        def another(copy: StoredPlace = copy, others: list[Compacted] = others) -> None:
            put(copy, 50, [decision(50)])  # which the first one has not seen
            others.append(compact(copy))
            assert requests(copy) == wanted

        with before_change(number, another) as changes:
            done = compact(copy)
        if changes[0] <= number:
            assert number > 2
            break
        assert requests(copy) == wanted
        assert not list((copy / LIVE).iterdir())
        assert done.skipped == others[0].skipped == []
    assert number < 99


@pytest.mark.slow
def test_an_erasure_may_come_between_any_two_changes(log: StoredPlace) -> None:
    for number in range(100):
        copy = copy_of(log, str(number))
        with before_change(number, lambda copy=copy: erase(copy, "b" * 8)) as changes:  # type: ignore[misc]
            compact(copy)
        if changes[0] <= number:
            break
        compact(copy)  # what was written while the erasure looked is taken out by whoever comes
        assert requests(copy) == sorted({*ALL} - {"r8"})
        assert read_log(copy).feedback["request_id"].to_pylist() == ["r0"]
        for part in copy.rglob("*.parquet"):
            table = pq.read_table(part.open())
            assert "r8" not in table["request_id"].to_pylist()
        assert b"b" * 8 not in bytes_below(copy)
        assert not read_erased(copy).unswept
    assert 3 < number < 99


@pytest.mark.slow
def test_a_compaction_may_come_between_any_two_changes_of_an_erasure(log: StoredPlace) -> None:
    for number in range(100):
        copy = copy_of(log, str(number))
        with before_change(number, lambda copy=copy: compact(copy)) as changes:  # type: ignore[misc]
            done = erase(copy, "b" * 8)
        if changes[0] <= number:
            break
        assert done.left == []
        compact(copy)
        assert requests(copy) == sorted({*ALL} - {"r8"})
        assert read_log(copy).feedback["request_id"].to_pylist() == ["r0"]
        assert b"b" * 8 not in bytes_below(copy)
        assert not read_erased(copy).unswept
    assert 3 < number < 99


def test_erasing_takes_pictures_records_and_feedback(log: StoredPlace) -> None:
    for name in ("a", "b"):
        (log / "images" / f"{name * 8}.png").write_bytes(b"png")
    done = erase(log, "b" * 8)
    assert (done.pictures, done.decisions, done.feedback, done.left) == (1, 1, 1, [])
    assert [each.name for each in (log / "images").iterdir()] == ["aaaaaaaa.png"]
    assert requests(log) == sorted({*ALL} - {"r8"})
    put(log, 60, [decision(60, "b")])  # of a service that did not know
    assert "r60" not in requests(log)
    compact(log)
    assert b"b" * 8 not in bytes_below(log)


def test_two_that_write_a_tombstone_lose_no_request(log: StoredPlace) -> None:
    picture = hash_of_picture("b" * 8)
    write_tombstone(log, picture, frozenset({"one"}), swept=False)
    write_tombstone(log, picture, frozenset({"two"}), swept=True)  # which did not know of one
    assert read_erased(log).requests == {picture: frozenset({"one", "two"})}
    assert read_erased(log).unswept == {picture}
    write_tombstone(log, picture, frozenset({"one", "two"}), swept=True)
    assert not read_erased(log).unswept


def test_old_days_go_with_their_pictures(log: StoredPlace) -> None:
    compact(log)
    for name in ("a", "b", "c"):
        (log / "images" / f"{name * 8}.png").write_bytes(b"png")
    done = compact(log, keep_days=0, today=date(2026, 11, 27))
    assert (done.expired, done.pictures) == (7, 0)  # the pictures came later
    assert {row["request_id"] for row in newest(log, 9)} == {*ALL[1::2]}
    assert not (log / "decisions/date=2026-11-26").is_dir()
    done = compact(log, keep_days=0, today=date(2100, 1, 1))
    assert (done.expired, done.pictures) == (5, 3)


def test_a_damaged_part_is_named_and_left(log: StoredPlace) -> None:
    compact(log)
    part = log / "decisions/date=2026-11-26/replica=host-1/part-000000.parquet"
    part.write_bytes(b"PAR1")
    put(log, 40, [decision(40)])
    done = compact(log)
    assert [each.file for each in done.skipped] == [part.key[len(log.key) + 1 :]]
    assert part.read_bytes() == b"PAR1"
    assert "r40" in requests(log)
    assert [each.name for each in part.parent.iterdir()][1:] == ["part-000001.parquet"]


def test_the_commands(log: StoredPlace, command: Callable[..., Any]) -> None:
    def train(*words: object) -> Any:
        done = command("m3-train", "log", *words, "--log-dir", log)
        assert done.returncode == 0, done.stderr
        return done

    assert json.loads(train("stats", "--json").stdout)["decisions"]["live_rows"] == 10
    assert "6 segments compacted (12 records)" in train("compact").stderr
    assert "erased: 0 pictures, 1 decisions, 1 feedback" in train("erase", "b" * 8).stderr
    assert "r9" in train("tail", "-n", 3).stdout
    done = command("m3-train", "log", "stats", "--log-dir", f"{log}/nowhere")
    assert done.returncode == 2
    assert f"{log}/nowhere: no such log folder" in done.stderr
