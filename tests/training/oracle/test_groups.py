"""Units of the data: what belongs together is in one split, and nothing changes without groups."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from router.features import feature_schema
from router.records import (
    DecisionRecord,
    OracleRecord,
    look_of,
    picture_id,
    split_of,
    to_table,
)
from training.fitting.calibration_parts import certifying
from training.oracle.data import OracleData, read_oracle, scored_by
from training.scenes import generate_scene
from training.sources.log import log_source

SCALES = (1, 9, 36)
SCHEMA = feature_schema(SCALES, 6, 4)


def record(picture: int, question: int = 0, **changes: object) -> OracleRecord:
    told = {
        "picture_id": f"{picture:064x}", "question_id": f"{picture}-{question}",
        "question": f"what {question}?", "dataset": "d", "reference": "x", "source": "log",
        "scales": SCALES, "answers": ("x", "y", "x"), "scores": (1.0, 0.0, 1.0),
        "p_reference": (0.5,) * 3, "confidence": (0.5,) * 3, "visual_tokens": SCALES,
        "features": (0.0,) * len(SCHEMA.names), "feature_schema": SCHEMA.hash, "model_hash": "m",
    }  # fmt: skip
    return OracleRecord(**told | changes)


def data_of(folder: Path, records: list[OracleRecord]) -> OracleData:
    return read_oracle([written(folder, records)])


def written(folder: Path, records: list[OracleRecord]) -> Path:
    folder.mkdir()
    pq.write_table(to_table(records, OracleRecord), folder / "oracle-00000.parquet")
    manifest = {
        "model_hash": "m", "feature_schema": SCHEMA.hash, "scales": SCALES, "grid_side": 6,
        "embedding_dim": 4, "relevance": SCHEMA.relevance,
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_without_groups_everything_is_as_ever(tmp_path: Path) -> None:
    data = data_of(tmp_path / "a", [record(p, q) for p in range(40) for q in range(2)])
    assert data.units.tolist() == data.picture_ids.tolist()
    assert data.splits.tolist() == [split_of(name) for name in data.picture_ids.tolist()]
    assert data.n_pictures == 40
    assert data.pictures.tolist() == [p for p in range(40) for _ in range(2)]


def test_pages_of_a_document_share_a_split_and_count_once(tmp_path: Path) -> None:
    records = [record(p, group_id=f"d/{p // 10}") for p in range(400)]
    data = data_of(tmp_path / "a", records)
    assert data.n_pictures == 40
    for unit in set(data.units.tolist()):
        assert len(set(data.splits[data.units == unit].tolist())) == 1
    parts = {
        name: set(data.split(name).units.tolist()) for name in ("train", "calibration", "test")
    }
    assert sum(map(len, parts.values())) == 40
    assert min(map(len, parts.values())) > 0
    held = certifying(data)
    assert set(held.units.tolist()) < parts["calibration"]
    assert len(held) == 10 * held.n_pictures  # units go in whole


def test_a_picture_stays_where_its_first_row_put_it(tmp_path: Path) -> None:
    """Also where its question was labelled again, and the later row is the one that counts."""
    old = written(tmp_path / "old", [record(1), record(2, group_id="d/first")])
    new = written(
        tmp_path / "new",
        [record(1, group_id="look:1"), record(1, 1, group_id="look:1"), record(2, group_id="d/x")],
    )
    before, grown = read_oracle([old]), read_oracle([old, new])
    assert (
        dict(zip(before.picture_ids, before.splits, strict=True)).items()
        <= dict(zip(grown.picture_ids, grown.splits, strict=True)).items()
    )
    assert sorted(set(grown.units.tolist())) == sorted({f"{1:064x}", "d/first"})


def test_two_hundred_edits_of_a_logged_picture_are_one_unit(tmp_path: Path) -> None:
    """The experiment that spread one picture over all three splits."""
    random = np.random.default_rng(0)
    picture = np.asarray(generate_scene(5, namespace="collect").image)[:96, :96]
    (tmp_path / "images").mkdir()
    (tmp_path / "decisions").mkdir()
    decisions, ids = [], []
    for number in range(200):
        edited = picture.copy()
        y, x, c = (int(random.integers(n)) for n in picture.shape)
        edited[y, x, c] ^= 1
        ids.append(picture_id(edited))
        Image.fromarray(edited).save(tmp_path / "images" / f"{ids[-1]}.png")
        decisions.append(
            DecisionRecord(
                request_id=str(number),
                time_utc=datetime(2026, 11, 22, tzinfo=UTC),
                picture_ids=(ids[-1],),
                question="what is it?",
                model="m3-auto",
                scale=9,
                visual_tokens=9,
                reason="predicted",
                audited=True,
            )
        )
    pq.write_table(to_table(decisions, DecisionRecord), tmp_path / "decisions" / "d.parquet")
    source = log_source(tmp_path)
    groups = {source.load(index).asks[0].group_id for index in range(len(source))}
    assert groups == {look_of(picture)}
    assert {split_of(name) for name in ids} == {"train", "calibration", "test"}
    rows = [record(0, picture_id=name, group_id=look_of(picture)) for name in ids]
    assert len(set(data_of(tmp_path / "oracle", rows).splits.tolist())) == 1


def test_data_say_how_they_were_scored(tmp_path: Path) -> None:
    data = data_of(
        tmp_path / "a",
        [
            record(1), record(2, reference=None),
            record(3, metric="anls", threshold=0.5, scores=(0.5, 0.4, 0.9)),
            record(4, reference=None, metric="agreement/token_f1", threshold=0.75),
        ],
    )  # fmt: skip
    assert data.metrics.tolist() == ["exact_match", "agreement", "anls", "agreement/token_f1"]
    assert data.thresholds.tolist() == [0.5, 0.5, 0.5, 0.75]
    assert data.right[2].tolist() == [True, False, True]
    assert scored_by(data) == (
        "ANLS or exact match where a reference is known, else agreement with the finest or "
        "agreement with the finest by token F1"
    )
    assert scored_by(data.take(np.array([0]))) == "exact match"
    assert scored_by(data.take(np.array([1]))) == "agreement with the finest"
    both = "exact match where a reference is known, else agreement with the finest"
    assert scored_by(data.take(np.array([0, 1]))) == both
    assert replace(data, scores=data.scores * 0).right.sum() == 0


@pytest.mark.parametrize("rows", [[0, 1], [1]])
def test_parts_keep_what_belongs_to_them(tmp_path: Path, rows: list[int]) -> None:
    data = data_of(tmp_path / "a", [record(1, group_id="g"), record(2, metric="anls")])
    part = data.take(np.array(rows))
    assert part.units.tolist() == data.units[rows].tolist()
    assert part.metrics.tolist() == data.metrics[rows].tolist()
