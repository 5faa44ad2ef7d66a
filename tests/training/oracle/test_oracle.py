"""Collecting: labels are what the model generates, shards survive a kill, runs are not mixed."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from m3model.engine.recipe import label_recipe_hash
from router.actions import uniform_space
from router.records import (
    look_of,
)
from training.errors import BadRecord, ParametersDiffer, TrainingError
from training.oracle.collection import collect
from training.oracle.data import read_oracle
from training.oracle.labelling import Labeller, given_again, scores_of
from training.oracle.workers import BAD_KEY, shard_path
from training.sources.llava import llava_source
from training.sources.scenes import SceneSource
from training.sources.tasks import Ask

from .conftest import records_in

ROOT = Path(__file__).parents[3]
NOW = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.fixture(scope="module")
def collected(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("oracle") / "a"
    assert collect(SceneSource(6, 3), tiny_model, out, workers=1).pictures == 6
    return out


@pytest.mark.parametrize("scale", [1, 36, 576])
def test_labels_are_what_the_model_generates(tiny_model: Path, collected: Path, scale: int) -> None:
    labeller = Labeller(tiny_model, device="cpu")
    found = {record.question_id: record for record in records_in(collected)}
    for index in (0, 1):
        task = SceneSource(6, 3).load(index)
        pixels = labeller.processor.pixel_values(Image.fromarray(task.rgb))
        for ask in task.asks:
            record = found[ask.question_id]
            k = record.actions.index(str(scale))
            prompt, answer = labeller.processor.prompt_and_answer(ask.question, ask.reference)
            said = labeller.model.generate(
                input_ids=torch.tensor([prompt]), pixel_values=pixels, scale=scale,
                max_new_tokens=16, do_sample=False,
            )[0]  # fmt: skip
            assert labeller.processor.decode(said) == record.answers[k]
            with torch.no_grad():
                loss = labeller.model(
                    input_ids=torch.tensor([prompt + answer]), pixel_values=pixels, scale=scale,
                    labels=torch.tensor([[-100] * len(prompt) + answer]),
                ).loss  # fmt: skip
            wanted = np.exp(-float(loss) * len(answer))
            assert record.p_reference[k] == pytest.approx(wanted, rel=1e-3)


def test_right_answers_are_not_decoded(tiny_model: Path) -> None:
    """Ask for what the model says anyway: the answer is the reference, and as probable."""
    labeller = Labeller(tiny_model, device="cpu", max_new_tokens=4)
    task = SceneSource(1, 3).load(0)
    plain = labeller.label([task], feature_schema="f", model_hash="m", source="scenes")
    text = plain[0].answers[-1]
    again = replace(task, asks=(replace(task.asks[0], reference=text),))
    record = labeller.label([again], feature_schema="f", model_hash="m", source="scenes")[0]
    # This model never ends an answer by itself, so the reference's end token is what it adds.
    assert record.answers[-1].startswith(text)
    assert 0 < record.p_reference[-1] < 1


def test_without_a_reference_the_finest_answer_stands_in(tiny_model: Path) -> None:
    labeller = Labeller(tiny_model, device="cpu", max_new_tokens=3)
    task = SceneSource(1, 3).load(0)
    asks = tuple(replace(ask, reference=None) for ask in task.asks)
    for record in labeller.label(
        [replace(task, asks=asks)], feature_schema="f", model_hash="m", source="log"
    ):
        assert record.reference is None
        assert (record.metric, record.threshold) == ("agreement", 0.5)
        assert record.scores[-1] == 1.0
        assert record.p_reference[-1] == pytest.approx(record.confidence[-1], rel=1e-4)


def test_scores() -> None:
    answers, space = ["a", "b", "b"], uniform_space((1, 9, 36))
    assert scores_of(Ask("q", reference="A."), answers, space) == (1.0, 0.0, 0.0)
    assert scores_of(Ask("q"), answers, space) == (0.0, 1.0, 1.0)
    finest = Ask("q", score=0.0, logged_scale=36, logged_answer="B.")
    assert scores_of(finest, answers, space) == (0.0, 0.0, 0.0)
    assert scores_of(replace(finest, score=0.75), answers, space) == (0.0, 0.75, 0.75)
    coarsest = Ask("q", score=0.8, logged_scale=1, logged_answer="a")
    assert scores_of(coarsest, answers, space) == (0.8, 1.0, 1.0)


def test_a_score_is_about_the_answer_that_was_given() -> None:
    """Where the logged action says something else now, nobody has judged what it says."""
    answers, space = ["a", "b", "b"], uniform_space((1, 9, 36))
    ask = Ask("q", score=0.8, logged_scale=1, logged_answer="c")
    assert given_again(ask, answers, space) is False
    assert scores_of(ask, answers, space) == (0.0, 1.0, 1.0)
    elsewhere = replace(ask, logged_scale=36, logged_answer="a")  # another action gives it now
    assert given_again(elsewhere, answers, space) is False
    assert scores_of(elsewhere, answers, space) == (0.0, 1.0, 1.0)
    assert given_again(replace(ask, logged_answer=None), answers, space) is None
    assert scores_of(replace(ask, logged_answer=None), answers, space) == (0.0, 1.0, 1.0)
    assert given_again(replace(ask, logged_scale=4), answers, space) is None
    assert given_again(replace(ask, logged_answer="A."), answers, space) is True
    judged = replace(ask, reference="b")  # what is right overrules what was thought of an answer
    assert scores_of(judged, answers, space) == (0.0, 1.0, 1.0)


def test_scores_are_by_the_metric_of_the_question() -> None:
    answers, space = ["a cat", "the red cat", "dog"], uniform_space((1, 9, 36))
    assert scores_of(Ask("q", reference="red cat", metric="token_f1"), answers, space) == (
        pytest.approx(2 / 3), 1.0, 0.0,
    )  # fmt: skip
    people = {"references": ["cat"] * 3 + ["dog"] * 7}
    asked = Ask("q", reference="dog", metric="vqa", metadata=people)
    assert scores_of(asked, answers, space) == (pytest.approx(0.9), 0.0, 1.0)
    # Without a reference: agreement with the finest answer, by the same measure.
    alike = scores_of(Ask("q", metric="token_f1"), ["red dog", "cat", "a dog"], space)
    assert alike == (pytest.approx(2 / 3), 0.0, 1.0)
    several = Ask("q", reference="cat", metadata={"references": ["cat", "dog"]})
    assert scores_of(several, answers, space) == (1.0, 0.0, 1.0)


def test_rerun_does_nothing_and_other_parameters_are_refused(
    tiny_model: Path, collected: Path
) -> None:
    times = {p: p.stat().st_mtime_ns for p in collected.glob("oracle-*")}
    assert collect(SceneSource(6, 3), tiny_model, collected, workers=1).labelled_now == 0
    assert times == {p: p.stat().st_mtime_ns for p in collected.glob("oracle-*")}
    with pytest.raises(ParametersDiffer, match="another source"):
        collect(SceneSource(6, 4), tiny_model, collected, workers=1)
    with pytest.raises(ParametersDiffer, match="pictures"):
        collect(SceneSource(7, 3), tiny_model, collected, workers=1)
    with pytest.raises(ParametersDiffer, match="max_new_tokens"):
        collect(SceneSource(6, 3), tiny_model, collected, workers=1, max_new_tokens=3)


def test_data_that_lost_a_file_are_refused(collected: Path, tmp_path: Path) -> None:
    whole = len(list(collected.glob("oracle-*.parquet")))
    copy = tmp_path / "copy"
    shutil.copytree(collected, copy)
    assert len(read_oracle([copy]).scores) == len(list(records_in(collected)))
    shard_path(copy, 1).unlink()
    with pytest.raises(TrainingError, match=f"has {whole - 1} of the {whole} oracle-"):
        read_oracle([copy])


def test_foreign_folder_and_missing_model(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("mine")
    with pytest.raises(ParametersDiffer, match="not empty"):
        collect(SceneSource(1, 0), tiny_model, tmp_path)
    with pytest.raises(TrainingError, match=r"no config\.json"):
        collect(SceneSource(1, 0), tmp_path, tmp_path / "out")


@pytest.mark.slow
def test_killed_run_goes_on_where_it_stopped(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    command = [
        sys.executable, "-m", "training.cli", "collect", "--scenes", "32", "--seed", "5",
        "--out", str(out), "--model", str(tiny_model), "--workers", "2", "--device", "cpu",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    deadline = time.monotonic() + 300
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    ) as run:
        try:
            while not any(shard_path(out, index).exists() for index in range(8)):
                assert run.poll() is None, "the run ended before it wrote anything"
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            run.kill()  # kill -9; its workers get no signal: they must see it themselves
    while alive(run.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(run.pid), "worker processes outlived the run"
    done = {p: p.stat().st_mtime_ns for p in out.glob("oracle-*.parquet")}
    assert 0 < len(done) < 8
    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in done.items())
    assert not list(out.glob("*.tmp"))
    assert json.loads((out / "manifest.json").read_text())["finished"] is True
    whole = tmp_path / "whole"
    collect(SceneSource(32, 5), tiny_model, whole, workers=1, device="cpu")
    both = [
        pa.concat_tables([pq.read_table(p) for p in sorted(f.glob("oracle-*.parquet"))])
        for f in (out, whole)
    ]
    exact = ["picture_id", "question_id", "question", "answers", "scores", "reference", "kind"]
    assert both[0].select(exact).equals(both[1].select(exact))


def alive(group: int) -> bool:
    """Return whether any process of the session is still running (zombies are not)."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == group and fields[0] != "Z":
            return True
    return False


def test_bad_pictures_stop_or_are_counted(tiny_model: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 20, 3), 99, np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"nothing")
    talk = [{"from": "human", "value": "what color?"}, {"from": "gpt", "value": "gray"}]
    data = tmp_path / "data.json"
    names = ["good.png", "bad.png"]
    data.write_text(json.dumps([{"id": n, "image": n, "conversations": talk} for n in names]))
    source = llava_source(data, tmp_path)
    with pytest.raises(BadRecord, match=r"record bad\.png.*--skip-bad` goes on\)"):
        collect(source, tiny_model, tmp_path / "stops", workers=1)
    result = collect(source, tiny_model, tmp_path / "counts", workers=1, skip_bad=True)
    assert (result.questions, len(result.bad)) == (1, 1)
    assert BAD_KEY in pq.read_metadata(shard_path(tmp_path / "counts", 1)).metadata
    (record,) = records_in(tmp_path / "counts")
    assert (record.reference, record.metric, record.threshold) == ("gray", "exact_match", 0.5)
    assert record.group_id == look_of(np.full((20, 20, 3), 99, np.uint8))
    # A run that stopped there goes on past it, and not back.
    stopped = tmp_path / "stops"
    result = collect(source, tiny_model, stopped, workers=1, skip_bad=True)
    assert (result.questions, len(result.bad)) == (1, 1)
    assert json.loads((stopped / "manifest.json").read_text())["skip_bad"] is True
    with pytest.raises(ParametersDiffer, match="another skip_bad"):
        collect(source, tiny_model, stopped, workers=1)


def test_rows_and_manifest_name_the_recipe_of_their_answers(
    tiny_model: Path, collected: Path, tmp_path: Path
) -> None:
    recipe = label_recipe_hash(tiny_model, "float32", 16)
    assert json.loads((collected / "manifest.json").read_text())["label_recipe"] == recipe
    assert {record.label_recipe for record in records_in(collected)} == {recipe}
    assert read_oracle([collected]).label_recipe == recipe
    # A folder from before there were recipes goes on without.
    older = Path(shutil.copytree(collected, tmp_path / "older"))
    manifest = json.loads((older / "manifest.json").read_text())
    del manifest["label_recipe"]
    (older / "manifest.json").write_text(json.dumps(manifest))
    shard_path(older, 0).unlink()
    assert collect(SceneSource(6, 3), tiny_model, older, workers=1).labelled_now == 1
    assert {record.label_recipe for record in records_in(older)} == {recipe, None}
    assert read_oracle([older]).label_recipe is None
    assert read_oracle([collected, older]).label_recipe is None


def test_a_conversation_that_leaves_the_finest_no_room_is_left_out(
    tiny_model: Path, tmp_path: Path
) -> None:
    """The tiny model reads 2048 tokens: 1471 of text and 576 of the picture leave one to answer."""
    labeller = Labeller(tiny_model, device="cpu")
    task = SceneSource(1, 3).load(0)

    def asking(words: int) -> Ask:
        text = {"type": "text", "text": " ".join(["red"] * words)}
        message = {"role": "user", "content": [{"type": "image"}, text]}
        return Ask("what color?", messages=(message,), max_tokens=6)

    n_prompt = len(labeller.processor.prompt_ids(asking(0).messages))  # one of them the picture
    most = 2048 - 1 - 576 - (n_prompt - 1)
    fits, long = asking(most), asking(most + 1)
    assert labeller.fitting(replace(task, asks=(long, fits, long))).asks == (fits,)
    [record] = labeller.label(
        [replace(task, asks=(fits,))], feature_schema="f", model_hash="m", source="log"
    )
    assert len(labeller.processor.question_ids(record.answers[-1])) == 1
    assert len(labeller.processor.question_ids(record.answers[0])) > 1
