"""What a pass reads, and that 16-bit answers are as likely as the model says."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m3model import LocalEngine, M3ForConditionalGeneration, M3Processor, Sampling, TokenEvent
from m3model.engine.request import Row, next_chunks
from m3model.pooling import pool_visual_tokens
from m3model.tiny import write_tiny_checkpoint


@given(lefts=st.lists(st.integers(0, 700), max_size=12), budget=st.integers(1, 600))
def test_a_pass_reads_every_answer_and_prompts_in_order(lefts: list[int], budget: int) -> None:
    rows = [cast(Row, SimpleNamespace(left=left)) for left in lefts]
    chunks = next_chunks(rows, budget)
    read = {id(row): new for row, new in chunks}
    assert all(read.get(id(row)) == 1 for row in rows if not row.left)
    prompts = [(row.left, read.get(id(row), 0)) for row in rows if row.left]
    assert sum(new for _, new in prompts) == min(budget, sum(left for left, _ in prompts))
    # Nobody gets a token before everyone older has read all of the prompt.
    unfinished = next((i for i, (left, new) in enumerate(prompts) if new < left), len(prompts))
    assert all(new == 0 for _, new in prompts[unfinished + 1 :])


def test_bf16_answers_have_the_likelihood_that_the_model_gives_them(tmp_path: Path) -> None:
    """Teacher-forced: each token's log-probability, packed among others against alone."""
    folder = write_tiny_checkpoint(tmp_path / "model", seed=3)
    processor = M3Processor.from_pretrained(folder)
    model = M3ForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16).eval()
    engine = LocalEngine(model, processor)
    draw = torch.Generator().manual_seed(5)
    asked = [
        (
            [1, model.config.image_token_id, *torch.randint(5, 40, (n,), generator=draw).tolist()],
            torch.randn(576, model.config.hidden_size, generator=draw),
            scale,
        )
        for n, scale in zip(range(3, 13), [1, 9, 36, 144, 576] * 2, strict=True)
    ]

    async def one(name: str, ids: list[int], grid: torch.Tensor, scale: int) -> list[TokenEvent]:
        events = engine.submit(name, ids, [pool_visual_tokens(grid, scale)], Sampling(20))
        return [event async for event in events]

    async def run() -> list[list[TokenEvent]]:
        return await asyncio.gather(*(one(f"r{i}", *each) for i, each in enumerate(asked)))

    try:
        answers = asyncio.run(run())
    finally:
        engine.close()
    for (ids, grid, scale), events in zip(asked, answers, strict=True):
        whole = torch.tensor([[*ids, *(event.token_id for event in events)]])
        with torch.no_grad():
            logits = model(input_ids=whole, image_grids=grid[None], scale=scale).logits
        rows = logits[0, -len(events) - 1 : -1].float().log_softmax(-1)
        for event, row in zip(events, rows, strict=True):
            assert event.logprob == pytest.approx(float(row[event.token_id]), abs=0.15)
            assert float(row.max() - row[event.token_id]) <= 0.15  # greedy, or a near tie
