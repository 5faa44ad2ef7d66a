"""A source that grows, shrinks and changes: what is labelled again, what stays and what leaves."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from router.log import erase
from router.places import StoredPlace, as_place
from router.records import DecisionRecord, to_table
from training.errors import BadRecord, ParametersDiffer
from training.oracle.collection import collect
from training.oracle.data import read_oracle
from training.oracle.growth.folder import shard_files
from training.sources.llava import llava_source
from training.sources.log import log_source
from training.sources.tasks import scored_by_metric

from .conftest import IDS, PICTURES, Log, label, rows, same_as_fresh, stamps


def test_a_grown_log_labels_only_what_is_new(log: Log, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in range(5):
        log.ask(number, f"what is {number}?")
    assert label(log.folder, tiny_model, out).labelled_now == 5
    before = stamps(out)
    assert label(log.folder, tiny_model, out).labelled_now == 0
    assert stamps(out) == before
    for number in (30, 7, 21):
        log.ask(number, "and this?")
    result = label(log.folder, tiny_model, out)
    assert (result.pictures, result.questions, result.labelled_now) == (8, 8, 3)
    assert stamps(out).items() > before.items()
    assert same_as_fresh(log, tiny_model, out)
    assert len(read_oracle([out])) == 8


def test_what_is_asked_otherwise_is_labelled_again(
    log: Log, tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first, second = log.ask(0, "what?"), log.ask(1, "which?")
    log.ask(2, "who?")
    label(log.folder, tiny_model, out)
    log.say(first, reference="a box")
    assert label(log.folder, tiny_model, out).labelled_now == 1
    assert same_as_fresh(log, tiny_model, out)
    assert {row["reference"] for row in rows(out)} == {"a box", None}
    log.say(first, reference="a ball")  # newer feedback
    said = next(row["answers"] for row in rows(out) if row["question"] == "which?")[-1]
    log.say(second, score=0.25)
    log.ask(0, "and what else?")  # another question about a known picture
    log.ask(1, "which?", messages=None, max_tokens=2)  # the same question, asked before
    result = label(log.folder, tiny_model, out)
    assert result.labelled_now == 2
    assert same_as_fresh(log, tiny_model, out)
    # The score is of an answer that the log does not hold; with it, the labels are another's.
    answered = replace(log.written[second], answer=said, scale=576)
    pq.write_table(to_table([answered], DecisionRecord), log.folder / f"decisions/{second}.parquet")
    result = label(log.folder, tiny_model, out)
    assert result.labelled_now == 1
    assert result.notes() == ["1 of 1 logged answers are given again by their action"]
    assert same_as_fresh(log, tiny_model, out)
    assert next(row["scores"] for row in rows(out) if row["question"] == "which?")[-1] == 0.25
    assert len(shard_files(out)) < 8  # those that held nothing any more are gone


def test_nothing_of_an_erased_picture_is_left(log: Log, tiny_model: Path, tmp_path: Path) -> None:
    out, secret = tmp_path / "out", "is that my house?"
    for number in range(4):
        log.ask(number, f"what is {number}?")
    log.say(log.ask(1, secret), reference="yes it is")
    broken = log.ask(9, "is that broken?")
    (log.folder / "images" / f"{IDS[9]}.png").write_bytes(b"nothing")
    with pytest.raises(BadRecord, match=r"collect --skip-bad. goes on"):
        label(log.folder, tiny_model, out)
    result = label(log.folder, tiny_model, out, skip_bad=True)
    assert (result.questions, len(result.bad)) == (5, 1)
    assert all(found(out, text) for text in (IDS[1], secret, IDS[9]))
    erase(log.folder, IDS[1])
    erase(log.folder, IDS[9])
    log.ask(5, "what is new?")
    result = label(log.folder, tiny_model, out, skip_bad=True)
    assert (result.pictures, result.questions, result.bad) == (4, 4, [])
    assert result.labelled_now == 1
    for text in (IDS[1], IDS[9], secret, "what is 1?", "yes it is", broken):
        assert not found(out, text)
    assert {row["question"] for row in rows(out)} == {f"what is {n}?" for n in (0, 2, 3, "new")}
    assert len(read_oracle([out])) == 4


def test_a_log_in_an_object_store_grows_and_is_erased_from(
    log: Log, tiny_model: Path, tmp_path: Path, s3: str
) -> None:
    out, stored = tmp_path / "out", as_place(s3)
    assert isinstance(stored, StoredPlace)

    def labelled() -> int:
        for path in log.folder.rglob("*.*"):
            (stored / path.relative_to(log.folder).as_posix()).create(path.read_bytes())
        source = log_source(stored)
        done = collect(source, tiny_model, out, workers=1, device="cpu", max_new_tokens=3)
        return done.labelled_now

    for number in range(3):
        log.ask(number, f"what is {number}?")
    assert labelled() == 3
    assert labelled() == 0
    log.ask(5, "and this?")
    assert labelled() == 1
    erase(stored, IDS[1])
    (log.folder / "images" / f"{IDS[1]}.png").unlink()
    assert labelled() == 0
    assert {row["picture_id"] for row in rows(out)} == {IDS[0], IDS[2], IDS[5]}


def found(out: Path, text: str) -> list[str]:
    """Return the files that hold a text: as they are, in their columns, in what they say."""
    names = []
    for path in out.iterdir():
        told = path.read_bytes()
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            told += repr(table.to_pylist()).encode() + repr(table.schema.metadata).encode()
        names += [path.name] if text.encode() in told else []
    return names


def test_erased_labels_are_not_taken_for_missing_ones(
    log: Log, tiny_model: Path, tmp_path: Path
) -> None:
    """Erased at once from the folder, too; the rest of its shard is as it was."""
    out = tmp_path / "out"
    for number in range(20):
        log.ask(number, "what?")
    label(log.folder, tiny_model, out)
    assert max(map(pq.read_metadata, shard_files(out)), key=lambda m: m.num_rows).num_rows == 3
    erase(log.folder, IDS[3], [out])
    assert not found(out, IDS[3])
    assert label(log.folder, tiny_model, out).labelled_now == 0
    assert same_as_fresh(log, tiny_model, out)


def test_what_the_log_forgets_stays_labelled(log: Log, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    old, shared = log.ask(0, "long ago?"), log.ask(1, "long ago, too?", group_id="session 1")
    kept = log.ask(1, "lately?", group_id="session 2")
    label(log.folder, tiny_model, out)
    before = rows(out)
    log.forget(old)
    log.forget(shared)
    result = label(log.folder, tiny_model, out)
    assert (result.pictures, result.questions, result.labelled_now) == (1, 3, 0)
    assert rows(out) == before
    # Labelled anew, the picture stays where its first row put it, though that request is gone.
    log.say(kept, reference="now")
    assert label(log.folder, tiny_model, out).labelled_now == 1
    after = {row["question"]: row for row in rows(out)}
    assert sorted(after) == ["lately?", "long ago, too?", "long ago?"]
    assert after["lately?"]["reference"] == "now"
    assert after["lately?"]["group_id"] == "session 1"
    assert after["long ago?"] == next(row for row in before if row["question"] == "long ago?")


def test_a_data_file_is_what_it_says_now(tiny_model: Path, tmp_path: Path) -> None:
    for number in range(4):
        Image.fromarray(PICTURES[number]).save(tmp_path / f"{number}.png")

    def source(*records: tuple[str, int, str, str], **more: Any) -> Any:
        content = [
            {
                "id": name, "image": f"{number}.png",
                "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}],
            }
            for name, number, q, a in records
        ]  # fmt: skip
        (tmp_path / "data.json").write_text(json.dumps(content))
        return llava_source(tmp_path / "data.json", tmp_path, **more)

    def told(out: Path) -> list[tuple[str, str]]:
        return [(row["question"], row["reference"]) for row in rows(out)]

    out, fresh = tmp_path / "out", tmp_path / "fresh"
    one, two, three = ("1", 0, "q one?", "a"), ("2", 1, "q two?", "b"), ("3", 2, "q three?", "c")
    assert collect(source(one, two), tiny_model, out, workers=1).labelled_now == 2
    changed = ("2", 1, "q two?", "B!")
    assert collect(source(three, changed), tiny_model, out, workers=1).labelled_now == 2
    assert sorted(told(out)) == [("q three?", "c"), ("q two?", "B!")]
    collect(source(three, changed), tiny_model, fresh, workers=1)
    assert rows(out) == rows(fresh)
    # What comes back is labelled, what goes is gone, other ways of scoring are another run.
    assert collect(source(one, three, changed), tiny_model, out, workers=1).labelled_now == 1
    assert collect(source(one), tiny_model, out, workers=1).labelled_now == 0
    assert told(out) == [("q one?", "a")]
    with pytest.raises(ParametersDiffer, match="another source"):
        collect(source(one, metric="anls"), tiny_model, out, workers=1)
    with pytest.raises(ParametersDiffer, match="max_new_tokens"):
        collect(source(one), tiny_model, out, workers=1, max_new_tokens=3)


def test_another_way_of_scoring_a_log_is_another_run(
    log: Log, tiny_model: Path, tmp_path: Path
) -> None:
    log.ask(0, "what?")
    label(log.folder, tiny_model, tmp_path / "out")
    scored = scored_by_metric(log_source(log.folder), "anls")
    with pytest.raises(ParametersDiffer, match="another source"):
        collect(scored, tiny_model, tmp_path / "out", workers=1, max_new_tokens=3)
