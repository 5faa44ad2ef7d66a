"""Datasets of Hugging Face as a source, as its own package wrote them (tests/data/hf/write)."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from training.errors import BadRecord, TrainingError
from training.oracle.collection import collect
from training.sources.hf import hf_source
from training.sources.tasks import FileSource

DATA = Path(__file__).resolve().parents[2] / "data" / "hf"


def png(colour: tuple[int, int, int] = (0, 0, 200)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 8), colour).save(file, "PNG")
    return file.getvalue()


def written(folder: Path, **columns: Any) -> Path:
    """A Parquet file with pictures, questions and whatever else."""
    n_rows = len(next(iter(columns.values())))
    folder.mkdir(parents=True)
    table = {"image": [png()] * n_rows, "question": ["q?"] * n_rows} | columns
    pq.write_table(pa.table(table), folder / "train.parquet")
    return folder


def asked(source: FileSource) -> list[tuple[Any, ...]]:
    """Colour of the picture, question, reference and all references, in order."""
    tasks = [source.load(index) for index in range(len(source))]
    return [
        (tuple(task.rgb[0, 0].tolist()), ask.question, ask.reference, ask.references)
        for task in tasks
        for ask in task.asks
    ]


BLUE, VIOLET, PURPLE = (0, 0, 200), (40, 0, 200), (80, 0, 200)
ASKED = [
    (BLUE, "What is it?", "box", ("crate", "box", "box")),
    (BLUE, "Which colour?", "blue", ("blue",)),
    (VIOLET, "How many?", "2", ("2",)),
    (PURPLE, "Why?", None, ()),
]


@pytest.mark.parametrize(
    ("folder", "split"), [("saved", "train"), ("in-two-files", None), ("hub", "train")]
)
def test_what_the_package_wrote_is_what_is_asked(folder: str, split: str | None) -> None:
    source = hf_source(DATA / folder, split=split)
    assert asked(source) == ASKED  # rows of one picture together, in the order of their first
    assert source.notes() == ["the answers of 1 questions: there are none"]
    assert len(asked(hf_source(DATA / "saved", split="validation"))) == 1
    names = [ask.question_id for _, _, asks in source.pictures for ask in asks]
    name = split or folder
    assert names == [f"{name}-0-0", f"{name}-2-0", f"{name}-1-0", f"{name}-3-0"]


def test_numbers_of_labels_are_their_names_and_columns_may_be_named() -> None:
    columns = "image=img,question=query,answer=species"
    found = asked(hf_source(DATA / "labelled", columns=columns))
    assert [each[1:3] for each in found] == [("Which?", "dog"), ("And?", None)]
    with pytest.raises(TrainingError, match=r"no column is called as answers usually are.*species"):
        hf_source(DATA / "labelled")
    nothing = asked(hf_source(DATA / "labelled", columns="answer="))
    assert [each[2] for each in nothing] == [None, None]
    for wrong in ("answers=species", "image", "image=img,image=img", "image=no", "image="):
        with pytest.raises(TrainingError, match=r"--columns|has no column"):
            hf_source(DATA / "labelled", columns=wrong)


def test_a_split_is_chosen_not_guessed(tmp_path: Path) -> None:
    for folder in ("saved", "hub"):
        with pytest.raises(TrainingError, match="has the splits train, validation: choose one"):
            hf_source(DATA / folder)
        with pytest.raises(TrainingError, match="has no split test; it has train, validation"):
            hf_source(DATA / folder, split="test")
    # As the hub converts: the folder of a configuration, then of a split.
    file = DATA / "hub" / "data" / "train-00000-of-00001.parquet"
    for name in ("one/train/0000.parquet", "one/test/0000.parquet", "two/train/0000.parquet"):
        (tmp_path / name).parent.mkdir(parents=True)
        shutil.copy(file, tmp_path / name)
    assert asked(hf_source(tmp_path / "one", split="train")) == ASKED
    with pytest.raises(TrainingError, match="holds several datasets: give the folder of one"):
        hf_source(tmp_path, split="train")
    (tmp_path / "empty").mkdir()
    for folder in ("empty", "none"):
        with pytest.raises(TrainingError, match=r"neither a dataset|does not exist"):
            hf_source(tmp_path / folder)


def test_answers_of_many_forms(tmp_path: Path) -> None:
    forms: dict[str, tuple[Any, tuple[str, ...]]] = {
        "text": (" box ", ("box",)),
        "blank": ("  ", ()),
        "null": (None, ()),
        "number": (7, ("7",)),
        "amount": (0.5, ("0.5",)),
        "blanks": (["", "box", None], ("box",)),
        "vqa": ([{"answer": "a", "answer_id": 1}, {"answer": "b", "answer_id": 2}], ("a", "b")),
        "squad": ({"text": ["a", "b"], "start": [1, 2]}, ("a", "b")),
    }
    for name, (value, references) in forms.items():
        folder = written(tmp_path / name, answer=pa.array([value, value]))
        found = asked(hf_source(folder))
        assert [each[3] for each in found] == [references] * 2, name
    options = written(tmp_path / "options", answer=[1], choices=[["cat", "dog"]])
    with pytest.raises(BadRecord, match="row 0 of train: the answer 1 is no text"):
        hf_source(options)


def test_bad_rows_are_named_and_may_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes(png())
    good = {"bytes": png((9, 9, 9)), "path": None}
    images = [
        good, {"bytes": None, "path": "../outside.png"}, {"bytes": None, "path": None}, good, good,
        {"bytes": None, "path": "inside.png"}, {"bytes": None, "path": "gone.png"},
    ]  # fmt: skip
    folder = written(
        tmp_path / "data",
        image=images,
        question=["a?", "b?", "c?", None, " ", "d?", "e?"],
        answer=["x"] * 7,
    )
    (folder / "inside.png").write_bytes(png((7, 7, 7)))
    with pytest.raises(BadRecord, match=r"row 1 of train: .*leads outside .*--skip-bad"):
        hf_source(folder)
    source = hf_source(folder, skip_bad=True)
    assert [each[:2] for each in asked(source)] == [((9, 9, 9), "a?"), ((7, 7, 7), "d?")]
    (note,) = source.notes()
    assert note.startswith("5 bad records: row 1 of train: ")
    for says in (
        "row 2 of train: no picture",
        "row 3 of train: 'question' is None",
        "row 4 of train: an empty question",
        "row 6 of train: the picture 'gone.png'",
    ):
        assert says in note
    lists = written(tmp_path / "several", image=[[good, good]], answer=["x"])
    with pytest.raises(BadRecord, match="2 pictures; one question is about one picture"):
        hf_source(lists)


def test_files_that_are_damaged_or_elsewhere_are_named(tmp_path: Path) -> None:
    shutil.copytree(DATA / "in-two-files", tmp_path / "cut")
    file = tmp_path / "cut" / "data-00001-of-00002.arrow"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(BadRecord, match=r"cannot read .*data-00001-of-00002.arrow"):
        hf_source(tmp_path / "cut")
    state = tmp_path / "cut" / "state.json"
    state.write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
    with pytest.raises(BadRecord, match="names a file outside of it"):
        hf_source(tmp_path / "cut")


def test_a_picture_that_cannot_be_decoded_is_a_bad_record(tmp_path: Path) -> None:
    folder = written(tmp_path / "data", image=[png(), b"not a picture"], answer=["x", "y"])
    source = hf_source(folder)
    assert source.load(0).rgb.shape == (8, 12, 3)
    with pytest.raises(BadRecord, match=r"^record train-1: cannot read the picture"):
        source.load(1)


def test_metrics_and_options_are_as_of_other_data(tmp_path: Path) -> None:
    question = "Which?\nA. cat\nB. dog\nC. cow"
    folder = written(tmp_path / "data", question=[question] * 2, answer=["B", None])
    source = hf_source(folder, metric="choice", repeats=2)
    asks = [ask for _, _, asks in source.pictures for ask in asks]
    assert [ask.metadata.get("repeat_of") for ask in asks] == [None, "train-0-0", None]
    assert [ask.metric for ask in asks] == ["choice"] * 3
    folder = written(tmp_path / "groups", answer=["1", "2"], doc=["d1", None])
    pictures = hf_source(folder, columns="group=doc").pictures
    assert [ask.group_id for _, _, asks in pictures for ask in asks] == ["groups/d1"] * 2


def test_it_is_collected(tiny_model: Path, tmp_path: Path, command: Any) -> None:
    flags = ("--out", tmp_path / "out", "--model", tiny_model, "--workers", 1, "--no-focus")
    flags += ("--max-new-tokens", 2)
    done = command("m3-train", "collect", "--hf-dataset", DATA / "hub", "--split", "train", *flags)
    assert done.returncode == 0, done.stderr
    assert "4 questions about 3 pictures" in done.stderr
    rows = [row for file in sorted((tmp_path / "out").glob("*.parquet"))
            for row in pq.read_table(file).to_pylist()]  # fmt: skip
    assert {row["source"] for row in rows} == {"hf"}
    assert [row["reference"] for row in rows].count(None) == 1
    again = collect(
        hf_source(DATA / "hub", split="train"), tiny_model, tmp_path / "out", workers=1,
        max_new_tokens=2, focus=False,
    )  # fmt: skip
    assert again.labelled_now == 0
    wrong = command("m3-train", "collect", "--scenes", 3, "--split", "train", *flags)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
