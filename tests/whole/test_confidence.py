"""The confidence that oracle data hold is the number that the service knows of the same answer."""

from __future__ import annotations

import asyncio
import io
import math
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from m3model import (
    LocalEngine,
    M3ForConditionalGeneration,
    M3Processor,
    default_model_path,
    pool_visual_tokens,
)
from m3model.engine.interface import Sampling
from serve.client.wire import chat_body
from serve.gateway.call import Call
from serve.in_process import compose
from serve.protocol import ChatRequest
from serve.settings import ServeSettings
from training.oracle.labelling import Labeller
from training.oracle.packed import PackedQuestion, answer_packed
from training.sources.scenes import SceneSource

QUESTIONS = ("What is it?", "Which colour has the circle?", "How many are there?")


@pytest.mark.parametrize("most", [1, 6])
def test_packed_answers_and_the_engine_agree_on_the_confidence(most: int) -> None:
    """Cut answers (no end token within ``most`` tokens) and finished ones alike."""
    model = M3ForConditionalGeneration.from_pretrained(default_model_path()).eval()
    processor = M3Processor.from_pretrained(default_model_path())
    engine = LocalEngine(model, processor)
    ends, seen = sorted(engine._end_ids), set()
    grid = torch.from_numpy(
        np.random.default_rng(0).standard_normal((576, model.config.hidden_size), np.float32)
    )
    prompts = [processor.prompt_and_answer(question, None)[0] for question in QUESTIONS]

    async def served(prompt: list[int], visual: torch.Tensor) -> tuple[list[int], float]:
        name = uuid.uuid4().hex
        events = engine.submit(name, prompt, [visual], Sampling(max_new_tokens=most))
        got = [event async for event in events]
        return [event.token_id for event in got], math.exp(sum(event.logprob for event in got))

    try:
        for scale in (1, 36):
            visual = pool_visual_tokens(grid, scale)
            alone = [asyncio.run(served(list(prompt), visual)) for prompt in prompts]
            # What it says itself, something else, nothing: three ways to a confidence.
            references = [alone[0][0], [5], None]
            asked = [PackedQuestion(p, r) for p, r in zip(prompts, references, strict=True)]
            [packed] = answer_packed(
                model, visual[None], [asked], end_ids=ends, max_new_tokens=most
            )
            for (ids, confidence), answer in zip(alone, packed, strict=True):
                assert answer.finished == (ids[-1] in ends)
                assert list(answer.answer_ids) == [i for i in ids if i not in ends]
                assert answer.confidence == pytest.approx(confidence, rel=1e-3)
                seen.add(answer.finished)
    finally:
        engine.close()
    assert (most > 1) in seen


def test_the_log_holds_the_confidence_that_the_oracle_would(tmp_path: Path) -> None:
    task = SceneSource(4, 3).load(1)
    labeller = Labeller(default_model_path(), device="cpu")
    wanted = labeller.label([task], feature_schema="f", model_hash="m", source="scenes")
    buffer = io.BytesIO()
    Image.fromarray(task.rgb).save(buffer, "PNG")
    service = compose(ServeSettings(registry=None, log_dir=tmp_path))

    async def ask() -> list[str]:
        texts = []
        for record in wanted:
            for scale in (9, 144):
                options: Any = {"scale": scale, "max_tokens": 17}  # an end token is one of them
                body = ChatRequest.model_validate(
                    chat_body(buffer.getvalue(), record.question, options)
                )
                reply = await service.gateway.complete(body, Call(f"{record.question_id}-{scale}"))
                texts.append(reply.choices[0].message.content)
        await service.stop()
        return texts

    texts = iter(asyncio.run(ask()))
    files = sorted(tmp_path.rglob("*.parquet"))
    rows = {r["request_id"]: r for file in files for r in pq.read_table(file).to_pylist()}
    for record in wanted:
        for scale in (9, 144):
            at = record.scales.index(scale)
            assert next(texts) == record.answers[at]
            # The service hands tokens over in float16.
            logged = rows[f"{record.question_id}-{scale}"]["confidence"]
            assert logged == pytest.approx(record.confidence[at], abs=0.01)
