"""`engine: vllm`: the service answers as with its own engine, and says what is missing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from pydantic import ValidationError

from m3model import LocalEngine, M3ForConditionalGeneration, M3Processor
from serve.errors import NotReady, ReplicaDied, ServeSetupError
from serve.in_process import Service, compose
from serve.metrics import LocalMetrics
from serve.settings import ServeSettings
from serve.stages.checkpoint import start_engine
from serve.stages.generator import Generator
from serve.stages.messages import GenerateRequest


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"engine": "vllm"}, "engine: vllm needs vllm_python"),
        ({"vllm_python": "/usr/bin/python3"}, "are for engine: vllm"),
        ({"vllm_options": {"tensor_parallel_size": 2}}, "are for engine: vllm"),
        ({"engine": "sglang"}, "'own' or 'vllm'"),
    ],
)
def test_settings_belong_together(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ServeSettings.model_validate(given)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"device": "cuda:1"}, "CUDA_VISIBLE_DEVICES"),
        ({"vllm_python": "/nowhere/python"}, "/nowhere/python cannot be run"),
        ({"vllm_options": {"dtype": "half"}}, "set already: dtype"),
        ({}, "-m pip install vllm"),
    ],
)
def test_what_keeps_it_from_starting_is_a_fault_of_the_setup(
    tiny_model: Path, given: dict[str, Any], says: str
) -> None:
    plain = {"engine": "vllm", "vllm_python": sys.executable, "device": "cpu"}
    settings = ServeSettings.model_validate({"model": str(tiny_model), **plain, **given})
    with pytest.raises(ServeSetupError, match=says):
        start_engine(settings)


@pytest.fixture(scope="module")
def service(tiny_model: Path, vllm_python: Path) -> Iterator[Service]:
    """In one process, but for what generates: a stand-in for vLLM in a process of its own."""
    said = {
        "model": str(tiny_model), "engine": "vllm", "vllm_python": str(vllm_python),
        "device": "cpu", "registry": None, "log_dir": None,
    }  # fmt: skip
    service = compose(ServeSettings.model_validate(said))
    yield service
    asyncio.run(service.stop())


def request(**wishes: Any) -> GenerateRequest:
    content = [{"type": "image"}, {"type": "text", "text": "what color is the star?"}]
    tokens = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float16)
    return GenerateRequest("r", ({"role": "user", "content": content},), (tokens,), **wishes)


def test_its_answers_are_those_of_our_engine(service: Service, tiny_model: Path) -> None:
    processor = M3Processor.from_pretrained(tiny_model)
    model = M3ForConditionalGeneration.from_pretrained(tiny_model)
    engine = LocalEngine(model, processor, kv_tokens=4096)
    own = Generator(engine, processor, ServeSettings(), LocalMetrics())

    async def ask(generator: Generator) -> list[tuple[Any, ...]]:
        await generator.check_health()
        asked = request(max_tokens=12, n=2, top_logprobs=2)
        return [
            (
                part.index,
                part.text,
                part.n_tokens,
                part.text_tokens,
                part.finish_reason,
                [told.token for told in part.logprobs],
            )
            async for part in generator.generate(asked)
        ]

    wanted = sorted(asyncio.run(ask(own)))
    own.close()
    assert sorted(asyncio.run(ask(service.generator))) == wanted
    assert [index for index, *_ in wanted] == [0, 1]


def test_pictures_of_several_scales_are_answered_at_once(
    service: Service, ask_body: Callable[..., dict[str, Any]]
) -> None:
    async def run() -> list[dict[str, Any]]:
        transport = httpx2.ASGITransport(app=service.api)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            asks = [ask_body() | {"model": f"m3-{scale}"} for scale in (9, 576)]
            replies = await asyncio.gather(
                *(client.post("/v1/chat/completions", json=body) for body in asks)
            )
        return [reply.json() for reply in replies]

    for scale, reply in zip((9, 576), asyncio.run(run()), strict=True):
        assert reply["usage"]["prompt_tokens_details"]["image_tokens"] == scale
        assert 1 <= reply["usage"]["completion_tokens"] <= 6


def test_a_killed_vllm_is_a_dead_replica(service: Service) -> None:
    generator: Any = service.generator
    pid = generator._engine._process._process.pid

    async def run() -> None:
        os.kill(pid, signal.SIGSTOP)
        parts = generator.generate(request())
        asked = asyncio.ensure_future(anext(parts))
        while not generator._engine.stats().waiting:
            await asyncio.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ReplicaDied):
            await asked
        with pytest.raises(NotReady):
            await anext(generator.generate(request()))
        with pytest.raises(NotReady):
            await generator.check_health()
        assert not (await generator.status()).alive

    asyncio.run(run())
