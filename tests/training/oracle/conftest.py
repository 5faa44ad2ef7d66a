"""What tests of labelling read back, and a log that changes between runs."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from router.records import (
    DecisionRecord,
    FeedbackRecord,
    OracleRecord,
    from_table,
    picture_id,
    to_table,
)
from training.oracle.collection import MANIFEST, CollectResult, collect
from training.oracle.growth.folder import shard_files
from training.sources.log import log_source

NOW = datetime(2026, 11, 22, tzinfo=UTC)
PICTURES = [
    np.random.default_rng(number).integers(0, 256, (24, 30, 3), dtype=np.uint8)
    for number in range(40)
]
IDS = [picture_id(pixels) for pixels in PICTURES]


@dataclass
class Log:
    """A log folder, written in one file a request so that each can leave it by itself."""

    folder: Path
    asked: int = 0
    written: dict[str, DecisionRecord] = field(default_factory=dict)

    def ask(self, number: int, question: str, **changes: Any) -> str:
        """Log an audited question about a picture; return the request."""
        for name in ("decisions", "feedback", "images"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        path = self.folder / "images" / f"{IDS[number]}.png"
        Image.fromarray(PICTURES[number]).save(path)
        name = f"r{self.asked:03d}"
        told = {
            "request_id": name, "time_utc": NOW + timedelta(minutes=self.asked),
            "picture_ids": (IDS[number],), "question": question, "model": "m3-auto", "scale": 9,
            "visual_tokens": 9, "reason": "predicted", "audited": True, **changes,
        }  # fmt: skip
        self.written[name] = DecisionRecord(**told)
        self.asked += 1
        pq.write_table(
            to_table([self.written[name]], DecisionRecord),
            self.folder / f"decisions/{name}.parquet",
        )
        return name

    def say(self, request: str, **said: Any) -> None:
        """Log feedback on a request."""
        self.asked += 1
        record = FeedbackRecord(
            request_id=request, time_utc=NOW + timedelta(minutes=self.asked), **said
        )
        path = self.folder / f"feedback/f{self.asked:03d}.parquet"
        pq.write_table(to_table([record], FeedbackRecord), path)

    def forget(self, request: str) -> None:
        """Let a request pass, as retention does."""
        (self.folder / f"decisions/{request}.parquet").unlink()


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path / "log")


def label(folder: Path, model: Path, out: Path, **more: Any) -> CollectResult:
    return collect(
        log_source(folder), model, out, workers=1, device="cpu", max_new_tokens=3, **more
    )


def rows(out: Path) -> list[dict[str, Any]]:
    """Return every row that the folder's files hold, in an order of its own."""
    found = pa.concat_tables([pq.read_table(path) for path in out.glob("oracle-*.parquet")])
    return sorted(found.to_pylist(), key=lambda row: (row["picture_id"], row["question"]))


def same_as_fresh(log: Log, model: Path, out: Path) -> bool:
    fresh = out.with_name(f"{out.name}-fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    label(log.folder, model, fresh)
    kept, wanted = rows(out), rows(fresh)
    totals = [json.loads((each / MANIFEST).read_text()) for each in (out, fresh)]
    assert totals[0]["questions"] == totals[1]["questions"] == len(wanted)
    assert totals[0].get("counts") == totals[1].get("counts")
    assert totals[0]["source"] == totals[1]["source"]
    return kept == wanted


def stamps(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in shard_files(out)}


def records_in(out: Path) -> Iterator[OracleRecord]:
    for path in sorted(out.glob("oracle-*.parquet")):
        yield from from_table(pq.read_table(path), OracleRecord)
