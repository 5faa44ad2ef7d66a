"""Log folders made by hand: segments whose writer is gone, and what is read of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from router.log import read_log
from router.log.layout import KINDS, LIVE, make_folder, segment_name
from router.log.segments import SegmentStream
from router.places import Place
from router.records import DecisionRecord, FeedbackRecord, to_table

DAY_ONE = datetime(2026, 11, 26, 23, 0, tzinfo=UTC)


def decision(number: int, picture: str = "a", **fields: Any) -> DecisionRecord:
    """Return a decision; an odd number is of the second day."""
    known = {
        "request_id": f"r{number}", "time_utc": DAY_ONE + timedelta(hours=2 * (number % 2)),
        "picture_ids": (picture * 8,), "model": "m3-auto", "scale": 36, "visual_tokens": 36,
        "reason": "predicted", "audited": True, "question": f"is {picture * 8} here?",
    }  # fmt: skip
    return DecisionRecord(**(known | fields))


def feedback(number: int, **fields: Any) -> FeedbackRecord:
    return FeedbackRecord(request_id=f"r{number}", time_utc=DAY_ONE, **fields)


@pytest.fixture
def segment() -> Callable[..., Path]:
    """Writes a segment: one batch a list of records."""
    numbers = iter(range(1000))

    def write(log: Path, *batches: list[Any], replica: str = "host-1", left: bytes = b"") -> Path:
        kind = type(batches[0][0])
        (name,) = (name for name, each in KINDS.items() if each is kind)
        stream = SegmentStream(kind)
        data = b"".join(stream.batch(to_table(records, kind)) for records in batches)
        make_folder(log / LIVE)
        path = log / LIVE / segment_name(name, replica, next(numbers))
        path.write_bytes(data + left)
        os.utime(path, (0, 0))  # so long ago that its host has nothing to say
        return path

    return write


def requests(log: Place) -> list[str]:
    """Return the requests that are read, sorted: one that is read twice stands there twice."""
    return sorted(read_log(log).decisions["request_id"].to_pylist())
