"""A little task: its data as `datasets` keeps them, and runs of it in lmms-eval's own files.

The files are written here as lmms-eval 0.7.3 writes them (`test_installed.py` asks the real one);
the answers in them come from the tiny model through the same code as in a run.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from training.lmms.conversation import asked_of
from training.lmms.wishes import answerer_of

SCALES = (1, 9, 36, 144, 576)
TASK = "little"
QUESTIONS = ("What is it?", "Which color is the circle?", "How many bars are there?")
OF_NULL = hashlib.sha256(b"null").hexdigest()  # all that lmms-eval 0.7 hashes of a document


@dataclass(frozen=True)
class Task:
    """Folder of data, and what the task shows of each document."""

    data: Path
    pictures: list[Image.Image]
    questions: list[str]
    targets: list[str]


def to_parquet(path: Path, files: list[bytes], more: dict[str, list[Any]]) -> None:
    """Write a split as `Dataset.to_parquet` does, its pictures in the column ``image``."""
    shown = [{"bytes": data, "path": f"{row}.png"} for row, data in enumerate(files)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(shown, kind), **more}), path)


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory, picture_bytes: Callable[..., bytes]) -> Task:
    """Four pictures with three questions each; one is transparent, which the task drops."""
    data = tmp_path_factory.mktemp("task")
    files = [picture_bytes(seed) for seed in range(4)]
    clear, buffer = Image.open(io.BytesIO(files[1])).convert("RGBA"), io.BytesIO()
    clear.putalpha(100)
    clear.save(buffer, "PNG")
    files[1] = buffer.getvalue()
    rows = [file for file in files for _ in QUESTIONS]
    questions, targets = list(QUESTIONS) * len(files), [f"t{n}" for n in range(len(rows))]
    to_parquet(data / "test.parquet", rows, {"question": questions, "answer": targets})
    pictures = [Image.open(io.BytesIO(file)).convert("RGB") for file in rows]
    return Task(data, pictures, questions, targets)


@pytest.fixture(scope="session")
def make_runs(task: Task, tiny_model: Path) -> Callable[..., Path]:
    """Writes one run for each wish (a scale, or other arguments of `answerer_of`) into a folder."""

    def make(folder: Path, *wishes: int | dict[str, str]) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for number, wish in enumerate(wishes):
            given = wish if isinstance(wish, dict) else {"scale": wish}
            answerer = answerer_of(str(tiny_model), **given)
            asked = [
                asked_of(_messages(picture, text), {"max_new_tokens": 6, "until": ["\n\n"]})
                for picture, text in zip(task.pictures, task.questions, strict=True)
            ]
            answered = answerer.answer(asked)
            answerer.close()
            args = ",".join(f"{key}={value}" for key, value in given.items())
            _write(folder, f"2026112{number}_101010", args, answered, task)
        return folder

    return make


@pytest.fixture(scope="session")
def runs(make_runs: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run at each scale. Not to be written to: see `changed`."""
    return make_runs(tmp_path_factory.mktemp("runs"), *SCALES)


def _messages(picture: Image.Image, text: str) -> list[dict[str, Any]]:
    content = [{"type": "image", "url": picture}, {"type": "text", "text": text}]
    return [{"role": "user", "content": content}]


def _write(folder: Path, date: str, args: str, answered: list[Any], task: Task) -> None:
    with (folder / f"{date}_samples_{TASK}.jsonl").open("w", encoding="utf-8") as file:
        for doc_id, each in enumerate(answered):
            # Half are right, whatever a random model says.
            right = float((doc_id + len(each.text)) % 2)
            counts = {"input_tokens": each.prompt_tokens, "output_tokens": each.answer_tokens}
            sample = {
                "doc_id": doc_id, "target": task.targets[doc_id], "filtered_resps": each.text,
                "token_counts": [{**counts, **each.told.to_json()}], "doc_hash": OF_NULL,
                "exact_match": right, "input": task.questions[doc_id],
            }  # fmt: skip
            file.write(json.dumps(sample) + "\n")
    results = {
        "configs": {
            TASK: {"task": TASK, "doc_to_text": f"<function question at {hex(id(answered))}>",
                   "generation_kwargs": {"max_new_tokens": 6, "until": ["\n\n"]}}
        },
        "versions": {TASK: "Yaml"}, "n-shot": {TASK: 0},
        "higher_is_better": {TASK: {"exact_match": True}},
        "config": {"model": "m3", "model_args": args, "limit": None, "offset": 0, "gen_kwargs": ""},
        "model_source": "m3", "system_instruction": None,
    }  # fmt: skip
    (folder / f"{date}_results.json").write_text(json.dumps(results), encoding="utf-8")
