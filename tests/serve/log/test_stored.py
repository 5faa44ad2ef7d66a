"""The decision log in an object store: what is acknowledged is there, and a store may fail."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from router.log import compact, erase, read_log
from router.log.layout import LIVE
from router.places import StoredPlace, as_place
from router.records import DecisionRecord, FeedbackRecord, picture_id
from serve.errors import ServeSetupError
from serve.log import segments as log_segments
from serve.log.decisions import DecisionLog

RGB = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def decision(number: int = 0, **fields: Any) -> DecisionRecord:
    known = {
        "request_id": f"r{number}",
        "time_utc": datetime(2026, 1, 2, tzinfo=UTC) + timedelta(seconds=number),
        "picture_ids": (picture_id(RGB),), "question": "what is it?", "answer": "a cat",
        "model": "m3-auto", "scale": 36, "visual_tokens": 36, "reason": "predicted",
        "audited": True,
    }  # fmt: skip
    return DecisionRecord(**(known | fields))


@pytest.fixture
def log_dir(s3: str) -> StoredPlace:
    """An empty one."""
    found = as_place(s3)
    assert isinstance(found, StoredPlace)
    return found


def names(log: StoredPlace) -> list[str]:
    return [str(name) for name in read_log(log).decisions["request_id"].to_pylist()]


def test_records_and_pictures_are_there_when_it_says_so(log_dir: StoredPlace) -> None:
    log = DecisionLog(str(log_dir), log_images=True)
    png = io.BytesIO()
    Image.fromarray(RGB).save(png, format="PNG")
    for number in range(3):
        log.append(decision(number), [png.getvalue()])
    log.feedback(FeedbackRecord(request_id="r0", time_utc=datetime.now(UTC), reference="a dog"))
    assert log.flush()
    assert (log.counts.written, log.counts.pictures, log.counts.dropped) == (4, 1, 0)
    assert names(log_dir) == ["r0", "r1", "r2"]
    live = [each.name.split("_")[0] for each in (log_dir / LIVE).iterdir()]
    assert Counter(live)["feedback"] == 1
    assert 1 <= Counter(live)["decisions"] <= 3  # a group is one object
    log.close()
    assert not (log_dir / LIVE).is_dir()  # compacted by whoever stops
    assert names(log_dir) == ["r0", "r1", "r2"]
    with Image.open((log_dir / "images" / f"{picture_id(RGB)}.png").open()) as kept:
        assert np.array_equal(np.asarray(kept), RGB)
    # Erased, it is not kept again; a second service has the same secret.
    erase(log_dir, picture_id(RGB))
    again = DecisionLog(str(log_dir), log_images=True)
    assert again.secret == log.secret
    again.append(decision(9), [png.getvalue()])
    assert again.flush()
    assert not (log_dir / "images").is_dir()
    assert names(log_dir) == []
    again.close()


@pytest.mark.parametrize("arrived", [False, True])
def test_what_was_sent_and_not_answered_is_there_once(
    log_dir: StoredPlace, monkeypatch: pytest.MonkeyPatch, arrived: bool
) -> None:
    log = DecisionLog(log_dir, flush_s=60.0)
    log.append(decision(0))
    assert log.flush()
    really, refused = StoredPlace.write_bytes, list[str]()

    def no_answer(place: StoredPlace, content: bytes | memoryview) -> None:
        if arrived:
            really(place, content)
        refused.append(place.name)
        raise OSError(5, "no answer", str(place))

    monkeypatch.setattr(StoredPlace, "write_bytes", no_answer)
    log.append(decision(1))
    assert not log.flush()
    assert log.counts.errors == 1
    monkeypatch.setattr(StoredPlace, "write_bytes", really)
    if arrived:
        assert compact(log_dir).segments == 2  # it is in a part by now
    log.append(decision(2))
    assert log.flush()
    assert log.counts.written == 3
    log.append(decision(3))
    log.close()
    assert names(log_dir) == ["r0", "r1", "r2", "r3"]
    assert (log.counts.written, log.counts.dropped) == (4, 0)


def test_a_store_that_hangs_keeps_nobody_waiting_and_what_overflows_is_counted(
    log_dir: StoredPlace, s3_process: subprocess.Popen[str]
) -> None:
    log = DecisionLog(log_dir, max_waiting=4)
    s3_process.send_signal(signal.SIGSTOP)
    try:
        for number in range(100):
            log.append(decision(number))
        assert log.counts.dropped >= 90
        assert not log.flush(0.05)
        assert log.counts.written == 0
    finally:
        s3_process.send_signal(signal.SIGCONT)
    log.close()
    assert len(names(log_dir)) == log.counts.written == 100 - log.counts.dropped


def test_a_store_that_is_away_is_an_error_until_it_is_back(
    log_dir: StoredPlace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log = DecisionLog(log_dir, flush_s=60.0, max_waiting=4)
    with monkeypatch.context() as patch:
        patch.setattr(StoredPlace, "write_bytes", _refuse)
        for number in range(3):
            log.append(decision(number))
            assert not log.flush()
    assert (log.counts.errors, log.counts.dropped) == (3, 0)
    assert sum("answers go on" in record.message for record in caplog.records) == 1
    assert log.flush()
    log.close()
    assert names(log_dir) == ["r0", "r1", "r2"]


def test_one_bad_record_does_not_take_the_others_along(log_dir: StoredPlace) -> None:
    log = DecisionLog(log_dir)
    for number in range(5):
        log.append(decision(number, scale="many" if number == 3 else 36))
    log.close()
    assert names(log_dir) == ["r0", "r1", "r2", "r4"]
    assert (log.counts.written, log.counts.dropped) == (4, 1)


def test_rows_beyond_the_limit_go_from_behind_what_was_sent(log_dir: StoredPlace) -> None:
    rows = log_segments.Segments(log_dir, "decisions", DecisionRecord, "host-1", 3)
    rows.waiting += [decision(0), decision(1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoredPlace, "write_bytes", _refuse)
        with pytest.raises(OSError, match="no"):
            rows.write()
    rows.waiting += [decision(2), decision(3), decision(4)]
    assert rows.forget_oldest() == 2
    assert rows.write() == (3, 0)
    assert len(list((log_dir / LIVE).iterdir())) == 2  # what was sent is sent again as it was
    assert names(log_dir) == ["r0", "r1", "r4"]


def _refuse(place: StoredPlace, content: bytes | memoryview) -> None:
    raise OSError(5, "no", str(place))


def test_a_store_that_cannot_be_written_is_said_at_start(s3: str) -> None:
    with pytest.raises(ServeSetupError, match="s3://nowhere-at-all/log: no such"):
        DecisionLog("s3://nowhere-at-all/log")


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_to_kill_9(s3: str) -> None:
    """Three writers at a time, all of which compact the whole log as often as they can."""
    dice, lives, acknowledged = random.Random(0), iter(range(9)), set[str]()
    root = Path(__file__).resolve().parents[3]
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))

    def start(life: int) -> subprocess.Popen[str]:
        script = Path(__file__).with_name("stored_writer.py")
        return subprocess.Popen(
            [sys.executable, script, s3, str(life)], stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip

    running = [start(next(lives)) for _ in range(3)]
    while running:
        writer = running.pop(0)
        assert writer.stdout is not None
        for _ in range(dice.randint(1, 8)):
            acknowledged.update(writer.stdout.readline().split())
        assert writer.poll() is None
        writer.kill()
        acknowledged.update(writer.stdout.read().split())
        writer.wait()
        writer.stdout.close()
        log = read_log(s3)  # while the others write and compact
        assert acknowledged <= _found(log).keys()
        assert max(_found(log).values()) == 1
        life = next(lives, None)
        running += [] if life is None else [start(life)]
    assert len(acknowledged) > 100
    assert compact(s3).skipped == []
    log = read_log(s3)
    assert acknowledged <= _found(log).keys()
    assert max(_found(log).values()) == 1
    assert log.notes.live_rows == 0


def _found(log: Any) -> Counter[str]:
    return Counter(
        f"{letter}{name}"
        for letter, table in (("d", log.decisions), ("f", log.feedback))
        for name in table["request_id"].to_pylist()
    )
