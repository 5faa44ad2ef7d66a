"""`m3-train retrain` again into the same folder: after growth, damage and an erasure."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from router.log import erase
from router.records import DecisionRecord, picture_id, to_table


def serve(log: Path, numbers: range) -> list[str]:
    """Log a question about each of some pictures; return their identities."""
    rng, decisions, names = np.random.default_rng(numbers.start), [], []
    for folder in ("decisions", "images"):
        (log / folder).mkdir(parents=True, exist_ok=True)
    for number in numbers:
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        names.append(picture_id(pixels))
        Image.fromarray(pixels).save(log / "images" / f"{names[-1]}.png")
        decisions.append(
            DecisionRecord(
                request_id=f"{number}", time_utc=datetime.now(UTC), picture_ids=(names[-1],),
                question=f"what is number {number}?", model="m3-auto", scale=36, visual_tokens=36,
                reason="predicted", audited=True,
            )
        )  # fmt: skip
    path = log / "decisions" / f"{numbers.start}.parquet"
    pq.write_table(to_table(decisions, DecisionRecord), path)
    return names


@pytest.mark.slow
def test_retrain_goes_on_with_a_log_that_has_changed(
    command, tiny_model: Path, tmp_path: Path
) -> None:
    log, oracle = tmp_path / "log", tmp_path / "out" / "oracle"
    words = [
        "retrain", "--from-log", log, "--out", tmp_path / "out", "--model", tiny_model,
        "--registry", tmp_path / "registry", "--workers", 1, "--force",
    ]  # fmt: skip
    first = serve(log, range(60))
    done = command("m3-train", *words)
    assert done.returncode == 0, done.stderr
    assert "60 of 60 pictures labelled now" in done.stderr
    before = {path: path.stat().st_mtime_ns for path in oracle.glob("oracle-*.parquet")}

    more = serve(log, range(60, 66))
    (log / "images" / f"{more[0]}.png").write_bytes(b"no picture")
    (log / "images" / f"{more[1]}.png").unlink()
    (log / "decisions" / "broken.parquet").write_bytes(b"PAR1 nonsense")
    done = command("m3-train", *words)
    assert done.returncode == 2
    said = done.stderr.splitlines()[-1]
    assert f"{more[0]}: cannot read the picture" in said
    assert "--skip-bad" in said
    done = command("m3-train", *words, "--skip-bad")
    assert done.returncode == 0, done.stderr
    assert "left out: 1 records whose picture was not stored" in done.stderr
    assert f"skipped 1 bad pictures, first: {more[0]}: cannot read the picture" in done.stderr
    assert "decisions/broken.parquet" in done.stderr
    assert "of 65 pictures labelled now" in done.stderr
    assert before.items() <= {p: p.stat().st_mtime_ns for p in oracle.iterdir()}.items()

    for name in (first[0], more[0]):
        erase(log, name)
    done = command("m3-train", *words, "--skip-bad")
    assert done.returncode == 0, done.stderr
    assert "0 of 63 pictures labelled now" in done.stderr
    assert "skipped" not in done.stderr
    left = [pq.read_table(path) for path in oracle.glob("oracle-*.parquet")]
    asked = [text for table in left for text in table["question"].to_pylist()]
    assert len(asked) == 63
    assert "what is number 0?" not in asked
    assert not any(
        name.encode() in path.read_bytes()
        for path in oracle.iterdir()
        for name in (first[0], more[0])
    )
