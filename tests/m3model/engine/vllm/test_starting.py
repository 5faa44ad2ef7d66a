"""What keeps vLLM from starting is said in one line; what runs over there needs nothing of ours."""

from __future__ import annotations

import ast
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import m3model.engine.vllm
from m3model import M3Config, M3ForConditionalGeneration, M3Processor
from m3model.engine.passes.forward import end_ids
from m3model.engine.vllm.engine import VllmEngine, _arguments
from m3model.engine.vllm.folder import end_ids_of, stock_folder
from m3model.engine.vllm.m3_vllm.wire import DTYPES, HEAD, packed, unpacked
from m3model.errors import EngineUnavailable

THERE = Path(m3model.engine.vllm.__file__).parent / "m3_vllm"
OVER_THERE = {"torch", "vllm"}


def start(folder: Path, python: Path, **options: Any) -> VllmEngine:
    given = {"device": "cpu", "dtype": "float32"} | options
    return VllmEngine(folder, M3Processor.from_pretrained(folder), python=python, **given)


def test_there_only_torch_and_vllm_are_imported() -> None:
    for path in THERE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names.append(str(node.module))
            roots = {name.split(".")[0] for name in names}
            assert roots <= OVER_THERE | sys.stdlib_module_names, path.name


def test_an_environment_without_vllm(folder: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"has no vLLM: .* -m pip install vllm"):
        start(folder, Path(sys.executable))


def test_no_python(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineUnavailable, match="cannot be run"):
        start(folder, tmp_path / "python")


def test_a_process_that_ends_before_it_is_ready(folder: Path) -> None:
    with pytest.raises(EngineUnavailable, match="ended with code 1"):
        start(folder, Path("/bin/false"))


def test_options_are_vllms_and_not_already_ours(folder: Path, vllm_python: Path) -> None:
    with pytest.raises(EngineUnavailable, match=r"set already: dtype, model$"):
        start(folder, vllm_python, options={"dtype": "half", "model": "x", "seed": 1})
    with pytest.raises(EngineUnavailable, match=r"does not start: TypeError: .*colour"):
        start(folder, vllm_python, options={"colour": 1})


def test_another_device_is_refused_before_anything_is_loaded(
    folder: Path, vllm_python: Path
) -> None:
    with pytest.raises(EngineUnavailable, match="computes on 'cpu', not on 'cuda'"):
        start(folder, vllm_python, device="cuda", dtype="bfloat16")


KILLED = """
import os, sys
from pathlib import Path
from m3model import M3Processor
from m3model.engine.vllm.engine import VllmEngine

folder = Path(sys.argv[1])
engine = VllmEngine(
    folder, M3Processor.from_pretrained(folder), python=Path(sys.argv[2]), device="cpu",
    dtype="float32", kv_tokens=4096,
)
print(engine._process._process.pid, engine._process._folder, flush=True)
os.kill(os.getpid(), 9)
"""


def test_it_does_not_outlive_whoever_started_it(
    folder: Path, vllm_python: Path, python: Callable[..., Any]
) -> None:
    said = python("-c", KILLED, folder, vllm_python)
    assert said.returncode == -9
    pid, left = said.stdout.split()
    for _ in range(3000):
        try:
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                break  # nobody may be there to collect it
        except FileNotFoundError:
            break
        time.sleep(0.01)
    else:
        raise AssertionError("it lives")
    shutil.rmtree(left)


def test_weights_that_vllm_cannot_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("config.json", "relevance.safetensors"):
        os.link(folder / name, tmp_path / "model" / name)
    with pytest.raises(EngineUnavailable, match=r"model\*.safetensors"):
        stock_folder(tmp_path / "model", tmp_path / "stock")


def test_a_stock_folder_links(folder: Path, tmp_path: Path) -> None:
    """A readout beside the weights is no part of them, and vLLM reads all safetensors it sees."""
    stock = stock_folder(folder, tmp_path / "stock")
    assert (stock / "model.safetensors").resolve() == (folder / "model.safetensors").resolve()
    assert [path.name for path in stock.glob("*.safetensors")] == ["model.safetensors"]
    assert json.loads((stock / "config.json").read_text())["model_type"] == "llava"
    assert (stock / "tokenizer.json").is_file()


@pytest.mark.parametrize("told", [2, [2, 7], None])
def test_ends_are_those_of_the_loaded_model(
    folder: Path, tmp_path: Path, told: int | list[int] | None
) -> None:
    copy = tmp_path / "model"
    copy.mkdir()
    for path in folder.iterdir():
        os.link(path, copy / path.name)
    (copy / "generation_config.json").unlink()
    if told is not None:
        (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": told}))
    model = M3ForConditionalGeneration.from_pretrained(copy)
    assert end_ids_of(copy, M3Config.from_pretrained(copy)) == end_ids(model)


def test_a_cache_in_tokens_becomes_bytes(folder: Path) -> None:
    """2 layers, 4 heads of 16, keys and values, 4 bytes each: 1,024 bytes a token."""
    config = M3Config.from_pretrained(folder)
    told = _arguments(config, "float32", 4, 1000)
    assert told["max_model_len"] == 1008  # whole pages, as the encoder's half reckons
    assert told["kv_cache_memory_bytes"] == (1008 + 256) * 1024
    assert "kv_cache_memory_bytes" not in _arguments(config, "float32", 4, None)


@given(
    shapes=st.lists(st.tuples(st.integers(1, 5), st.just(3)), max_size=4),
    dtype=st.sampled_from(sorted(DTYPES)),
    text=st.text(),
)
def test_messages_arrive(shapes: list[tuple[int, int]], dtype: str, text: str) -> None:
    pictures = [torch.randn(shape).to(DTYPES[dtype]) for shape in shapes]
    sent = b"".join(packed({"a": text}, pictures))
    n_text, n_body = HEAD.unpack(sent[: HEAD.size])
    rest = sent[HEAD.size :]
    assert len(rest) == n_text + n_body
    said, got = unpacked(rest[:n_text], bytearray(rest[n_text:]))
    assert said == {"a": text}
    assert len(got) == len(pictures)
    assert all(torch.equal(a, b) for a, b in zip(pictures, got, strict=True))


def test_a_message_that_lies_about_its_pictures_is_refused() -> None:
    _, text, body = packed({}, [torch.zeros(2, 3)])
    with pytest.raises(ValueError, match="another number"):
        unpacked(bytes(text), bytearray(body)[:-4])
