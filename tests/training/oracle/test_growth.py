"""A source that grows, shrinks and changes: what is labelled again, what stays and what leaves."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from router.log import erase
from router.records import DecisionRecord, FeedbackRecord, picture_id, to_table
from training.errors import BadRecord, ParametersDiffer, TrainingError
from training.oracle.collection import MANIFEST, CollectResult, collect
from training.oracle.data import read_oracle
from training.oracle.growth import LABELLED_KEY, shard_files, shard_size
from training.sources.llava import llava_source
from training.sources.log import log_source
from training.sources.tasks import scored_by_metric

ROOT = Path(__file__).parents[3]
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


def as_of_before(out: Path) -> None:
    """Make a folder what it was before shards said what they hold."""
    for path in shard_files(out):
        table = pq.read_table(path)
        told = {k: v for k, v in (table.schema.metadata or {}).items() if k != LABELLED_KEY}
        pq.write_table(table.replace_schema_metadata(told), path, compression="zstd")
    manifest = json.loads((out / MANIFEST).read_text())
    del manifest["files"]
    (out / MANIFEST).write_text(json.dumps(manifest))


def test_folders_of_before_go_on(log: Log, tiny_model: Path, tmp_path: Path) -> None:
    out, first = tmp_path / "out", log.ask(0, "what?")
    for number in range(1, 12):
        log.ask(number, "what?")
    label(log.folder, tiny_model, out)
    as_of_before(out)
    assert len(read_oracle([out])) == 12
    shard_files(out)[2].unlink()
    assert label(log.folder, tiny_model, out).labelled_now == shard_size(12) == 2
    log.say(first, reference="a box")
    assert label(log.folder, tiny_model, out).labelled_now == 1
    assert same_as_fresh(log, tiny_model, out)
    # One whose source has changed since: nobody knows what was asked, so all is labelled anew.
    as_of_before(out)
    log.ask(12, "what?")
    assert label(log.folder, tiny_model, out).labelled_now == 13
    assert same_as_fresh(log, tiny_model, out)


def test_damaged_labels_are_named_and_made_anew(log: Log, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in range(10):
        log.ask(number, "what?")
    label(log.folder, tiny_model, out)
    shard_files(out)[1].write_bytes(b"PAR1 nonsense")
    with pytest.raises(TrainingError, match=r"cannot read .*oracle-00001.*delete it"):
        read_oracle([out])
    with pytest.raises(TrainingError, match=r"oracle-00001\.parquet: delete it .* --skip-bad"):
        label(log.folder, tiny_model, out)
    result = label(log.folder, tiny_model, out, skip_bad=True)
    assert result.labelled_now == 2
    assert result.notes() == [
        "1 damaged files were removed and their pictures labelled again: oracle-00001.parquet"
    ]
    assert same_as_fresh(log, tiny_model, out)


def test_a_run_that_did_not_end_is_refused_and_a_growing_one_shows_the_state_before(
    log: Log, tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for number in range(20):
        log.ask(number, "what?")
    (log.folder / "images" / f"{sorted(IDS[:20])[10]}.png").write_bytes(b"nothing")
    with pytest.raises(BadRecord):
        label(log.folder, tiny_model, out)
    assert shard_files(out)
    with pytest.raises(TrainingError, match=r"is not finished.*`m3-train collect` again"):
        read_oracle([out])
    # It goes on though its source is another by now: what it labelled counts.
    done = sum(pq.read_metadata(path).num_rows for path in shard_files(out))
    Image.fromarray(PICTURES[IDS.index(sorted(IDS[:20])[10])]).save(
        log.folder / "images" / f"{sorted(IDS[:20])[10]}.png"
    )
    log.ask(20, "what?")
    assert label(log.folder, tiny_model, out).labelled_now == 21 - done
    state = read_oracle([out])
    log.say("r000", reference="a box")
    for number in range(21, 31):
        log.ask(number, "what?")
    (log.folder / "images" / f"{max(IDS[21:31])}.png").write_bytes(b"nothing")
    with pytest.raises(BadRecord):
        label(log.folder, tiny_model, out)
    assert len(rows(out)) > len(state)
    assert read_oracle([out]).data_hash == state.data_hash
    assert json.loads((out / MANIFEST).read_text())["growing"]
    label(log.folder, tiny_model, out, skip_bad=True)
    assert "growing" not in json.loads((out / MANIFEST).read_text())
    assert len(read_oracle([out])) == 30


@pytest.mark.slow
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_happens_to_a_log_the_labels_are_those_of_a_fresh_run(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("any")
    log, out, asked = Log(folder / "log"), folder / "out", dict[str, tuple[int, str]]()
    for _ in range(data.draw(st.integers(1, 3))):
        changed = set[tuple[int, str]]()
        for number, question in data.draw(
            st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["a?", "b?"])), min_size=1,
                     max_size=4)
        ):  # fmt: skip
            asked[log.ask(number, question)] = number, question
            changed.add((number, question))
        for request in data.draw(st.lists(st.sampled_from(sorted(asked)), max_size=2)):
            log.say(request, reference=data.draw(st.sampled_from(["x", "y"])))
        if data.draw(st.booleans()):
            gone = data.draw(st.integers(0, 5))
            erase(log.folder, IDS[gone])
            asked = {name: what for name, what in asked.items() if what[0] != gone}
        if not asked:
            return
        label(log.folder, tiny_model, out)
        assert same_as_fresh(log, tiny_model, out)
        assert label(log.folder, tiny_model, out).labelled_now == 0


@contextmanager
def running(log: Log, model: Path, out: Path) -> Iterator[subprocess.Popen[str]]:
    command = [
        sys.executable, "-m", "training.cli", "collect", "--from-log", str(log.folder),
        "--out", str(out), "--model", str(model), "--workers", "2", "--device", "cpu",
        "--max-new-tokens", "3",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    ) as run:  # fmt: skip
        try:
            yield run
        finally:
            run.kill()


def ended(group: int) -> bool:
    """Return whether no process of the session is running any more."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == group and fields[0] != "Z":
            return False
    return True


@pytest.mark.slow
def test_killed_while_it_grows_nothing_is_lost_and_nothing_done_twice(
    log: Log, tiny_model: Path, tmp_path: Path
) -> None:
    """kill -9 as soon as a shard more is there, again and again; then it ends by itself."""
    out, deadline = tmp_path / "out", time.monotonic() + 400
    requests = [log.ask(number, f"what is {number}?") for number in range(8)]
    label(log.folder, tiny_model, out)
    state = read_oracle([out]).data_hash
    for number in range(8, 32):
        log.ask(number, f"what is {number}?")
    for request in requests[:3]:
        log.say(request, reference="a box")
    seen, moment = stamps(out), random.Random(4)
    for _ in range(4):
        with running(log, tiny_model, out) as run:
            while len(stamps(out)) <= len(seen) and run.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(moment.random() * 0.1)
            os.kill(run.pid, signal.SIGKILL)
        while not ended(run.pid):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        now = stamps(out)
        assert now.items() >= seen.items()  # what was written stays as it was
        assert len(now) > len(seen)
        assert read_oracle([out]).data_hash == state
        seen = now
    labelled = [entry["picture"] for path in shard_files(out) for entry in entries(path)]
    with running(log, tiny_model, out) as run:
        _, said = run.communicate(timeout=300)
        assert run.returncode == 0, said
    assert f"({8 + 27 - len(labelled)} pictures labelled now)" in said
    assert not list(out.glob("*.tmp"))
    labelled = [entry["picture"] for path in shard_files(out) for entry in entries(path)]
    assert len(labelled) == len(set(labelled)) == 32
    assert same_as_fresh(log, tiny_model, out)


def entries(path: Path) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = json.loads((pq.read_metadata(path).metadata or {})[LABELLED_KEY])
    return told


def test_two_runs_at_once_are_refused(log: Log, tiny_model: Path, tmp_path: Path) -> None:
    import fcntl

    out = tmp_path / "out"
    log.ask(0, "what?")
    label(log.folder, tiny_model, out)
    with (out / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(TrainingError, match="another run is writing"):
            label(log.folder, tiny_model, out)
