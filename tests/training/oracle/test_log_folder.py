"""A log folder as a source of questions: what is taken, left out and refused."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from m3model.engine.recipe import label_recipe_hash
from router.records import (
    DecisionRecord,
    FeedbackRecord,
    from_table,
    picture_id,
    to_table,
)
from training.errors import BadRecord, TrainingError
from training.oracle.collection import collect
from training.sources.log import log_source

from .conftest import records_in

NOW = datetime(2026, 11, 22, tzinfo=UTC)


def decision(request: str, pixels: np.ndarray, **changes: object) -> DecisionRecord:
    record = {
        "request_id": request, "time_utc": NOW, "picture_ids": (picture_id(pixels),),
        "question": f"what is {request}?", "model": "m3-auto", "scale": 9, "visual_tokens": 9,
        "reason": "predicted", "audited": True, **changes,
    }  # fmt: skip
    return DecisionRecord(**record)


def write_log(folder: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (24, 30, 3), dtype=np.uint8) for _ in range(3)]
    for name in ("decisions", "feedback", "images"):
        (folder / name).mkdir(parents=True)
    for pixels in pictures[:2]:
        Image.fromarray(pixels).save(folder / "images" / f"{picture_id(pixels)}.png")
    first, second, lost = pictures
    decisions = [
        decision("a", first),
        decision("b", first),
        decision("c", second),
        decision("not-audited", first, audited=False),
        decision("failed", first, status="overloaded"),
        decision("unknown-question", first, question=None),
        decision("lost-picture", lost),
        decision("no-picture", first, picture_ids=()),
        decision("two", first, picture_ids=(picture_id(first), picture_id(second))),
        decision("a-again", first, question="what is a?"),
    ]
    said = [
        FeedbackRecord(request_id="a", time_utc=NOW + timedelta(hours=2), reference="new"),
        FeedbackRecord(request_id="a", time_utc=NOW, reference="old"),
        FeedbackRecord(request_id="c", time_utc=NOW, score=0.0),
    ]
    pq.write_table(to_table(decisions, DecisionRecord), folder / "decisions" / "d1.parquet")
    # A retried write: the same request twice.
    pq.write_table(to_table(decisions[:1], DecisionRecord), folder / "decisions" / "d2.parquet")
    pq.write_table(to_table(said, FeedbackRecord), folder / "feedback" / "f.parquet")


def test_log_gives_audited_questions_with_the_newest_feedback(
    tiny_model: Path, tmp_path: Path
) -> None:
    write_log(tmp_path / "log")
    source = log_source(tmp_path / "log")
    asks = {ask.question_id: ask for i in range(len(source)) for ask in source.load(i).asks}
    assert sorted(asks) == ["a", "b", "c"]
    assert asks["a"].reference == "new"
    assert asks["b"].reference is None
    assert asks["c"].score == 0.0
    assert sorted(source.notes()) == [
        "1 records not audited",
        "1 records of failed requests",
        "1 records that repeat a question",
        "1 records whose picture was not stored",
        "1 records with several pictures",
        "1 records without a picture",
        "1 records without a stored question",
    ]
    result = collect(source, tiny_model, tmp_path / "out", workers=1, max_new_tokens=3)
    assert result.questions == 3
    scores = {record.question_id: record.scores for record in records_in(tmp_path / "out")}
    assert scores["b"][-1] == 1.0
    assert all(record.source == "log" for record in records_in(tmp_path / "out"))


def test_feedback_counts_on_what_its_own_tenant_asked(tmp_path: Path) -> None:
    write_log(tmp_path)
    path = tmp_path / "feedback" / "f.parquet"
    mine = {"request_id": "b", "time_utc": NOW, "tenant": None}
    said = [
        FeedbackRecord(**mine, reference="mine"),
        # Another tenant may name a request alike, and is asked later.
        FeedbackRecord(**mine | {"tenant": "bob", "time_utc": NOW + timedelta(hours=9)}, score=1.0),
    ]
    pq.write_table(to_table(said, FeedbackRecord), path)
    found = log_source(tmp_path)
    asks = {ask.question_id: ask for i in range(len(found)) for ask in found.load(i).asks}
    assert (asks["b"].reference, asks["b"].score) == ("mine", None)
    # Logs from before tenants were written down are read as before.
    for each in (path, *(tmp_path / "decisions").glob("*.parquet")):
        pq.write_table(pq.read_table(each).drop_columns(["tenant"]), each)
    found = log_source(tmp_path)
    assert {ask.question_id for i in range(len(found)) for ask in found.load(i).asks} == set(asks)


def test_empty_log_says_what_to_switch_on(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="does not exist"):
        log_source(tmp_path / "none")
    (tmp_path / "decisions").mkdir()
    with pytest.raises(TrainingError, match="serve with --log-images and --audit-rate"):
        log_source(tmp_path)


def test_what_cannot_be_read_is_named_and_the_rest_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_log(tmp_path)
    (tmp_path / "decisions" / "x.parquet").write_bytes(b"PAR1 nonsense")
    (tmp_path / "feedback" / "._f.parquet").write_bytes(b"of another system")
    source = log_source(tmp_path)
    assert {ask.question_id for i in range(len(source)) for ask in source.load(i).asks} == {
        "a", "b", "c"
    }  # fmt: skip
    assert sorted(text.partition(": ")[2].partition(":")[0] for text in caplog.messages) == [
        "decisions/x.parquet", "feedback/._f.parquet"
    ]  # fmt: skip
    later = to_table([decision("late", np.zeros((2, 2, 3), np.uint8))], DecisionRecord)
    later = later.replace_schema_metadata({b"schema_version": b"5"})
    pq.write_table(later, tmp_path / "decisions" / "y.parquet")
    with pytest.raises(BadRecord, match=r"y\.parquet: it holds records of version 5, and this"):
        log_source(tmp_path)


def test_changed_picture_is_refused(tmp_path: Path) -> None:
    write_log(tmp_path)
    for path in (tmp_path / "images").glob("*.png"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    with pytest.raises(BadRecord, match="do not match its name"):
        log_source(tmp_path).load(0)


def test_what_became_of_feedback_is_counted(tiny_model: Path, tmp_path: Path) -> None:
    write_log(tmp_path / "log")
    result = collect(log_source(tmp_path / "log"), tiny_model, tmp_path / "out", workers=1)
    # "c" has a score, and no answer in the log that it could be about.
    assert result.notes() == ["1 scores left out, on an answer that is not given again"]
    path = tmp_path / "log" / "decisions" / "d1.parquet"
    rows = from_table(pq.read_table(path), DecisionRecord)
    said = {
        r.question_id: r.answers[(r.actions or ()).index("9")] for r in records_in(tmp_path / "out")
    }
    told = [
        replace(row, answer="another" if row.request_id == "b" else said.get(row.request_id))
        for row in rows
    ]
    pq.write_table(to_table(told, DecisionRecord), path)
    result = collect(log_source(tmp_path / "log"), tiny_model, tmp_path / "again", workers=1)
    assert result.notes() == ["2 of 3 logged answers are given again by their action"]
    [scored] = [r for r in records_in(tmp_path / "again") if r.question_id == "c"]
    at = (scored.actions or ()).index("9")
    assert scored.scores[at] == 0.0
    manifest = json.loads((tmp_path / "again" / "manifest.json").read_text())
    assert manifest["counts"]["logged answers that it gave again"] == 2
    assert manifest["label_recipe"] == label_recipe_hash(tiny_model, "float32")
