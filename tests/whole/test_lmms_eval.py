"""The installed lmms-eval runs a task of its own kind with `--model m3`, and its runs come back.

lmms-eval is heavy and brings much that this package does not need, so it is asked in an environment
of its own, named by M3_LMMS_EVAL_PYTHON: a Python in which both are installed. Without one there is
nothing to ask.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from router.records import OracleRecord, from_table

PYTHON = os.environ.get("M3_LMMS_EVAL_PYTHON", "")
SCALES = (1, 9, 36, 144, 576)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not PYTHON, reason="M3_LMMS_EVAL_PYTHON names no Python with lmms-eval and m3-router"
    ),
]
YAML = """
task: m3_little
dataset_path: parquet
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: generate_until
doc_to_visual: !function shown.pictures
doc_to_text: !function shown.question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 6}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
"""
SHOWN = """
def pictures(doc):
    return [doc["image"].convert("RGB")]

def question(doc, *_):
    return doc["question"]
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: Any, picture_bytes: Any) -> Path:
    """A folder with the task, its data, and what lmms-eval keeps."""
    folder = tmp_path_factory.mktemp("lmms")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    questions = ["What is it?", "Which color?"]
    shown = [{"bytes": picture_bytes(seed), "path": None} for seed in range(3) for _ in questions]
    table = pa.table(
        {"image": pa.array(shown, kind), "question": questions * 3, "answer": ["star"] * 6}
    )
    text = {"dtype": "string", "_type": "Value"}
    told = {"info": {"features": {"image": {"_type": "Image"}, "question": text, "answer": text}}}
    (folder / "data").mkdir()
    pq.write_table(
        table.replace_schema_metadata({"huggingface": json.dumps(told)}),
        folder / "data" / "test.parquet",
    )
    (folder / "little.yaml").write_text(YAML.format(data=folder / "data" / "test.parquet"))
    (folder / "shown.py").write_text(SHOWN)
    return folder


def lmms_eval(task: Path, arguments: str, *more: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(task / "home"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [PYTHON, "-m", "lmms_eval", "--model", "m3", "--model_args", arguments, "--tasks",
         "m3_little", "--include_path", str(task), "--batch_size", "4", "--log_samples",
         "--output_path", str(task / "runs"), *more],
        env=kept | offline, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def samples(task: Path) -> dict[str, list[dict[str, Any]]]:
    """The samples of every run so far, by what it was run at."""
    found = {}
    for path in sorted((task / "runs").rglob("*_samples_*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found[rows[0]["token_counts"][0]["m3"]["wish"]] = rows
    return found


@pytest.fixture(scope="module")
def ran(task: Path, tiny_model: Path, make_focus_router: Any) -> dict[str, list[dict[str, Any]]]:
    """Runs at every scale, at a focus, and routed."""
    make_focus_router(task / "router", "9+144@500x12")
    wishes = [*(f"scale={scale}" for scale in SCALES), "focus=36+144@350wx12"]
    wishes.append(f"scale=auto,router={task / 'router'}")
    for wish in wishes:
        done = lmms_eval(task, f"{wish},pretrained={tiny_model}")
        assert done.returncode == 0, done.stderr[-3000:]
    return samples(task)


def test_its_list_has_the_model() -> None:
    code = (
        "from importlib.metadata import version; print(version('lmms-eval'))\n"
        "from lmms_eval.models import list_available_models, get_model\n"
        "assert 'm3' in list_available_models()\n"
        "print(get_model('m3').__module__)"
    )
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "training.lmms.model"


def test_it_runs_a_task_at_every_scale_at_a_focus_and_routed(ran: Any) -> None:
    assert set(ran) == {*map(str, SCALES), "36+144@350wx12", "auto"}
    for wish, rows in ran.items():
        assert [row["doc_id"] for row in rows] == list(range(6))
        for row in rows:
            (counts,) = row["token_counts"]
            assert counts["input_tokens"] > counts["visual_tokens"]
            assert 1 <= counts["output_tokens"] <= 6
            if wish.isdecimal():
                assert counts["visual_tokens"] == int(wish)
        pictures = Counter(row["token_counts"][0]["m3"]["picture_ids"][0] for row in rows)
        assert sorted(pictures.values()) == [2, 2, 2]
    routed = {counts["visual_tokens"] for row in ran["auto"] for counts in row["token_counts"]}
    assert routed - set(SCALES)  # a focus was read


def test_its_runs_become_oracle_data(
    ran: Any, task: Path, tiny_model: Path, tmp_path: Path, command: Any
) -> None:
    done = command(
        "m3-train", "import-lmms-eval", task / "runs", "--data", task / "data", "--model",
        tiny_model, "--out", tmp_path / "oracle",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "left out" in done.stderr  # the runs at a focus and routed
    rows = from_table(pq.read_table(tmp_path / "oracle" / "oracle-00000.parquet"), OracleRecord)
    assert len(rows) == 6
    for row in rows:
        doc = int(row.question_id.rpartition("-")[2])
        for at, scale in enumerate(SCALES):
            sample = ran[str(scale)][doc]
            assert row.answers[at] == sample["filtered_resps"]
            assert row.scores[at] == pytest.approx(sample["exact_match"])
        assert row.picture_id == ran["9"][doc]["token_counts"][0]["m3"]["picture_ids"][0]
        assert np.isfinite(row.features).all()


def test_it_says_why_a_task_cannot_be_run(task: Path, tiny_model: Path) -> None:
    done = lmms_eval(task, f"scale=100,pretrained={tiny_model}")
    assert "no scale 100: this model has 1, 9, 36, 144, 576, and auto" in done.stdout + done.stderr
    done = lmms_eval(task, f"scale=9,pretrained={tiny_model}", "--gen_kwargs", "num_beams=3")
    assert "cannot honour the task's num_beams=3" in done.stdout + done.stderr
    assert len(samples(task)) <= 7
