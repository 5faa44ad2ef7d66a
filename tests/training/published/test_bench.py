"""The published table, picks scored on it and repeats of its questions: hand-worked, by CLI."""

import json
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

from router.actions import uniform_space
from router.records import OracleRecord, split_of, to_table
from training.errors import NotEnoughData, TrainingError
from training.figures.headroom import oracles
from training.oracle.data import read_oracle
from training.published.datasheet import COLLECTED, LICENCES
from training.published.score import score_picks
from training.published.table import (
    COLUMNS,
    TABLE,
    Published,
    read_published,
    unique_names,
)

from .conftest import FOCUS_SPACE, SCALES, record, write_focused, write_oracle


@pytest.fixture
def published(oracle: Path, tmp_path: Path, command) -> Path:
    done = command("m3-train", "bench", "--oracle", oracle, "--out", tmp_path / "table")
    assert done.returncode == 0, done.stderr
    assert "240 questions at 3 scales" in done.stderr
    return tmp_path / "table"


def picks(folder: Path, published: Path, choose, drop: int = 0, **columns: list) -> Path:
    """Write what ``choose`` picks for each test question."""
    test = read_published(published).split("test")
    names = test.question_ids.tolist()[drop:]
    path = folder / "picks.parquet"
    table = {"question_id": names, "scale": [choose(name) for name in names], **columns}
    pq.write_table(pa.table(table), path)
    return path


def test_table_reads_with_pyarrow_alone(published: Path) -> None:
    table = pq.read_table(published / TABLE)
    assert table.column_names == list(COLUMNS)
    assert table.num_rows == 240 * 3
    rows = [r for r in table.to_pylist() if r["question_id"] == "0007-middle"]
    assert [r["scale"] for r in rows] == [1, 9, 36]
    assert [r["exact_match"] for r in rows] == [0.0, 1.0, 1.0]
    assert [r["answer"] for r in rows] == ["y", "x", "x"]
    assert [round(r["p_reference"], 3) for r in rows] == [0.1, 0.5, 0.9]
    assert [r["flops"] for r in rows] == [1.0, 2.0, 4.0]
    assert [r["gpu_ms"] for r in rows] == [1.0, 2.0, 4.0]
    assert {r["split"] for r in rows} == {split_of(f"{7:064x}")}
    assert (rows[0]["clutter"], rows[0]["size_px"], rows[0]["target_share"]) == (3.0, 12.0, None)
    again = [r for r in table.to_pylist() if r["question_id"] == "0007-lost-again1"]
    assert {r["repeat_of"] for r in again} == {"0007-lost"}
    assert table.schema.metadata[b"model_hash"] == b"feed"
    assert [(r["action"], r["coarse"], r["fine"], r["cells"]) for r in rows] == [
        (str(scale), scale, None, []) for scale in SCALES
    ]


def test_datasheet_counts_what_is_there(published: Path) -> None:
    text = (published / "datasheet.md").read_text("utf-8")
    assert "160 questions about 40 pictures, and 80 repeats in other words" in text
    assert "| scenes/lost | 40 | 0.000 | 1.000 | 0.000 |" in text
    assert "| all | 160 | 0.250 | 0.750 | 0.500 |" in text
    for head in ("Motivation", "Composition", "Collection", "Splits", "How to score", "Licence"):
        assert f"## {head}" in text
    card = DatasetCard(text)
    assert card.data.license == "apache-2.0"
    assert card.text.startswith("# A benchmark of visual-token granularity\n\nEvery question")


def test_scores_of_picks_by_hand(published, tmp_path, command) -> None:
    best = {"easy": 1, "middle": 9, "lost": 9, "never": 36}
    path = picks(tmp_path, published, lambda name: best[name.split("-")[1]])
    out = tmp_path / "scores" / "scores.json"
    done = command(
        "m3-train", "bench", "--score", path, "--table", published, "--json", out,
        "--resamples", 200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "these picks │ 0.750 │ 13.8 │ +25.00 pt" in " ".join(done.stdout.split())
    found = json.loads(out.read_text())
    mine = found["picks"]
    assert mine["accuracy"] == 0.75
    assert mine["visual_tokens"] == (1 + 9 + 9 + 36) / 4
    assert mine["gpu_ms"] == (1 + 2 + 2 + 4) / 4
    assert (mine["harm"], mine["rescue"]) == (0.0, 0.25)
    assert mine["difference_from_finest"] == {"mean": 0.25, "low": 0.25, "high": 0.25}
    assert found["finest_accuracy"] == 0.5
    # Always 9 tokens is as right: 13.75 / 9. The type table knows: 1, 9, 9 and 1 tokens.
    ratios = found["token_ratio_at_equal_accuracy"]
    assert ratios["fixed_mixture"]["mean"] == pytest.approx(13.75 / 9)
    assert ratios["type_table"]["mean"] == pytest.approx(13.75 / 5)


def test_bad_picks_are_one_line(published, tmp_path, command) -> None:
    def says(path: Path, table: Path = published) -> str:
        done = command("m3-train", "bench", "--score", path, "--table", table)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        return done.stderr

    assert "picks the scale 7" in says(picks(tmp_path, published, lambda name: 7))
    assert "lacks 2 of" in says(picks(tmp_path, published, lambda name: 1, drop=2))
    assert "cannot read the picks" in says(tmp_path / "none.parquet")
    assert "cannot read the table" in says(tmp_path / "picks.parquet", tmp_path)
    pq.write_table(pa.table({"question_id": ["a"]}), tmp_path / "p.parquet")
    assert "lacks the columns scale" in says(tmp_path / "p.parquet")
    name = str(read_published(published).split("test").question_ids[0])
    pq.write_table(pa.table({"question_id": [name, name], "scale": [1, 9]}), tmp_path / "p.parquet")
    assert "two different picks" in says(tmp_path / "p.parquet")
    for words in (["--oracle", "x"], ["--score", "x"], ["--oracle", "x", "--table", "y"], []):
        done = command("m3-train", "bench", *words)
        assert done.returncode == 2
        assert "give --oracle DIR --out DIR, or --score FILE" in done.stderr


def test_tables_of_before_are_read(published: Path, tmp_path: Path) -> None:
    table = pq.read_table(published / TABLE).drop_columns(["action", "coarse", "fine", "cells"])
    pq.write_table(table.replace_schema_metadata({"format": "1"}), tmp_path / TABLE)
    old, new = read_published(tmp_path), read_published(published)
    assert old.space == new.space == uniform_space(SCALES)
    assert np.array_equal(old.scores, new.scores)
    assert np.array_equal(old.visual_tokens, np.tile(SCALES, (160, 1)))


@pytest.fixture
def focused(tmp_path: Path, command) -> Path:
    """A published table with a focus in it."""
    folder = write_focused(tmp_path / "focused-oracle")
    done = command("m3-train", "bench", "--oracle", folder, "--out", tmp_path / "focused")
    assert done.returncode == 0, done.stderr
    assert "160 questions at 3 scales and 1 foci" in done.stderr
    return tmp_path / "focused"


def test_a_focus_has_rows_and_a_datasheet(focused: Path) -> None:
    rows = [
        row
        for row in pq.read_table(focused / TABLE).to_pylist()
        if row["question_id"] == "0007-middle"
    ]
    assert [row["action"] for row in rows] == list(FOCUS_SPACE.names)
    assert [row["scale"] for row in rows] == [1, None, 9, 36]
    assert [(row["coarse"], row["fine"]) for row in rows] == [
        (1, None), (1, 36), (9, None), (36, None),
    ]  # fmt: skip
    assert [row["cells"] for row in rows] == [[], [4], [], []]
    assert [row["visual_tokens"] for row in rows] == [1, 5, 9, 36]
    assert [row["flops"] for row in rows] == [1.0, 1.5, 2.0, 4.0]
    text = (focused / "datasheet.md").read_text("utf-8")
    assert "| type | n | 1 | 1+36@500x5 | 9 | 36 |" in text
    assert "| scenes/middle | 40 | 0.000 | 1.000 | 1.000 | 1.000 |" in text
    assert "| 1+36@500x5 | 1 | 36 | from 50 % of the peak, at most 5 | 6.0 |" in text
    assert 'picks, on=["question_id", "action"]' in text


def test_scores_of_picked_foci_by_hand(focused: Path, tmp_path: Path, command) -> None:
    best = {"easy": "1", "middle": "1+36@500x5", "lost": "9", "never": "1"}
    test = read_published(focused).split("test")
    names = test.question_ids.tolist()
    chosen = [best[name.split("-")[1]] for name in names]
    path, out = tmp_path / "picks.parquet", tmp_path / "scores.json"
    pq.write_table(pa.table({"question_id": names, "action": chosen}), path)
    words = ["m3-train", "bench", "--score", path, "--table", focused, "--json", out]
    done = command(*words, "--resamples", 100)
    assert done.returncode == 0, done.stderr
    assert "always 1+36@500x5 │ 0.500 │ 6.0" in " ".join(done.stdout.split())
    found = json.loads(out.read_text())
    mine = found["picks"]
    assert (mine["accuracy"], mine["visual_tokens"]) == (0.75, (1 + 5 + 9 + 1) / 4)
    assert mine["flops"] == (1.0 + 1.5 + 2.0 + 1.0) / 4
    assert mine["share_of_scale"] == {"1": 0.5, "1+36@500x5": 0.25, "9": 0.25, "36": 0.0}
    assert [p["scale"] for p in found["fixed"]] == [1, 9, 36]
    [focus] = found["fixed_focus"]
    assert (focus["action"], focus["accuracy"], focus["visual_tokens"]) == (best["middle"], 0.5, 6)
    # The table of types over scales takes 1, 9, 9 and 1; over all actions what these picks take.
    ratios = found["token_ratio_at_equal_accuracy"]
    assert ratios["type_table"]["mean"] == pytest.approx(4 / 5)
    assert ratios["type_table_same_actions"]["mean"] == pytest.approx(1.0)
    # Scales are actions too, and may be picked by number.
    pq.write_table(pa.table({"question_id": names, "scale": [9] * len(names)}), path)
    assert command(*words, "--resamples", 100).returncode == 0
    assert json.loads(out.read_text())["picks"]["visual_tokens"] == 9
    pq.write_table(pa.table({"question_id": names, "action": ["7"] * len(names)}), path)
    done = command(*words)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "picks the action 7; the table has 1, 1+36@500x5, 9, 36" in done.stderr


def test_what_belongs_together_counts_once(tmp_path: Path, command) -> None:
    """40 pictures of 10 documents: split, counted and resampled by document."""
    folder = write_oracle(tmp_path / "o")
    path = folder / "oracle-00000.parquet"
    table = pq.read_table(path)
    pages = [f"document {int(name, 16) // 4}" for name in table["picture_id"].to_pylist()]
    at = table.schema.get_field_index("group_id")
    groups = pa.array(pages, table.schema.field(at).type)
    pq.write_table(table.set_column(at, table.schema.field(at), groups), path)
    assert command("m3-train", "bench", "--oracle", folder, "--out", tmp_path / "t").returncode == 0
    rows = pq.read_table(tmp_path / "t" / TABLE).to_pylist()
    assert all(row["split"] == split_of(row["group_id"]) for row in rows)
    known = read_published(tmp_path / "t")
    assert len(set(known.units.tolist())) == 10
    test = known.split("test")
    best = {"easy": 1, "middle": 9, "lost": 9, "never": 36}
    chosen = picks(tmp_path, tmp_path / "t", lambda name: best[name.split("-")[1]])
    out = tmp_path / "scores.json"
    words = ["m3-train", "bench", "--score", chosen, "--table", tmp_path / "t", "--json", out]
    assert command(*words, "--resamples", 100).returncode == 0
    found = json.loads(out.read_text())
    assert found["n_pictures"] == len(set(test.units.tolist())) == len(test) // 16


def test_intervals_of_copies_are_those_of_one_picture(tmp_path: Path) -> None:
    """Four near copies of each picture tell no more than one of them: the interval stays."""
    table = Published(
        *(np.array([f"{kind}{n}" for n in range(60)]) for kind in ("question", "unit", "group")),
        np.array(["test"] * 60), np.random.default_rng(0).integers(0, 2, (60, 3)).astype(float),
        np.tile(np.array(SCALES, float), (60, 1)), None, None, uniform_space(SCALES),
    )  # fmt: skip
    four = Published(
        *(np.repeat(getattr(table, name), 4, axis=0) for name in
          ("question_ids", "units", "groups", "splits", "scores", "visual_tokens")),
        None, None, table.space,
    )  # fmt: skip
    one, copies = (
        score_picks(each, np.zeros(len(each), dtype=np.intp), resamples=400)["picks"]
        for each in (table, four)
    )
    assert copies["accuracy_interval"] == one["accuracy_interval"]


def test_names_that_two_pictures_share_are_told_apart() -> None:
    keys = [("a" * 64, "1"), ("b" * 64, "1"), ("b" * 64, "2")]
    assert list(unique_names(keys).values()) == ["1@" + "a" * 16, "1@" + "b" * 16, "2"]
    with pytest.raises(TrainingError, match="the same id"):
        unique_names([*keys, keys[0]])


def test_repeats_are_no_questions_but_correct_for_luck(oracle: Path) -> None:
    data = read_oracle([oracle])
    assert len(data) == 160
    assert data.repeats is not None
    assert data.repeats.shape == (160, 1, 3)
    kinds = np.array([name.split("-")[1] for name in data.question_ids])
    assert (data.repeats[kinds == "lost", 0] == [0, 0, 1]).all()
    assert np.isnan(data.repeats[kinds == "middle"]).all()
    assert data.take(kinds == "easy").repeats.shape == (40, 1, 3)
    from training.evaluation.exam import questions_of

    on = questions_of(data, np.array(SCALES) / 36)
    assert np.unique(on.gpu_ms).tolist() == [1.0, 2.0, 4.0]
    found = oracles(on, data.repeats)
    # "easy" is right either way; "lost" was luck: what one wording chooses the other gets wrong.
    assert found["luck_corrected"]["accuracy"] == 0.5
    assert found["luck_corrected"]["visual_tokens"] == (1 + (9 + 36) / 2) / 2
    assert "80 questions" in found["luck_corrected_how"]
    assert oracles(on, None)["luck_corrected"] is None


def test_repeats_alone_are_refused(tmp_path: Path) -> None:
    records = [record("a" * 64, "x", (1, 1, 1), metadata='{"repeat_of": "q"}')]
    folder = write_oracle(tmp_path / "o", pictures=1)
    pq.write_table(to_table(records, OracleRecord), folder / "oracle-00000.parquet")
    with pytest.raises(NotEnoughData, match="repeats of questions only"):
        read_oracle([folder])


def test_a_table_of_damaged_actions_is_refused_in_words(focused: Path, tmp_path: Path) -> None:
    table = pq.read_table(focused / TABLE)
    for damaged in (b"[{", b'[{"name": "1"}]', b"3"):
        facts = {**table.schema.metadata, b"actions": damaged}
        pq.write_table(table.replace_schema_metadata(facts), tmp_path / TABLE)
        with pytest.raises(TrainingError, match="holds damaged actions"):
            read_published(tmp_path)


def test_repeats_are_for_scenes(command, tmp_path) -> None:
    done = command("m3-train", "collect", "--out", tmp_path, "--from-log", tmp_path, "--repeats", 2)
    assert done.returncode == 2
    assert "--repeats needs --scenes" in done.stderr


def test_every_source_has_its_words_in_the_datasheet() -> None:
    """Else `bench` ends in a traceback on data from there."""
    sources = set(get_args(get_type_hints(OracleRecord)["source"]))
    assert sources == set(COLLECTED) == set(LICENCES)
