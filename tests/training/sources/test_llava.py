"""Reading LLaVA-format files: what is taken, what is refused, and with which sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.errors import BadRecord, TrainingError
from training.sources.llava import llava_source, read_llava

TALK = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "A box."}]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "a.png")
    Image.fromarray(np.zeros((9, 8), np.uint8)).save(folder / "grey.png")
    (tmp_path / "secret.png").write_bytes((folder / "a.png").read_bytes())
    return folder


def write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "data.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_turns_become_questions(tmp_path: Path, images: Path) -> None:
    more = [{"from": "human", "value": "and?"}, {"from": "gpt", "value": "blue"}]
    records = [
        {"id": "1", "image": "a.png", "conversations": TALK + more},
        {"id": "2", "image": "a.png", "conversations": TALK, "dataset": "vqa", "kind": "what"},
        {"id": "3", "image": "grey.png", "conversations": TALK},
        {"id": "4", "conversations": TALK},
    ]
    source = llava_source(write(tmp_path, records), images)
    assert len(source) == 2
    task = source.load(0)
    assert [ask.question for ask in task.asks] == ["what is it?", "and?", "what is it?"]
    assert [ask.reference for ask in task.asks] == ["A box.", "blue", "A box."]
    assert [ask.question_id for ask in task.asks] == ["1-0", "1-1", "2-0"]
    assert [ask.dataset for ask in task.asks] == ["data", "data", "vqa"]
    assert task.asks[2].kind == "what"
    assert source.load(1).rgb.shape == (9, 8, 3)
    assert source.notes() == ["1 text-only records"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not valid JSON: Expecting property name"),
        ({"id": 1}, "must hold a JSON list of records, not a dict"),
        ([7], "record 0 is a int, not an object"),
        ([{"id": "x", "image": "no.png", "conversations": TALK}], r"record 0 \(id x\).*missing"),
        ([{"id": "x", "image": "../secret.png", "conversations": TALK}], "outside the picture"),
        ([{"id": "x", "image": "/etc/passwd", "conversations": TALK}], "outside the picture"),
        ([{"id": "x", "image": 5, "conversations": TALK}], "must be one file name"),
        ([{"id": "x", "image": "a.png"}], "'conversations' must be a non-empty list"),
        ([{"id": "x", "image": "a.png", "conversations": TALK[:1]}], "must alternate"),
        ([{"id": "x", "image": "a.png", "conversations": [{"from": "human"}]}], "line 0"),
        ([{"image": "a.png", "conversations": [{**TALK[0], "value": " "}, TALK[1]]}], "empty q"),
    ],
)  # fmt: skip
def test_bad_files_are_refused(tmp_path: Path, images: Path, content: object, says: str) -> None:
    with pytest.raises(BadRecord, match=says) as caught:
        read_llava(write(tmp_path, content), images)
    assert "\n" not in str(caught.value)


def test_link_out_of_the_folder_is_refused(tmp_path: Path, images: Path) -> None:
    (images / "link.png").symlink_to(tmp_path / "secret.png")
    path = write(tmp_path, [{"id": "x", "image": "link.png", "conversations": TALK}])
    with pytest.raises(BadRecord, match="outside"):
        read_llava(path, images)


def test_bad_records_can_be_counted_instead(tmp_path: Path, images: Path) -> None:
    records = [
        {"id": "1", "image": "no.png", "conversations": TALK},
        {"id": "2", "image": "a.png", "conversations": TALK},
    ]
    read = read_llava(write(tmp_path, records), images, skip_bad=True)
    assert [record.record_id for record in read.records] == ["2"]
    assert len(read.bad) == 1


def test_missing_file_folder_and_pictures(tmp_path: Path, images: Path) -> None:
    with pytest.raises(BadRecord, match="cannot read"):
        read_llava(tmp_path / "no.json", images)
    path = write(tmp_path, [{"id": "1", "conversations": TALK}])
    with pytest.raises(BadRecord, match="picture folder"):
        read_llava(path, tmp_path / "nowhere")
    with pytest.raises(TrainingError, match="no record with a picture"):
        llava_source(path, images)


def test_undecodable_picture_names_its_record(tmp_path: Path, images: Path) -> None:
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    path = write(tmp_path, [{"id": "7b", "image": "broken.png", "conversations": TALK}])
    with pytest.raises(BadRecord, match=r"record 7b: cannot read the picture broken\.png"):
        llava_source(path, images).load(0)
