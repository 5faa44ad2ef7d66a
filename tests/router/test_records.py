"""Records through Parquet and back, picture identities, and splits."""

import dataclasses
import hashlib
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from router.records import (
    DecisionRecord,
    FeedbackRecord,
    OracleRecord,
    from_table,
    oracle_arrays,
    picture_id,
    schema_of,
    split_of,
    to_table,
)

NOON = datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC)


def oracle(number: int = 0, **changes: object) -> OracleRecord:
    record = OracleRecord(
        picture_id=hashlib.sha256(str(number // 2).encode()).hexdigest(),
        question_id=f"q{number}",
        question="Which colour is the star?",
        kind="color_of",
        dataset="scenes",
        reference="red" if number % 2 else None,
        source="scenes",
        scales=(1, 9, 36),
        answers=("blue", "red", "red"),
        scores=(0.0, 1.0, 1.0),
        p_reference=(0.125, 0.5, 0.75),
        confidence=(0.5, 0.5, 0.875),
        visual_tokens=(1, 9, 36),
        features=(0.5, -1.25, float(number)),
        feature_schema="0123456789ab",
        model_hash="feed",
        size_px=12.5 if number % 2 else None,
        metadata='{"font": 12}',
    )
    return dataclasses.replace(record, **changes)  # type: ignore[arg-type]


DECISIONS = [
    DecisionRecord(
        request_id="r1",
        time_utc=NOON,
        picture_ids=("a", "b"),
        question="Which?",
        model="m3-auto",
        scale=9,
        visual_tokens=18,
        reason="predicted",
        p_suffices=(0.25, 0.5, 0.75),
        price=0.1,
        router_version="abc",
        answer="red",
        confidence=0.5,
        prompt_tokens=30,
        completion_tokens=2,
        route_ms=0.5,
        encode_ms=20.0,
        total_ms=100.0,
        audited=True,
    ),
    DecisionRecord(
        request_id="r2",
        time_utc=NOON,
        picture_ids=(),
        model="m3-auto",
        scale=0,
        visual_tokens=0,
        reason="no_image",
        status="queue_full",
    ),
]


def through_parquet(table: pa.Table, path: Path) -> pa.Table:
    pq.write_table(table, path)
    return pq.read_table(path)


def test_records_survive_parquet(tmp_path: Path) -> None:
    oracles = [oracle(number) for number in range(5)]
    feedback = [
        FeedbackRecord(request_id="r1", time_utc=NOON, reference="red"),
        FeedbackRecord(request_id="r2", time_utc=NOON, score=0.5),
    ]
    for records, kind in (
        (oracles, OracleRecord),
        (DECISIONS, DecisionRecord),
        (feedback, FeedbackRecord),
    ):
        table = through_parquet(to_table(records, kind), tmp_path / f"{kind.__name__}.parquet")
        assert table.schema.metadata[b"schema_version"] == b"4"
        assert from_table(table, kind) == records
        none = through_parquet(to_table([], kind), tmp_path / "none.parquet")
        assert from_table(none, kind) == []
        assert none.schema.equals(table.schema)


TEXT, FLAG, INT32, FLOAT32, FLOAT64 = (
    pa.string(), pa.bool_(), pa.int32(), pa.float32(), pa.float64(),
)  # fmt: skip
# What version 2 added to both.
ACTIONS = [
    ("actions", pa.list_(TEXT), True),
    ("action_space", TEXT, True),
    ("cells", pa.list_(pa.list_(INT32)), True),
]
# What version 3 added.
LABELLED = [
    ("metric", TEXT, True), ("threshold", FLOAT32, True), ("group_id", TEXT, True),
    ("label_recipe", TEXT, True),
]  # fmt: skip
SERVED = [
    ("constraints", TEXT, True), ("second_look", FLAG, True),
    ("temperature", FLOAT32, True), ("max_tokens", INT32, True), ("messages", TEXT, True),
    ("certificate", TEXT, True), ("arm", TEXT, True), ("group_id", TEXT, True),
    ("label_recipe", TEXT, True),
]  # fmt: skip
# What version 4 added.
SHADOW = [("shadow", TEXT, True)]
# What is on disk since version 4: (column, type, may be null). Derived from nothing.
COLUMNS = {
    OracleRecord: [
        ("picture_id", TEXT, False),
        ("question_id", TEXT, False),
        ("question", TEXT, False),
        ("kind", TEXT, False),
        ("dataset", TEXT, False),
        ("reference", TEXT, True),
        ("source", TEXT, False),
        ("scales", pa.list_(INT32), False),
        ("answers", pa.list_(TEXT), False),
        ("scores", pa.list_(FLOAT32), False),
        ("p_reference", pa.list_(FLOAT32), False),
        ("confidence", pa.list_(FLOAT32), False),
        ("visual_tokens", pa.list_(INT32), False),
        ("features", pa.list_(FLOAT32), False),
        ("feature_schema", TEXT, False),
        ("model_hash", TEXT, False),
        ("size_px", FLOAT32, True),
        ("metadata", TEXT, False),
        *ACTIONS,
        *LABELLED,
    ],
    DecisionRecord: [
        ("request_id", TEXT, False),
        ("time_utc", pa.timestamp("us", tz="UTC"), False),
        ("picture_ids", pa.list_(TEXT), False),
        ("question", TEXT, True),
        ("model", TEXT, False),
        ("scale", INT32, False),
        ("visual_tokens", INT32, False),
        ("reason", TEXT, False),
        ("p_suffices", pa.list_(FLOAT32), True),
        ("price", FLOAT64, True),
        ("router_version", TEXT, False),
        ("answer", TEXT, True),
        ("confidence", FLOAT32, True),
        ("prompt_tokens", INT32, False),
        ("completion_tokens", INT32, False),
        ("route_ms", FLOAT32, False),
        ("encode_ms", FLOAT32, False),
        ("total_ms", FLOAT32, False),
        ("audited", FLAG, False),
        ("status", TEXT, False),
        ("max_harm", FLOAT64, True),
        ("escalated_from", INT32, True),
        ("first_confidence", FLOAT32, True),
        ("tenant", TEXT, True),
        ("scales", pa.list_(INT32), True),
        *ACTIONS,
        *SERVED,
        *SHADOW,
    ],
    FeedbackRecord: [
        ("request_id", TEXT, False),
        ("time_utc", pa.timestamp("us", tz="UTC"), False),
        ("reference", TEXT, True),
        ("score", FLOAT32, True),
        ("tenant", TEXT, True),
    ],
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_the_annotations_give_the_schema_that_is_on_disk(kind: type) -> None:
    expected = pa.schema(
        [pa.field(name, arrow, nullable=nullable) for name, arrow, nullable in COLUMNS[kind]],
        metadata={"schema_version": "4", "record": kind.__name__},
    )
    assert schema_of(kind).equals(expected, check_metadata=True), schema_of(kind)


def test_the_schemas_are_constants_too() -> None:
    from router.records import DECISION_SCHEMA, FEEDBACK_SCHEMA, ORACLE_SCHEMA

    for constant, kind in (
        (ORACLE_SCHEMA, OracleRecord),
        (DECISION_SCHEMA, DecisionRecord),
        (FEEDBACK_SCHEMA, FeedbackRecord),
    ):
        assert constant.equals(schema_of(kind))


def test_features_may_be_an_array() -> None:
    row = np.array([0.5, -1.25, 3.0], dtype=np.float32)
    (back,) = from_table(to_table([oracle(features=row)], OracleRecord), OracleRecord)
    assert back.features == (0.5, -1.25, 3.0)


def test_tables_rewritten_by_other_tools_are_read() -> None:
    table = to_table([oracle(1)], OracleRecord)
    wide = table.schema.get_field_index("question")
    rewritten = (
        table.replace_schema_metadata(None)
        .set_column(wide, "question", table["question"].cast(pa.large_string()))
        .append_column("added_later", pa.array([1]))
    )
    assert from_table(rewritten, OracleRecord) == [oracle(1)]


def test_logs_from_before_a_column_are_read() -> None:
    old = to_table(DECISIONS, DecisionRecord).drop_columns("max_harm")
    assert from_table(old, DecisionRecord) == DECISIONS


def test_tables_of_version_1_are_read_as_scales_alone() -> None:
    for records, kind, newer in (
        ([oracle(1), oracle(2)], OracleRecord, LABELLED),
        (DECISIONS, DecisionRecord, (*SERVED, *SHADOW)),
    ):
        added = [name for name, _, _ in (*ACTIONS, *newer)]
        table = to_table(records, kind).drop_columns(added)
        old = table.replace_schema_metadata({"schema_version": "1"})
        assert from_table(old, kind) == records
        assert all(getattr(row, name) is None for row in from_table(old, kind) for name in added)
    got = oracle_arrays(to_table([oracle(1)], OracleRecord).drop_columns([c[0] for c in ACTIONS]))
    assert (got.actions, got.action_space) == (("1", "9", "36"), None)


FOCUSED = {
    "actions": ("1", "1+36@500x2", "9", "36"),
    "action_space": "feedfacecafe",
    "cells": ((), (3, 7), (), ()),
    "answers": ("blue", "red", "red", "red"),
    "scores": (0.0, 1.0, 1.0, 1.0),
    "p_reference": (0.125, 0.25, 0.5, 0.75),
    "confidence": (0.5, 0.5, 0.5, 0.875),
    "visual_tokens": (1, 9, 9, 36),
}


def test_actions_and_their_cells_survive_parquet(tmp_path: Path) -> None:
    records = [oracle(1, **FOCUSED), oracle(2, **FOCUSED)]
    records[1] = dataclasses.replace(
        records[1], visual_tokens=(1, 5, 9, 36), cells=((), (0,), (), ())
    )
    table = through_parquet(to_table(records, OracleRecord), tmp_path / "oracle.parquet")
    assert from_table(table, OracleRecord) == records
    got = oracle_arrays(table)
    assert (got.actions, got.action_space) == (FOCUSED["actions"], "feedfacecafe")
    assert got.scales == (1, 9, 36)
    assert got.visual_tokens.tolist() == [[1, 9, 9, 36], [1, 5, 9, 36]]
    assert got.scores.shape == (2, 4)
    decision = dataclasses.replace(
        DECISIONS[0], actions=("9", "36"), action_space="feedfacecafe", cells=((), (1, 2))
    )
    back = through_parquet(to_table([decision], DecisionRecord), tmp_path / "log.parquet")
    assert from_table(back, DecisionRecord) == [decision]


def test_tables_that_do_not_fit_are_refused() -> None:
    table = to_table([oracle(1)], OracleRecord)
    with pytest.raises(ValueError, match="lacks the columns scores"):
        from_table(table.drop_columns("scores"), OracleRecord)
    with pytest.raises(ValueError, match="schema version 5; this program reads 1, 2, 3, 4"):
        from_table(table.replace_schema_metadata({"schema_version": "5"}), OracleRecord)
    at = table.schema.get_field_index("scores")
    wrong = table.set_column(at, "scores", pa.array(["high"]))
    with pytest.raises(ValueError, match="does not fit"):
        from_table(wrong, OracleRecord)
    twice = table.append_column("scores", table.column("scores"))
    with pytest.raises(ValueError, match="several columns scores"):
        from_table(twice, OracleRecord)
    with pytest.raises(TypeError, match="not a record type"):
        to_table([], dict)  # type: ignore[type-var]


def test_records_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="answers has 2 entries for 3 actions"):
        oracle(answers=("a", "b"))
    with pytest.raises(ValueError, match="question must not be None"):
        to_table([oracle(question=None)], OracleRecord)
    naive = dataclasses.replace(DECISIONS[0], time_utc=datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="time zone"):
        to_table([naive], DecisionRecord)


def test_oracle_arrays_are_the_records_as_columns() -> None:
    records = [oracle(number) for number in range(6)]
    pieces = [to_table(records[:2], OracleRecord), to_table(records[2:], OracleRecord)]
    got = oracle_arrays(pa.concat_tables(pieces))
    assert got.scales == (1, 9, 36)
    assert got.features.tolist() == [[0.5, -1.25, float(n)] for n in range(6)]
    assert got.features.dtype == np.float32
    assert got.p_reference.tolist() == [[0.125, 0.5, 0.75]] * 6
    assert got.visual_tokens.tolist() == [[1, 9, 36]] * 6
    assert got.feature_schema == "0123456789ab"
    assert got.question_ids.tolist() == [f"q{n}" for n in range(6)]
    assert got.splits.tolist() == [split_of(record.picture_id) for record in records]
    sliced = oracle_arrays(to_table(records, OracleRecord).slice(3))
    assert sliced.features[:, 2].tolist() == [3.0, 4.0, 5.0]


def test_oracle_arrays_refuse_mixtures() -> None:
    def arrays(*records: OracleRecord) -> None:
        oracle_arrays(to_table(records, OracleRecord))

    with pytest.raises(ValueError, match="no rows"):
        arrays()
    with pytest.raises(ValueError, match="different scales"):
        arrays(oracle(), oracle(scales=(1, 9, 144)))
    with pytest.raises(ValueError, match="mixes feature schemas"):
        arrays(oracle(), oracle(feature_schema="other"))
    focused = oracle(**FOCUSED)
    with pytest.raises(ValueError, match="different actions"):
        arrays(focused, oracle(1))
    with pytest.raises(ValueError, match="different actions"):
        arrays(focused, dataclasses.replace(focused, actions=("1", "9", "1+36@500x2", "36")))
    with pytest.raises(ValueError, match="different actions"):
        arrays(oracle(), oracle(actions=("1", "9", "36")))
    with pytest.raises(ValueError, match="different action spaces"):
        arrays(focused, dataclasses.replace(focused, action_space="0123456789ab"))
    with pytest.raises(ValueError, match="features has rows of different lengths"):
        arrays(oracle(), oracle(features=(1.0,)))


def test_picture_id_is_of_pixels_and_shape() -> None:
    rgb = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert picture_id(rgb) == hashlib.sha256(b"3x2" + bytes(range(18))).hexdigest()
    turned = np.ascontiguousarray(rgb.reshape(3, 2, 3))
    assert picture_id(turned) != picture_id(rgb)  # the same bytes, another picture
    assert picture_id(rgb[:, ::-1][:, ::-1]) == picture_id(rgb)  # memory layout is no matter
    for bad in (rgb.astype(np.float32), rgb[..., 0], np.zeros((2, 2, 4), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            picture_id(bad)


def test_split_of_is_half_fifth_and_the_rest_and_never_changes() -> None:
    ids = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(20_000)]
    counts = Counter(map(split_of, ids))
    # 4 standard deviations of a binomial with n = 20,000
    assert counts["train"] == pytest.approx(10_000, abs=283)
    assert counts["calibration"] == pytest.approx(4_000, abs=227)
    assert counts["test"] == pytest.approx(6_000, abs=260)
    assert [split_of(picture) for picture in ids[:8]] == [split_of(p) for p in list(ids[:8])]
    # Fixed for ever: a router fitted yesterday must not be tested on its own pictures tomorrow.
    assert [split_of(f"picture {n}") for n in range(10)] == [
        "train",
        "test",
        "train",
        "calibration",
        "calibration",
        "test",
        "train",
        "train",
        "calibration",
        "calibration",
    ]
