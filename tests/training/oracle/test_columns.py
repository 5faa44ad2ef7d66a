"""Oracle data that do not lie in memory: the same rows, names and metadata as data that do."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.predictor.matrix import blocks, in_memory
from router.records import OracleRecord, to_table
from training.errors import MixedData, TrainingError
from training.fitting.fit import fit
from training.oracle.columns.features import Collecting, Features
from training.oracle.columns.names import Coding, Facts, Names, numbered
from training.oracle.columns.shards import columns_of
from training.oracle.data import OracleData, read_oracle
from training.oracle.questions import last_of

from .test_groups import SCHEMA, record, written

ROWS = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)


def in_a_file(rows: np.ndarray = ROWS) -> Features:
    collecting = Collecting(len(rows), rows.shape[1], in_memory=0)
    for start in range(0, len(rows), 7):
        collecting.add(rows[start : start + 7])
    made = collecting.done()
    assert isinstance(made, Features)
    return made


@given(rows=st.lists(st.integers(0, 29)), columns=st.lists(st.integers(0, 4), min_size=1))
def test_chosen_rows_and_columns_are_those_of_the_array(rows: list, columns: list) -> None:
    made, chosen = in_a_file(), np.array(rows, np.intp)
    assert (in_memory(made[chosen]) == ROWS[chosen]).all()
    assert (in_memory(made[:, columns]) == ROWS[:, columns]).all()
    assert (in_memory(made[:, columns][chosen]) == ROWS[chosen][:, columns]).all()
    assert made[chosen].shape == (len(rows), 5)


def test_slices_are_read_and_masks_choose() -> None:
    made = in_a_file()
    assert (made[3:9] == ROWS[3:9]).all()
    assert (made[28:40] == ROWS[28:]).all()
    assert (made[11] == ROWS[11]).all()
    mask = ROWS[:, 0] > 0
    assert (in_memory(made[mask]) == ROWS[mask]).all()
    assert len(made) == 30
    assert [len(block) for block in blocks(made)] == [30]


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full").open("wb", buffering=0)  # noqa: SIM115
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: full)
    with pytest.raises(TrainingError, match=r"no room for 0\.0 GB .*No space left.*TMPDIR"):
        Collecting(30, 5, in_memory=0).add(ROWS)


@given(st.lists(st.text(max_size=3)))
def test_names_are_numbered_as_numpy_does(texts: list[str]) -> None:
    texts = [text.rstrip("\0") for text in texts]  # numpy cannot hold them
    coding = Coding()
    coding.add(texts)
    made, plain = coding.done(), np.array(texts, np.str_)
    assert made.tolist() == texts
    names, numbers = numbered(made)
    assert names.tolist() == np.unique(plain).tolist()
    assert numbers.tolist() == np.unique(plain, return_inverse=True)[1].tolist()
    some = np.arange(0, len(texts), 2)
    assert numbered(made[some])[0].tolist() == np.unique(plain[some]).tolist()
    assert (made == "a").tolist() == [text == "a" for text in texts]


def test_metadata_are_parsed_where_they_are_looked_at() -> None:
    texts = [json.dumps({"asked": "7"}), "{}", "", json.dumps({"said": '"asked"'})]
    facts = Facts(pa.chunked_array([texts[:2], texts[2:]]), np.arange(4))
    assert list(facts) == [{"asked": "7"}, {}, {}, {"said": '"asked"'}]
    assert facts.telling("asked") == {0: "7"}
    assert facts[np.array([3, 0])].telling("asked") == {1: "7"}
    assert facts[1] == {}


def test_the_last_of_equal_rows_stays() -> None:
    pictures, questions = np.array([1, 1, 2, 1, 2]), np.array([5, 6, 5, 5, 5])
    assert last_of(pictures, questions).tolist() == [1, 3, 4]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two folders: a question labelled twice, one in another conversation, repeats, groups."""
    random = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("oracle")

    def one(picture: int, question: int, **changes: object) -> OracleRecord:
        features = random.normal(size=len(SCHEMA.names)).astype(np.float32)
        scores = tuple((random.random(3) < (0.3, 0.6, 0.9)).astype(float))
        return record(
            picture, question, **{"features": features, "scores": scores, "size_px": 3.0} | changes
        )

    first = [one(p, q, group_id=f"d/{p // 2}") for p in range(200) for q in range(2)]
    again = one(4, 0, metadata=json.dumps({"repeat_of": "4-0"}))
    again = replace(again, question="in other words?", question_id="4-again")
    other = one(5, 1, metadata=json.dumps({"asked": "before"}))
    second = [one(3, 1), again, other, *(one(p, 0, reference=None) for p in range(200, 240))]
    return [written(folder / "a", first), written(folder / "b", second)]


def test_data_in_a_file_are_the_data_in_memory(shards: list[Path]) -> None:
    here, there = read_oracle(shards), read_oracle(shards, in_memory=0)
    assert isinstance(here.features, np.ndarray)
    assert isinstance(there.features, Features)
    assert len(here) == len(there) == 400 + 1 + 40  # labelled again, and in other words: no more
    same_parts(here, there)
    for name in ("train", "calibration", "test"):
        same_parts(here.split(name), there.split(name))


def same_parts(here: OracleData, there: OracleData) -> None:
    assert (in_memory(there.features) == here.features).all()
    for name in (
        "picture_ids", "units", "question_ids", "groups", "scores", "soft", "confidence",
        "has_reference", "metrics", "thresholds", "size_px", "visual_tokens", "pictures", "splits",
    ):  # fmt: skip
        assert np.array_equal(getattr(here, name), getattr(there, name)), name
    assert list(here.metadata) == list(there.metadata)
    assert here.n_pictures == there.n_pictures == len(set(here.units.tolist()))
    assert np.array_equal(here.repeats, there.repeats, equal_nan=True)


def test_one_router_comes_of_both(shards: list[Path]) -> None:
    made = [fit(read_oracle(shards, in_memory=n), target=0.9) for n in (0, 2**40)]
    first, second = (each.router for each in made)
    assert first.predictor_hash == second.predictor_hash
    assert first.policy == second.policy
    assert made[0].metrics == made[1].metrics


def test_a_row_of_another_width_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", [record(0, features=(0.0,) * 3)])
    with pytest.raises(MixedData, match="rows of 3 features where"):
        read_oracle([folder])


def test_shards_are_read_in_batches_whatever_their_size(tmp_path: Path) -> None:
    rows = [record(p, features=(float(p),) * len(SCHEMA.names)) for p in range(5000)]
    path = tmp_path / "oracle-00000.parquet"
    pq.write_table(to_table(rows, OracleRecord), path)
    found = columns_of([path], len(SCHEMA.names))
    assert found is not None
    assert in_memory(found.features)[:, 0].tolist() == list(range(5000))
    assert isinstance(found.pictures, Names)
    assert columns_of([], 3) is None
