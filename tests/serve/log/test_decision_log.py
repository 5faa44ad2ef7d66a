"""The decision log: nothing is lost that may be kept, nothing is kept that may not."""

import io
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from router.log import compaction as log_compaction
from router.log import erase, read_log
from router.records import DecisionRecord, FeedbackRecord, from_table, picture_id
from serve.errors import ServeSetupError
from serve.log import decisions as log_decisions
from serve.log import segments as log_segments
from serve.log import upkeep as log_upkeep
from serve.log.decisions import DecisionLog

SECRET = "what is the patient's name?"
SYSTEM = "our house rules"
RGB = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def encoded(rgb):
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="PNG")
    return buffer.getvalue()


PICTURE = encoded(RGB)


def decision(number=0, **fields):
    known = {
        "request_id": f"r{number}",
        "time_utc": datetime(2026, 1, 2, 3, 4, 5, 6000, UTC) + timedelta(seconds=number),
        "picture_ids": (picture_id(RGB),),
        "question": SECRET,
        "answer": SECRET[::-1],
        "messages": f'[{{"role": "system", "content": "{SYSTEM}"}}]',
        "model": "m3-auto",
        "scale": 36,
        "visual_tokens": 36,
        "reason": "predicted",
        "p_suffices": (0.25, 0.5, 0.75),
        "audited": True,
    }
    return DecisionRecord(**(known | fields))


def read(folder, kind=DecisionRecord):
    log = read_log(folder)
    assert not log.notes.skipped
    return from_table(log.decisions if kind is DecisionRecord else log.feedback, kind)


def bytes_below(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_records_come_back_as_they_went_in(tmp_path):
    log = DecisionLog(tmp_path, log_prompts=True)
    log.append(decision(1))
    without = decision(2, p_suffices=None, picture_ids=(), reason="no_image")
    log.append(without)
    log.feedback(FeedbackRecord(request_id="r1", time_utc=datetime.now(UTC), score=0.5))
    log.close()
    assert read(tmp_path) == [decision(1), without]
    assert [record.score for record in read(tmp_path, FeedbackRecord)] == [0.5]
    assert log.counts.written == 3


def test_without_switches_no_text_and_no_picture_reaches_the_disk(tmp_path, monkeypatch):
    # Segments are not compressed, so that a leak would be readable: none becomes Parquet here.
    monkeypatch.setattr(log_upkeep, "compact", lambda *_, **__: log_compaction.Compacted())
    with_prompts = DecisionLog(tmp_path / "on", log_prompts=True)
    log = DecisionLog(tmp_path / "off")
    for each in (with_prompts, log):
        each.append(decision(), [PICTURE])
        each.close()
    for words in (SECRET, SECRET[::-1], SYSTEM):
        assert words.encode() in bytes_below(tmp_path / "on")
        assert words.encode() not in bytes_below(tmp_path / "off")
    assert read(tmp_path / "off") == [decision(question=None, answer=None, messages=None)]
    assert not list(tmp_path.rglob("*.png"))


def test_pictures_are_kept_once_and_only_for_audited_requests(tmp_path):
    log = DecisionLog(tmp_path, log_images=True)
    log.append(decision(1), [PICTURE])
    log.append(decision(2), [RGB])
    other = 255 - RGB
    log.append(decision(3, audited=False, picture_ids=(picture_id(other),)), [encoded(other)])
    log.close()
    stored = list((tmp_path / "images").iterdir())
    assert [path.name for path in stored] == [f"{picture_id(RGB)}.png"]
    assert np.array_equal(np.asarray(Image.open(stored[0])), RGB)
    assert [record.question for record in read(tmp_path)] == [SECRET, SECRET, None]
    assert log.counts.pictures == 1


def test_a_picture_under_a_wrong_name_is_an_error_not_a_file(tmp_path):
    log = DecisionLog(tmp_path, log_images=True)
    log.append(decision(1), [encoded(255 - RGB)])
    log.append(decision(2, picture_ids=("0" * 64,)), [b"not a picture"])
    log.close()
    assert not list((tmp_path / "images").iterdir())
    assert (log.counts.written, log.counts.errors) == (2, 2)


def test_pictures_wait_apart_and_too_many_are_dropped_but_no_record(tmp_path, monkeypatch):
    going, begun = threading.Event(), threading.Event()
    really = log_decisions.decode_picture

    def decode_picture(data, limits):
        begun.set()
        going.wait(20)
        return really(data, limits)

    monkeypatch.setattr(log_decisions, "decode_picture", decode_picture)
    shown = [(picture_id(rgb), encoded(rgb)) for rgb in (RGB, 255 - RGB, RGB ^ 85)]
    room = len(shown[0][1]) + len(shown[1][1])
    monkeypatch.setattr(log_decisions, "PENDING_PICTURE_BYTES", room)
    log = DecisionLog(tmp_path, log_images=True, flush_s=0.01)
    lost = [log.append(decision(picture_ids=(name,)), [data]) for name, data in shown]
    assert lost == [0, 0, 1]
    assert begun.wait(20)
    assert not log.flush(timeout_s=0.3)  # not all is handled, and yet:
    assert len(read(tmp_path)) == 3
    going.set()
    assert log.flush()
    assert (log.counts.pictures, log.counts.dropped) == (2, 1)
    assert log.append(decision(picture_ids=(shown[2][0],)), [shown[2][1]]) == 0
    log.close()  # what was taken is kept, pictures too
    assert len(list((tmp_path / "images").iterdir())) == 3


def test_a_record_is_on_disk_within_the_flush_time(tmp_path):
    log = DecisionLog(tmp_path, flush_s=0.05)
    log.append(decision())
    deadline = time.monotonic() + 5
    while not read(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(read(tmp_path)) == 1
    log.close()


def test_segments_grow_whole_and_few(tmp_path, monkeypatch):
    monkeypatch.setattr(log_segments, "SEGMENT_ROWS", 100)
    log = DecisionLog(tmp_path, max_rows=10)
    for number in range(250):
        log.append(decision(number))
        if number % 25 == 0:
            assert log.flush()
            assert len(read(tmp_path)) == number + 1
            assert log.counts.written == number + 1
    assert len(list((tmp_path / "live").iterdir())) == 3
    log.close()
    assert [record.request_id for record in read(tmp_path)] == [f"r{n}" for n in range(250)]
    assert not list((tmp_path / "live").iterdir())
    assert len(list((tmp_path / "decisions").rglob("*.parquet"))) == 1


FULL = """
import resource, signal, sys, threading
from datetime import UTC, datetime
from router.records import DecisionRecord
from serve.log.decisions import DecisionLog

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

def decision(n):
    return DecisionRecord(
        request_id=f"r{n}", time_utc=datetime.now(UTC), picture_ids=(), model="m3-auto", scale=36,
        visual_tokens=36, reason="predicted",
    )

log = DecisionLog(sys.argv[1], flush_s=0.01, max_waiting=20)
log.append(decision(0))
print(log.flush(), log.counts.errors)
for at in ("in the first batch", "in a later one"):
    room = 100 if at == "in the first batch" else 4500
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    for n in range(1, 31):
        log.append(decision(n))
        log.flush()
    print(log.flush(), log.counts.errors > 5, log.counts.dropped)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(log.flush(), log.counts.written)
log.append(decision(31))
log.close()
"""


def test_a_full_disk_costs_no_answer_and_recovers(tmp_path):
    """Files that may not grow: the kernel refuses each write in the middle."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path], capture_output=True, text=True, timeout=100
    )
    said = done.stdout.split("\n")
    assert said[:3] == ["True 0", "False True 10", "True 21"], done.stderr
    assert said[3].startswith("False True"), done.stderr
    assert done.stderr.count("File too large") == 2  # one line an outage
    found = [record.request_id for record in read(tmp_path)]
    assert found[:21] == ["r0", *(f"r{n}" for n in range(11, 31))]
    assert found[-1] == "r31"
    # What was said to be written is there, once, and half a batch is nowhere.
    assert len(found) == int(said[4].split()[1]) + 1
    assert not read_log(tmp_path).notes.torn


def test_a_slow_disk_keeps_nobody_waiting_and_what_overflows_is_counted(tmp_path, monkeypatch):
    done, waited_for_the_disk = threading.Event(), []
    really = os.fsync

    def fsync(descriptor):
        waited_for_the_disk.append(not done.wait(10))
        really(descriptor)

    log = DecisionLog(tmp_path, max_waiting=4)
    monkeypatch.setattr(log_segments.os, "fsync", fsync)
    log.append(decision())
    asked = log_decisions._Flush()
    log._queue.put(asked)
    for number in range(100):
        log.append(decision(number))
    assert not asked.handled.is_set()
    done.set()  # whoever waited for the disk would get here only after it had given up
    assert log.counts.dropped >= 90
    log.close()
    assert waited_for_the_disk
    assert not any(waited_for_the_disk)
    dropped = log.counts.dropped
    assert len(read(tmp_path)) == log.counts.written == 101 - dropped
    log.append(decision())
    assert log.counts.dropped == dropped + 1


def test_one_bad_record_does_not_take_the_others_along(tmp_path):
    log = DecisionLog(tmp_path)
    for number in range(5):
        log.append(decision(number, scale="many" if number == 3 else 36))
    log.close()
    assert [record.request_id for record in read(tmp_path)] == ["r0", "r1", "r2", "r4"]
    assert (log.counts.written, log.counts.dropped) == (4, 1)


def test_a_folder_that_cannot_be_made_is_said_at_start(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ServeSetupError, match="cannot write the decision log"):
        DecisionLog(tmp_path / "file" / "log")


def test_two_writers_share_a_folder(tmp_path):
    logs = [DecisionLog(tmp_path) for _ in range(2)]
    for number, log in enumerate(logs):
        log.append(decision(number))
        log.close()
    assert sorted(record.request_id for record in read(tmp_path)) == ["r0", "r1"]


def test_what_is_written_is_kept_up_meanwhile(tmp_path, monkeypatch):
    """Compacted, freed of erased pictures and of old days, without anybody's doing."""
    monkeypatch.setattr(log_upkeep, "LOOK_S", 0.01)
    monkeypatch.setattr(log_upkeep, "BUSY_S", 0.02)
    log = DecisionLog(tmp_path, log_images=True, keep_days=3, flush_s=0.01)
    now = datetime.now(UTC)
    log.append(decision(1, time_utc=now), [PICTURE])
    other = 255 - RGB
    log.append(decision(2, time_utc=now, picture_ids=(picture_id(other),)), [other])
    log.append(decision(3, picture_ids=()))  # of January
    assert log.flush()
    assert not erase(tmp_path, picture_id(RGB)).left
    assert "r1" not in [record.request_id for record in read(tmp_path)]

    def hits():
        compacted = list((tmp_path / "decisions").rglob("*.parquet"))
        return [*(tmp_path / "live").glob("*.arrows")] or [
            row for path in compacted for row in pq.read_table(path).to_pylist()
            if picture_id(RGB) in row["picture_ids"]
        ]  # fmt: skip

    deadline = time.monotonic() + 30
    while hits() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not hits()
    assert [record.request_id for record in read(tmp_path)] == ["r2"]
    log.append(decision(4, time_utc=now), [RGB])  # asked again, by whoever does not know
    assert log.flush()
    assert [path.stem for path in (tmp_path / "images").iterdir()] == [picture_id(other)]
    log.close()
    assert [record.request_id for record in read(tmp_path)] == ["r2"]
    assert log.counts.errors == 0
