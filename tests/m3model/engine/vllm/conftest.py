"""An engine over a stand-in for vLLM, in a real process behind the real socket."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from m3model import LocalEngine, M3ForConditionalGeneration, M3Processor
from m3model.engine.vllm.engine import VllmEngine

KV_TOKENS = 4096


@pytest.fixture(scope="module")
def endless(folder: Path) -> Path:
    """The model folder without its end token, so that answers run until someone stops them."""
    for name in ("config.json", "generation_config.json"):
        said = json.loads((folder / name).read_text())
        said.get("text_config", said)["eos_token_id"] = None
        (folder / name).write_text(json.dumps(said))
    return folder


Start = Callable[..., VllmEngine]


@pytest.fixture(scope="module")
def stand_in_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "steps.jsonl"


@pytest.fixture(scope="module")
def start_stand_in(
    endless: Path, processor: M3Processor, vllm_python: Path, stand_in_log: Path
) -> Iterator[Start]:
    engines: list[VllmEngine] = []

    def make(**options: Any) -> VllmEngine:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(os.environ, "M3_STAND_IN_LOG", str(stand_in_log))
            given = {"python": vllm_python, "device": "cpu", "dtype": "float32",
                     "kv_tokens": KV_TOKENS}  # fmt: skip
            engines.append(VllmEngine(endless, processor, **(given | options)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def vllm(start_stand_in: Start) -> VllmEngine:
    return start_stand_in()


@pytest.fixture(scope="module")
def own(endless: Path, processor: M3Processor) -> Iterator[LocalEngine]:
    """Our own engine of the same folder, which says what is right."""
    model = M3ForConditionalGeneration.from_pretrained(endless)
    engine = LocalEngine(model, processor, kv_tokens=KV_TOKENS)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def grid() -> torch.Tensor:
    return torch.randn(576, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def prompt(processor: M3Processor) -> list[int]:
    content = [{"type": "image"}, {"type": "text", "text": "what color is the star?"}]
    return processor.prompt_ids([{"role": "user", "content": content}])


@pytest.fixture
def steps(stand_in_log: Path) -> Callable[[str], list[Any]]:
    """What the stand-in has done since the test began, of one kind."""
    before = stand_in_log.stat().st_size if stand_in_log.is_file() else 0

    def read(kind: str) -> list[Any]:
        said = stand_in_log.read_bytes()[before:].splitlines()
        return [line for line in map(json.loads, said) if kind in line]

    return read
