"""Growing folders of labels that are old, damaged, unfinished or killed; and any history at all."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from router import default_router_path
from router.log import erase
from training.errors import BadRecord, TrainingError
from training.oracle.collection import MANIFEST
from training.oracle.data import read_oracle
from training.oracle.growth.folder import shard_files, shard_size
from training.oracle.growth.told import LABELLED_KEY

from .conftest import IDS, PICTURES, Log, label, rows, same_as_fresh, stamps

ROOT = Path(__file__).parents[3]


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


def test_folders_of_before_grow(log: Log, tiny_model: Path, tmp_path: Path) -> None:
    out, first = tmp_path / "out", log.ask(0, "what?")
    for number in range(1, 12):
        log.ask(number, "what?")
    label(log.folder, tiny_model, out)
    as_of_before(out)
    log.ask(12, "what?")
    log.ask(3, "which?")
    assert label(log.folder, tiny_model, out).labelled_now == 2
    assert same_as_fresh(log, tiny_model, out)
    # Where it has also changed otherwise nobody knows what was asked: all is labelled anew.
    shutil.rmtree(out)
    label(log.folder, tiny_model, out)
    as_of_before(out)
    log.say(first, reference="a box")
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
    for number in range(8, 40):
        for word in ("what", "which", "who"):
            log.ask(number, f"{word} is {number}?")
    for request in requests[:3]:
        log.say(request, reference="a box")
    seen, moment, kills, code = stamps(out), random.Random(4), 0, -9
    while code == -9:
        labelled = pictures_in(out)
        with running(log, tiny_model, out) as run:
            while len(stamps(out)) <= len(seen) and run.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            if kills < 4:
                time.sleep(moment.random() * 0.1)
                run.kill()
            _, said = run.communicate(timeout=300)
            code = run.returncode
        while not ended(run.pid):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        kills += code == -9
        if "growing" in json.loads((out / MANIFEST).read_text()):
            assert stamps(out).items() >= seen.items()  # what was written stays as it was
            assert read_oracle([out]).data_hash == state
        seen = stamps(out)
    assert (code, kills > 0) == (0, True), said
    assert f"({8 + 35 - len(labelled)} pictures labelled now)" in said
    assert not list(out.glob("*.tmp"))
    assert len(pictures_in(out)) == len(set(pictures_in(out))) == 40
    assert same_as_fresh(log, tiny_model, out)


def pictures_in(out: Path) -> list[str]:
    return [entry["picture"] for path in shard_files(out) for entry in entries(path)]


def entries(path: Path) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = json.loads((pq.read_metadata(path).metadata or {})[LABELLED_KEY])
    return told


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "--out", "x"],
        ["evaluate", "--out", "x"],
        ["certify", "--max-harm", "0.1", "--out", "x"],
        ["replay", "--policy", "finest"],
        ["promote", "--registry", "x"],
    ],
    ids=lambda words: words[0],
)
def test_no_command_reads_what_no_run_has_finished(
    command: Any, tiny_model: Path, tmp_path: Path, monkeypatch: Any, words: list[str]
) -> None:
    Image.fromarray(PICTURES[0]).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"nothing")
    talk = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a box"}]
    records = [{"id": name, "image": f"{name}.png", "conversations": talk} for name in "ab"]
    (tmp_path / "d.json").write_text(json.dumps(records))
    monkeypatch.chdir(tmp_path)
    asked = ["--data", "d.json", "--images", ".", "--out", "o", "--model", tiny_model]
    assert command("m3-train", "collect", *asked, "--workers", 1).returncode == 2
    assert shard_files(tmp_path / "o")
    router = [] if words[0] in ("fit", "replay") else ["--router", default_router_path()]
    done = command("m3-train", *words, "--oracle", "o", *router)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: o is not finished, the run that labels")
    assert not (tmp_path / "x").exists()


def test_two_runs_at_once_are_refused(log: Log, tiny_model: Path, tmp_path: Path) -> None:
    import fcntl

    out = tmp_path / "out"
    log.ask(0, "what?")
    label(log.folder, tiny_model, out)
    with (out / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(TrainingError, match="another run is writing"):
            label(log.folder, tiny_model, out)
