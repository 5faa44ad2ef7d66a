"""After an erasure nothing of a picture is found, and nothing else is missing."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from router.log import compact, compaction, erase, read_log
from router.log.tombstones import begin_tombstone, hash_of_picture, is_erased, read_erased
from router.records import DecisionRecord, OracleRecord, to_table

from .conftest import decision, feedback, requests

GONE, KEPT = "f" * 64, "0" * 64
WORDS = "that man's face"


def about(number: int, *pictures: str, **fields: object) -> DecisionRecord:
    return decision(number, picture_ids=pictures, question=f"{WORDS} in {pictures}", **fields)


def hits(folder: Path, *words: str) -> list[str]:
    """Return files with one of the words, also within what Parquet compressed."""
    found = []
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        text = path.name.encode() + path.read_bytes()
        if path.suffix == ".parquet":
            table = pq.read_table(path, partitioning=None)
            text += repr(table.to_pylist()).encode() + repr(table.schema.metadata).encode()
        if any(word.encode() in text for word in words):
            found.append(path.name)
    return found


@pytest.fixture
def log(tmp_path, segment):
    folder = tmp_path / "log"
    (folder / "decisions").mkdir(parents=True)
    before = [about(0, GONE), decision(1, picture_ids=(KEPT,))]
    pq.write_table(to_table(before, DecisionRecord), folder / "decisions" / "before.parquet")
    segment(folder, [about(2, KEPT, GONE, tenant="t"), decision(3, picture_ids=(KEPT,))])
    segment(folder, [feedback(2, reference=WORDS, tenant="t"), feedback(2, reference="kept")])
    compact(folder)
    segment(folder, [decision(5, picture_ids=()), about(4, GONE)])
    segment(folder, [feedback(4, reference=WORDS), feedback(5, score=1.0)])
    (folder / "images").mkdir()
    for name in (GONE, KEPT):
        (folder / "images" / f"{name}.png").write_bytes(b"p")
    (folder / "images" / f".{GONE}.png.77.aside").write_bytes(b"p")
    return folder


def test_nothing_is_found_afterwards_and_nothing_else_is_missing(log):
    assert len(hits(log, GONE, WORDS)) >= 5
    done = erase(log, GONE)
    assert (done.decisions, done.feedback, done.pictures, done.growing) == (3, 2, 1, 0)
    assert not done.left
    assert hits(log, GONE, WORDS) == []
    assert requests(log) == ["r1", "r3", "r5"]
    assert read_log(log).feedback["reference"].to_pylist() == ["kept", None]
    assert [path.stem for path in (log / "images").iterdir()] == [KEPT]
    assert is_erased(log, GONE)
    assert not is_erased(log, KEPT)
    assert not read_erased(log).unswept
    again = erase(log, GONE)
    assert (again.decisions, again.feedback, again.pictures, again.left) == (0, 0, 0, [])


def test_it_counts_for_readers_at_once_and_for_what_comes_later(log, segment):
    """Also while a service writes: its segments are out of reach until it closes them."""
    (growing,) = (log / "live").glob("decisions_*")
    with growing.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = erase(log, GONE)
        assert (done.decisions, done.growing) == (3, 1)
        assert requests(log) == ["r1", "r3", "r5"]
        assert hits(log, GONE) == [growing.name]
    segment(log, [about(6, GONE), decision(7, picture_ids=(KEPT,))])
    assert requests(log) == ["r1", "r3", "r5", "r7"]
    compact(log)
    segment(log, [feedback(6, reference=WORDS)])  # said after its decision was taken out
    assert WORDS not in read_log(log).feedback["reference"].to_pylist()
    assert compact(log).erased == 1
    assert hits(log, GONE, WORDS) == []


def test_an_erasure_that_begins_during_a_sweep_is_the_next_ones(log, monkeypatch):
    begin_tombstone(log, hash_of_picture(GONE))
    really = compaction._write_parquet

    def write(*args):
        begin_tombstone(log, hash_of_picture(KEPT))
        really(*args)

    monkeypatch.setattr(compaction, "_write_parquet", write)
    compact(log)
    assert read_erased(log).unswept == {hash_of_picture(KEPT)}
    assert requests(log) == ["r5"]
    compact(log)
    assert hits(log, GONE, KEPT) == []
    assert not read_erased(log).unswept


def test_a_damaged_tombstone_still_hides_its_picture(log):
    erase(log, GONE)
    (stone,) = (log / "erased").iterdir()
    stone.write_text("{")
    segment_row = to_table([about(8, GONE)], DecisionRecord)
    pq.write_table(segment_row, log / "decisions" / "late.parquet")
    assert requests(log) == ["r1", "r3", "r5"]
    compact(log)
    assert hits(log, GONE, WORDS) == []
    assert json.loads(stone.read_text())["swept"] is True


def test_labels_go_too(tmp_path, log):
    def label(picture: str) -> OracleRecord:
        return OracleRecord(
            picture_id=picture, question_id="q", question="?", dataset="log", source="log",
            scales=(1,), answers=("x",), scores=(1.0,), p_reference=(1.0,), confidence=(1.0,),
            visual_tokens=(1,), features=(0.0,), feature_schema="s", model_hash="m",
        )  # fmt: skip

    folder = tmp_path / "oracle"
    folder.mkdir()
    bad = {b"bad_records": json.dumps([f"{GONE}.png is damaged"]).encode()}
    for number, pictures in enumerate([(GONE, KEPT), (KEPT,)]):
        table = to_table([label(each) for each in pictures], OracleRecord)
        if number == 0:
            table = table.replace_schema_metadata({**table.schema.metadata, **bad})
        pq.write_table(table, folder / f"oracle-0000{number}.parquet")
    second = (folder / "oracle-00001.parquet").read_bytes()
    done = erase(log, GONE, [folder])
    assert done.oracle == 1
    assert hits(folder, GONE) == []
    assert (folder / "oracle-00001.parquet").read_bytes() == second
    left = pa.concat_tables([pq.read_table(path) for path in sorted(folder.iterdir())])
    assert left["picture_id"].to_pylist() == [KEPT, KEPT]
