"""The real vLLM, where an environment with it is named: pictures of 9 and 576 tokens at once.

M3_VLLM_PYTHON=/path/to/python. Its CPU attention knows heads of 32 and more, so the model here is
wider than the other tests' one.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import torch

from m3model import Engine, LocalEngine, M3ForConditionalGeneration, M3Processor, Sampling
from m3model.engine.vllm.engine import VllmEngine
from m3model.errors import RequestCancelled
from m3model.pooling import pool_visual_tokens
from m3model.tiny import redraw_weights, tiny_config, write_tiny_checkpoint

PYTHON = os.environ.get("M3_VLLM_PYTHON")
WIDTH = 256
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="M3_VLLM_PYTHON names no python with vLLM"),
]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("wide") / "model")
    processor = M3Processor.from_pretrained(folder)
    config = tiny_config(
        len(processor.tokenizer), image_token_id=processor.image_token_id, hidden_size=WIDTH
    )
    model = M3ForConditionalGeneration(config)
    redraw_weights(model, 0)
    (folder / "relevance.safetensors").unlink()
    model.save_pretrained(folder)
    return folder


def test_9_and_576_at_once_as_our_own_engine_says(wide: Path) -> None:
    processor = M3Processor.from_pretrained(wide)
    grid = torch.randn(576, WIDTH, generator=torch.Generator().manual_seed(0))
    content = [{"type": "image"}, {"type": "text", "text": "what color is the star?"}]
    prompt = processor.prompt_ids([{"role": "user", "content": content}])

    async def ask(engine: Engine) -> list[list[tuple[int, float, tuple[int, ...]]]]:
        async def one(scale: int) -> list[tuple[int, float, tuple[int, ...]]]:
            tokens = pool_visual_tokens(grid, scale)
            sampling = Sampling(24, top_logprobs=2)
            events = engine.submit(f"{scale}", prompt, [tokens], sampling)
            return [
                (event.token_id, event.logprob, tuple(each for each, _ in event.top))
                async for event in events
            ]

        return await asyncio.gather(*map(one, (9, 576, 1, 144, 36)))

    async def leave(engine: VllmEngine) -> int:
        events = engine.submit(
            "left", prompt, [grid], Sampling(1000, temperature=2.0, seed=2**64 - 1)
        )
        await anext(events)
        assert engine.cancel("left")
        with pytest.raises(RequestCancelled):
            await anext(events)
        for _ in range(1000):
            if not engine.stats().running:
                break
            await asyncio.sleep(0.01)
        again = engine.submit("again", prompt, [grid], Sampling(2))
        assert not engine.stats().running
        return (await anext(again)).cached_tokens

    own = LocalEngine(M3ForConditionalGeneration.from_pretrained(wide), processor, kv_tokens=4096)
    wanted = asyncio.run(ask(own))
    own.close()
    assert PYTHON is not None
    vllm = VllmEngine(
        wide, processor, python=Path(PYTHON), device="cpu", dtype="float32", max_running=16,
        kv_tokens=4096, options={"enforce_eager": True},
    )  # fmt: skip
    try:
        got = asyncio.run(ask(vllm))
        for ours, theirs in zip(wanted, got, strict=True):
            assert [(i, top) for i, _, top in ours] == [(i, top) for i, _, top in theirs]
            assert [p for _, p, _ in theirs] == pytest.approx([p for _, p, _ in ours], abs=1e-3)
        assert asyncio.run(leave(vllm)) >= 512
    finally:
        vllm.close()
