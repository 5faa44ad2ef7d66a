"""Runs of lmms-eval as oracle data: what `collect` would have found out, and nothing else."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from router.records import OracleRecord, from_table, picture_id
from training.fitting.predictor import labels_of
from training.lmms.dataset import read_data
from training.lmms.importing import import_runs
from training.oracle.collection import collect
from training.oracle.data import read_oracle
from training.oracle.manifest import read_manifest
from training.sources.llava import llava_source

SCALES = (1, 9, 36, 144, 576)


def rows(folder: Path) -> dict[str, OracleRecord]:
    found = from_table(pq.read_table(folder / "oracle-00000.parquet"), OracleRecord)
    return {f"{row.picture_id} {row.question}": row for row in found}


@pytest.fixture(scope="module")
def imported(runs: Path, task: Any, tiny_model: Path, tmp_path_factory: Any) -> Path:
    out = tmp_path_factory.mktemp("imported") / "oracle"
    done = import_runs([runs], task.data, tiny_model, out)
    assert (done.task, done.metric, done.questions) == ("little", "exact_match", 12)
    assert (done.pictures, done.left_out) == (4, ())
    return out


@pytest.fixture(scope="module")
def collected(task: Any, tiny_model: Path, tmp_path_factory: Any) -> Path:
    """The same questions about the same pixels, labelled here."""
    folder = tmp_path_factory.mktemp("collected")
    said = []
    for doc, (picture, question) in enumerate(zip(task.pictures, task.questions, strict=True)):
        picture.save(folder / f"{doc}.png")
        turns = [{"from": "human", "value": f"<image>\n{question}"}]
        turns += [{"from": "gpt", "value": task.targets[doc]}]
        said.append({"id": str(doc), "image": f"{doc}.png", "conversations": turns})
    (folder / "data.json").write_text(json.dumps(said), encoding="utf-8")
    source = llava_source(folder / "data.json", folder)
    collect(source, tiny_model, folder / "oracle", workers=1, max_new_tokens=6, focus=False)
    found = {}
    for path in sorted((folder / "oracle").glob("*.parquet")):
        for row in from_table(pq.read_table(path), OracleRecord):
            found[f"{row.picture_id} {row.question}"] = row
    return found


def test_records_are_those_of_collect_with_the_tasks_scores(
    imported: Path, collected: dict[str, OracleRecord], runs: Path, tiny_model: Path
) -> None:
    mine = rows(imported)
    assert mine.keys() == collected.keys()
    scored: dict[str, list[float]] = {}
    for path in sorted(runs.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            sample = json.loads(line)
            scored.setdefault(sample["target"], []).append(sample["exact_match"])
    for key, row in mine.items():
        other = collected[key]
        for name in ("question", "reference", "scales", "visual_tokens", "model_hash",
                     "feature_schema", "group_id", "label_recipe", "actions"):  # fmt: skip
            assert getattr(row, name) == getattr(other, name), name
        assert [text.split() for text in row.answers] == [text.split() for text in other.answers]
        assert row.confidence == pytest.approx(other.confidence, rel=1e-3)
        np.testing.assert_allclose(row.features, other.features, rtol=1e-4, atol=1e-5)
        assert list(row.scores) == scored[row.reference or ""]
        assert np.isnan(row.p_reference).all()
        assert (row.source, row.metric, row.threshold) == (
            "lmms-eval", "lmms-eval/exact_match", 0.5)  # fmt: skip


def test_the_folder_is_read_as_any_other_and_learnt_from_its_scores(imported: Path) -> None:
    data = read_oracle([imported])
    assert data.sources == ("lmms-eval",)
    assert data.space.names == tuple(map(str, SCALES))
    assert set(data.groups) == {"little/"}
    assert read_manifest(imported)["source"]["task"] == "little"
    np.testing.assert_array_equal(labels_of(data), data.scores)
    with pytest.raises(ValueError, match="needs likelihoods, which 12 of 12"):
        labels_of(data, "soft")


def copied(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs, tmp_path / "runs"))


def change(runs: Path, number: int, edit: Callable[[list[dict[str, Any]]], object]) -> None:
    """Edit the samples of the run of that number."""
    path = sorted(runs.glob("*.jsonl"))[number]
    samples = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    edit(samples)
    lines = [json.dumps(sample, ensure_ascii=False) for sample in samples]  # as lmms-eval does
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def told(sample: dict[str, Any]) -> dict[str, Any]:
    return sample["token_counts"][0]["m3"]


REFUSED: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "a document is missing": (lambda s: s.pop(3), "1 are missing in .*, the first 3"),
    "a document too many": (lambda s: s.append({**s[0], "doc_id": 99}), "1 are missing .* 99"),
    "a document twice": (lambda s: s.append(s[0]), "holds document 0 twice"),
    "another hash": (lambda s: s[2].update(doc_hash="other"), "differ in document 2: doc_hash"),
    "another target": (lambda s: s[1].update(target="other"), "differ in document 1: target"),
    "another picture": (
        lambda s: told(s[1]).update(picture_ids=["0" * 64]),
        "differ in document 1: pictures",
    ),
    "another question": (
        lambda s: told(s[1])["messages"][0]["content"][1].update(text="Why?"),
        "differ in document 1: conversation",
    ),
    "another model": (
        lambda s: told(s[0]).update(recipe="0123456789abcdef-float32-6"),
        "different recipes in document 0",
    ),
    "no picture told": (
        lambda s: s[0].update(token_counts=[{"input_tokens": 3}]),
        "line 1: the model told nothing of pictures; samples of `--model m3`",
    ),
    "no counts": (lambda s: s[0].update(token_counts=[None]), "line 1: .* --use_cache"),
    "several answers": (lambda s: s[0].update(filtered_resps=["a", "b"]), "2 answers to one"),
    "no number": (lambda s: s[5].update(exact_match="yes"), "document 5: exact_match is 'yes'"),
    "out of bounds": (lambda s: s[5].update(exact_match=100.0), "document 5: .* no score in"),
    "nothing": (lambda s: s.clear(), "holds no sample"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_runs_that_do_not_belong_together_are_refused_in_a_line(
    what: str, runs: Path, task: Any, tiny_model: Path, tmp_path: Path, command: Any
) -> None:
    edit, words = REFUSED[what]
    mine = copied(runs, tmp_path)
    change(mine, 2, edit)
    done = command(
        "m3-train", "import-lmms-eval", mine, "--data", task.data, "--model", tiny_model,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if not line.startswith("importing")]
    assert len(errors) == 1
    with pytest.raises(ValueError, match=words) as refused:
        import_runs([mine], task.data, tiny_model, tmp_path / "out")
    assert str(refused.value) in errors[0]
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_run_that_was_cut_off_is_refused(
    runs: Path, task: Any, tiny_model: Path, tmp_path: Path
) -> None:
    mine = copied(runs, tmp_path)
    path = sorted(mine.glob("*.jsonl"))[1]
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="line 12 is cut off or damaged"):
        import_runs([mine], task.data, tiny_model, tmp_path / "out")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"cannot read .*utf-8"):
        import_runs([mine], task.data, tiny_model, tmp_path / "out")
    with pytest.raises(ValueError, match="is not a sample file"):
        import_runs([task.data / "test.parquet"], task.data, tiny_model, tmp_path / "out")
    with pytest.raises(ValueError, match="run lmms-eval with --log_samples"):
        import_runs([task.data], task.data, tiny_model, tmp_path / "out")


def results(runs: Path, number: int, edit: Callable[[dict[str, Any]], object]) -> None:
    path = sorted(runs.glob("*_results.json"))[number]
    said = json.loads(path.read_text(encoding="utf-8"))
    edit(said)
    path.write_text(json.dumps(said), encoding="utf-8")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda r: r["config"].update(limit=5), "another limit of the run .None and 5."),
        (lambda r: r.update(model_source="other"), "another model_source"),
        (lambda r: r.update(system_instruction="Hi"), "another system instruction"),
        (lambda r: r["configs"]["little"].update(num_fewshot=2), "another settings of the task"),
        (lambda r: r["configs"].clear(), "does not tell how"),
    ],
)  # fmt: skip
def test_runs_that_were_made_in_different_ways_are_refused(
    edit: Any, words: str, runs: Path, task: Any, tiny_model: Path, tmp_path: Path
) -> None:
    mine = copied(runs, tmp_path)
    results(mine, 3, edit)
    with pytest.raises(ValueError, match=words):
        import_runs([mine], task.data, tiny_model, tmp_path / "out")


def test_every_scale_is_needed_once(
    runs: Path, task: Any, tiny_model: Path, tmp_path: Path, make_runs: Any
) -> None:
    mine = copied(runs, tmp_path)
    twice = make_runs(tmp_path / "twice", 9)
    with pytest.raises(ValueError, match="are both of scale 9"):
        import_runs([mine, twice], task.data, tiny_model, tmp_path / "out")
    sorted(mine.glob("*.jsonl"))[1].unlink()
    with pytest.raises(ValueError, match=r"runs at 1, 36, 144, 576 of a model .*: no run at 9"):
        import_runs([mine], task.data, tiny_model, tmp_path / "out")


def test_runs_at_a_focus_are_named_and_left_out(
    runs: Path, task: Any, tiny_model: Path, tmp_path: Path, make_runs: Any
) -> None:
    focused = make_runs(tmp_path / "focus", {"focus": "36+144@350wx12"})
    done = import_runs([runs, focused], task.data, tiny_model, tmp_path / "out")
    assert done.questions == 12
    assert [note.endswith("not run at one scale") for note in done.left_out] == [True]
    with pytest.raises(ValueError, match="no run at one scale"):
        import_runs([focused], task.data, tiny_model, tmp_path / "other")


def test_the_task_the_metric_and_lists_around_answers(
    runs: Path, task: Any, tiny_model: Path, tmp_path: Path
) -> None:
    mine = copied(runs, tmp_path)
    for number in range(len(SCALES)):
        change(mine, number, lambda samples: [
            sample.update(f1={"score": 0.25}, input="one\u2028two", filtered_resps="cut",
                          resps=[[sample["filtered_resps"]]])
            for sample in samples
        ])  # fmt: skip
    with pytest.raises(ValueError, match="hold exact_match, f1: choose one with --metric"):
        import_runs([mine], task.data, tiny_model, tmp_path / "out")
    import_runs([mine], task.data, tiny_model, tmp_path / "f1", metric="f1")
    plain = tmp_path / "plain"
    import_runs([runs], task.data, tiny_model, plain)
    for key, row in rows(tmp_path / "f1").items():
        assert set(row.scores) == {0.25}
        assert row.answers == rows(plain)[key].answers
    other = sorted(mine.glob("*.jsonl"))[0]
    shutil.copy(other, other.with_name(other.name.replace("little", "large")))
    with pytest.raises(ValueError, match="several tasks: choose one with --task large, little"):
        import_runs([mine], task.data, tiny_model, tmp_path / "out")
    with pytest.raises(ValueError, match="no run of the task small"):
        import_runs([mine], task.data, tiny_model, tmp_path / "out", task="small")


def test_scores_of_nothing_are_told(
    runs: Path, task: Any, tiny_model: Path, tmp_path: Path, command: Any
) -> None:
    """The task's metric is none of ours; what others make of the answers is said all the same."""
    mine = copied(runs, tmp_path)
    for number in range(len(SCALES)):
        change(mine, number, lambda s: [sample.update(exact_match=0.0) for sample in s])
    done = command(
        "m3-train", "import-lmms-eval", mine, "--data", task.data, "--model", tiny_model,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0
    assert "no answer at any action earned anything against its reference on 12" in done.stderr


def test_less_is_no_score(runs: Path, task: Any, tiny_model: Path, tmp_path: Path) -> None:
    mine = copied(runs, tmp_path)
    for number in range(len(SCALES)):
        results(mine, number, lambda r: r["higher_is_better"]["little"].update(exact_match=False))
    with pytest.raises(ValueError, match="of exact_match less is better"):
        import_runs([mine], task.data, tiny_model, tmp_path / "out")


def test_only_the_pictures_that_were_asked_about_will_do(
    runs: Path, task: Any, tiny_model: Path, tmp_path: Path
) -> None:
    """Data in another order, of another task, or none: never a record about another picture."""
    table = pq.read_table(task.data / "test.parquet")
    other = tmp_path / "turned"
    other.mkdir()
    pq.write_table(table.take(list(range(len(table)))[::-1]), other / "test.parquet")
    with pytest.raises(ValueError, match=r"document 0: the picture in row 0 .* is not the one"):
        import_runs([runs], other, tiny_model, tmp_path / "out")
    pq.write_table(table.slice(0, 5), other / "test.parquet")
    with pytest.raises(ValueError, match=r"document 6: .* has 5 rows"):
        import_runs([runs], other, tiny_model, tmp_path / "out")
    pq.write_table(table.drop_columns("image"), other / "test.parquet")
    with pytest.raises(ValueError, match="no column holds the pictures"):
        import_runs([runs], other, tiny_model, tmp_path / "out")
    with pytest.raises(ValueError, match="nowhere is not a folder of data"):
        import_runs([runs], tmp_path / "nowhere", tiny_model, tmp_path / "out")


def test_another_model_is_refused(runs: Path, task: Any, tiny_model: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_model, tmp_path / "other"))
    config = json.loads((other / "tokenizer_config.json").read_text(encoding="utf-8"))
    (other / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 7}))
    with pytest.raises(ValueError, match="give the --model that they ran"):
        import_runs([runs], task.data, other, tmp_path / "out")


def test_a_folder_that_is_not_empty_is_left_alone(
    imported: Path, runs: Path, task: Any, tiny_model: Path
) -> None:
    before = sorted(imported.iterdir())
    with pytest.raises(ValueError, match="is not empty"):
        import_runs([runs], task.data, tiny_model, imported)
    assert sorted(imported.iterdir()) == before


def saved(folder: Path, table: pa.Table, parts: int) -> None:
    """Write a data set as `save_to_disk` does, in so many files."""
    folder.mkdir(parents=True)
    size = -(-len(table) // parts)
    names = [f"data-{part:05d}-of-{parts:05d}.arrow" for part in range(parts)]
    for part, name in enumerate(names):
        with pa.ipc.new_stream(folder / name, table.schema) as stream:
            stream.write_table(table.slice(part * size, size))
    state = {"_data_files": [{"filename": name} for name in names]}
    (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")


def test_data_is_read_from_every_layout(task: Any, tmp_path: Path) -> None:
    """Saved whole, saved in splits, Parquet by the Hub's names; files beside their rows."""
    table = pq.read_table(task.data / "test.parquet")
    saved(tmp_path / "one", table, 2)
    saved(tmp_path / "dict" / "test", table, 1)
    saved(tmp_path / "dict" / "val", table.slice(0, 1), 1)
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["test", "val"]}')
    hub = tmp_path / "hub" / "data"
    hub.mkdir(parents=True)
    pq.write_table(table.slice(0, 7), hub / "test-00000-of-00002.parquet")
    pq.write_table(table.slice(7), hub / "test-00001-of-00002.parquet")
    pq.write_table(table.slice(0, 1), hub / "train-00000-of-00001.parquet")
    for folder, split in (("one", None), ("dict", "test"), ("hub", "test")):
        data = read_data(tmp_path / folder, split)
        assert (len(data), data.column) == (12, "image")
        for row, shown in enumerate(task.pictures):
            rgb = np.asarray(shown)
            np.testing.assert_array_equal(data.picture(row, picture_id(rgb)), rgb)
    for folder in ("dict", "hub"):
        with pytest.raises(ValueError, match="several splits: choose with --split test"):
            read_data(tmp_path / folder)
        with pytest.raises(ValueError, match="no split dev"):
            read_data(tmp_path / folder, "dev")
    with pytest.raises(ValueError, match="question does not hold the pictures"):
        read_data(tmp_path / "one", column="question")


def test_a_picture_is_found_as_it_was_shown(tmp_path: Path, picture_bytes: Any) -> None:
    """On white, without its transparency, turned or not, beside the row as a file: by identity."""
    plain = Image.open(io.BytesIO(picture_bytes(5)))
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    plain.save(file, "PNG", exif=exif)
    (tmp_path / "beside.png").write_bytes(file.getvalue())
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    held = [{"bytes": None, "path": "beside.png"}, {"bytes": b"no picture", "path": None}, None]
    pq.write_table(pa.table({"shown": pa.array(held, kind)}), tmp_path / "test.parquet")
    data = read_data(tmp_path)
    turned = plain.transpose(Image.Transpose.ROTATE_270)
    for shown in (plain, turned):
        rgb = np.asarray(shown.convert("RGB"))
        np.testing.assert_array_equal(data.picture(0, picture_id(rgb)), rgb)
    for row in (1, 2):
        with pytest.raises(ValueError, match=f"document {row}: the picture in row {row}"):
            data.picture(row, picture_id(np.asarray(plain.convert("RGB"))))
