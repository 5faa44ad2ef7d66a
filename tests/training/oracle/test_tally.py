"""What collect tells at its end: accuracy by action, and what to try where nothing matched."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from router.records import OracleRecord, to_table
from training.oracle.tally import tally_of

SCALES = (1, 9)


def write(folder: Path, *rows: dict[str, object]) -> Path:
    told = {
        "picture_id": "p", "question_id": "q", "question": "what?", "dataset": "d",
        "source": "llava", "scales": SCALES, "p_reference": (0.5, 0.5), "confidence": (0.5, 0.5),
        "visual_tokens": SCALES, "features": (0.0,), "feature_schema": "f", "model_hash": "m",
    }  # fmt: skip
    for number, row in enumerate(rows):
        record = OracleRecord(**told | row)
        pq.write_table(to_table([record], OracleRecord), folder / f"oracle-{number:05d}.parquet")
    return folder


def test_known_and_unknown_answers_are_told_apart(tmp_path: Path) -> None:
    found = tally_of(
        write(
            tmp_path,
            {"reference": "a", "answers": ("a", "b"), "scores": (1.0, 0.0)},
            {"reference": "a", "answers": ("b", "a"), "scores": (0.0, 1.0)},
            {"reference": "a", "answers": ("b", "a"), "scores": (0.0, 1.0)},
            {"answers": ("c", "d"), "scores": (0.0, 1.0), "metric": "agreement"},
        )
    )
    assert found is not None
    assert found.actions == ("1", "9")
    assert found.right == pytest.approx((1 / 3, 2 / 3))
    assert (found.known, found.unknown) == (3, 1)
    assert found.agrees == (0.0, 1.0)
    assert found.hint() is None


def test_sentences_that_never_match_show_what_other_metrics_make_of_them(tmp_path: Path) -> None:
    sentence = "one can see a red box here"
    found = tally_of(
        write(
            tmp_path,
            {"reference": sentence, "answers": ("box", "red box"), "scores": (0.0, 0.0)},
            {"reference": sentence, "answers": ("box", "cat"), "scores": (0.0, 0.0)},
        )
    )
    assert found is not None
    # Two of two words, and two of six: F1 = 4 / 8 of the first, none of the second.
    assert found.tried == {"anls": 0.0, "relaxed": 0.0, "token_f1": 0.25}
    hint = found.hint()
    assert hint is not None
    assert "on 2 questions (the first says 'red box', wanted 'one can see" in hint
    assert hint.endswith("by another --metric: token_f1 0.25")


def test_nothing_to_find_is_said_too(tmp_path: Path) -> None:
    row = {"reference": "dog", "answers": ("x", "y"), "scores": (0.0, 0.0)}
    found = tally_of(write(tmp_path, row))
    assert found is not None
    assert "no other --metric" in str(found.hint())


def test_agreement_alone_needs_no_hint(tmp_path: Path) -> None:
    found = tally_of(write(tmp_path, {"answers": ("x", "y"), "scores": (0.0, 0.0)}))
    assert found is not None
    assert found.right is None
    assert found.hint() is None


def test_an_empty_folder_has_none(tmp_path: Path) -> None:
    assert tally_of(tmp_path) is None
