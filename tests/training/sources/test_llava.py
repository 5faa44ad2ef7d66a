"""Reading LLaVA-format files: what is taken, what is refused, and with which sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from router.records import look_of
from training.errors import BadRecord, TrainingError
from training.sources.llava import llava_source, read_llava
from training.sources.tasks import Ask

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
        {"id": "4", "conversations": more},
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
        ([{"conversations": TALK}], "an <image> mark without a picture"),
        ([{"image": "a.png", "conversations": [*TALK, *TALK]}], "2 <image> marks for one picture"),
        ([{"image": ["a.png", "a.png"], "conversations": TALK}], "2 pictures; one question"),
        ([{"images": ["a.png"], "conversations": TALK[1:]}], "'images' is not read"),
        ([{"image": "a.png", "conversations": [{"from": "system", "value": "Be brief."}, *TALK]}],
         "line 0 of 'conversations' is a system line"),
        ([{"image": "a.png", "conversations": [TALK[0], {"from": "gpt", "value": 3}]}],
         "line 1 of 'conversations': 'value' is 3, not text"),
        ([{"image": "a.png", "conversations": [TALK[0], {"from": "gpt", "value": ["a", 3]}]}],
         "'value' is .'a', 3., not text or a list of texts"),
        ([{"image": "a.png", "conversations": [{"from": "bird", "value": "tweet"}, *TALK]}],
         "line 0 of 'conversations' is from 'bird'"),
        ([{"image": "a.png", "conversations": TALK, "group": [1]}], "'group' must be text"),
        ([{"image": "a.png", "conversations": TALK, "metric": 7}], "'metric' must be a name"),
        ('{"id": "1"}\n{"id": "2"}\n', "looks like JSON Lines: make it one list"),
        ("[" * 100_000, "nested too deeply"),
        ([{"image": "a.png", "conversations": [{**TALK[0], "value": " "}, TALK[1]]}], "empty q"),
    ],
)  # fmt: skip
def test_bad_files_are_refused(tmp_path: Path, images: Path, content: object, says: str) -> None:
    with pytest.raises(BadRecord, match=says) as caught:
        read_llava(write(tmp_path, content), images)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path, images: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"image": "a.png", "conversations": TALK}]), "utf-8-sig")
    assert len(read_llava(path, images).with_picture) == 1


def test_a_list_of_one_picture_is_one_picture(tmp_path: Path, images: Path) -> None:
    path = write(tmp_path, [{"image": ["a.png"], "conversations": TALK}])
    assert read_llava(path, images).with_picture[0].image == (images / "a.png").resolve()


def test_all_that_people_answered_is_kept(tmp_path: Path, images: Path) -> None:
    said = ["a crate", "box", "box", "a crate", "cube"]
    talk = [TALK[0], {"from": "gpt", "value": said}]
    records = [
        {"id": "1", "image": "a.png", "conversations": talk, "metric": "vqa", "group": 7},
        {"id": "2", "image": "grey.png", "conversations": TALK},
    ]
    source = llava_source(write(tmp_path, records), images, metric="token_f1")
    (first,), (second,) = source.load(0).asks, source.load(1).asks
    assert first.references == tuple(said)
    assert first.reference == "a crate"  # the first of the two commonest
    assert (first.metric, first.group_id) == ("vqa", "data/7")
    assert (second.metric, second.references) == ("token_f1", ("A box.",))
    assert second.group_id == look_of(source.load(1).rgb)


@pytest.mark.parametrize(
    ("metric", "says"),
    [("vqa", "here is 1"), ("choice", "options in the question"), ("bleu", "unknown metric")],
)
def test_what_cannot_be_scored_is_a_bad_record(
    tmp_path: Path, images: Path, metric: str, says: str
) -> None:
    records = [
        {"id": "1", "image": "a.png", "conversations": TALK, "metric": metric},
        {"id": "2", "image": "grey.png", "conversations": TALK},
    ]
    path = write(tmp_path, records)
    with pytest.raises(BadRecord, match=f"record 1: .*{says}"):
        llava_source(path, images)
    source = llava_source(path, images, skip_bad=True)
    assert len(source) == 1
    assert source.notes()[0].startswith("1 bad records: record 1")
    with pytest.raises(TrainingError, match=says):
        llava_source(write(tmp_path, records[1:]), images, metric=metric)


def test_agreement_leaves_the_references_out(tmp_path: Path, images: Path) -> None:
    talk = [TALK[0], {"from": "gpt", "value": ["box", "crate"]}]
    records = [
        {"id": "1", "image": "a.png", "conversations": talk},
        {"id": "2", "image": "a.png", "conversations": TALK, "metric": "exact_match"},
    ]
    first, second = llava_source(write(tmp_path, records), images, metric="agreement").load(0).asks
    assert (first.reference, first.references, first.metric) == (None, (), None)
    assert second.reference == "A box."


def test_a_picture_is_of_one_group(tmp_path: Path, images: Path) -> None:
    records = [
        {"id": "1", "image": "a.png", "conversations": TALK, "group": "x"},
        {"id": "2", "image": "a.png", "conversations": TALK, "group": "y"},
    ]
    with pytest.raises(BadRecord, match="record 2: its picture is of the group data/x, not data/y"):
        llava_source(write(tmp_path, records), images)
    del records[0]["group"]  # one record tells it for all of the picture
    source = llava_source(write(tmp_path, records), images)
    assert [ask.group_id for ask in source.load(0).asks] == ["data/y", "data/y"]


def test_options_are_moved_in_repeats(tmp_path: Path, images: Path) -> None:
    asked = "<image>\nWhich?\nA. cat\nB. dog\nC. cow"
    talk = [{"from": "human", "value": asked}, {"from": "gpt", "value": "B"}]
    path = write(tmp_path, [{"id": "1", "image": "a.png", "conversations": talk}])
    source = llava_source(path, images, metric="choice", repeats=9)
    first, *again = source.load(0).asks  # never more orders than options
    assert [(a.question_id, a.metadata) for a in again] == [
        ("1-0-moved-1", {"repeat_of": "1-0"}), ("1-0-moved-2", {"repeat_of": "1-0"}),
    ]  # fmt: skip
    assert again[0].question == "Which?\nA. cow\nB. cat\nC. dog"
    assert [ask.reference for ask in (first, *again)] == ["B", "C", "A"]
    with pytest.raises(TrainingError, match="--metric choice"):
        llava_source(path, images, repeats=2)
    with pytest.raises(TrainingError, match="at least 1, got 0"):
        llava_source(path, images, metric="choice", repeats=0)


def test_asks_of_before_keep_their_content() -> None:
    """Folders that were begun before metrics and groups go on."""
    assert not {"metric", "group_id", "references"} & set(Ask("what?", "a box").content())
    assert Ask("what?", "a box", metric="anls").content()["metric"] == "anls"


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


def test_bad_records_are_named_where_nothing_is_left(tmp_path: Path, images: Path) -> None:
    records = [{"id": str(n), "conversations": TALK} for n in range(7)]
    with pytest.raises(TrainingError, match=r"7 bad records: record 0 .*record 4 .*\.\.\.$"):
        llava_source(write(tmp_path, records), images, skip_bad=True)


def test_missing_file_folder_and_pictures(tmp_path: Path, images: Path) -> None:
    with pytest.raises(BadRecord, match="cannot read"):
        read_llava(tmp_path / "no.json", images)
    path = write(tmp_path, [{"id": "1", "conversations": [{**TALK[0], "value": "why?"}, TALK[1]]}])
    with pytest.raises(BadRecord, match="picture folder"):
        read_llava(path, tmp_path / "nowhere")
    with pytest.raises(TrainingError, match="no record with a picture"):
        llava_source(path, images)


def test_undecodable_picture_names_its_record(tmp_path: Path, images: Path) -> None:
    (images / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    path = write(tmp_path, [{"id": "7b", "image": "broken.png", "conversations": TALK}])
    with pytest.raises(BadRecord, match=r"record 7b: cannot read the picture broken\.png"):
        llava_source(path, images).load(0)
