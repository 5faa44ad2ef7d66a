"""Whether the engine's answers are those of one request at a time, when much else goes on."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from _engine.baselines import answer_batch, serve_engine
from _engine.workload import Ask

from m3model import LocalEngine, M3ForConditionalGeneration, M3Processor, Sampling
from m3model.engine.kv_pool import KVPool
from m3model.errors import RequestCancelled


def exactness(
    model: M3ForConditionalGeneration, processor: M3Processor, asks: Sequence[Ask]
) -> dict[str, Any]:
    """Ids in fp32, with neighbours that are cancelled, too little memory, prefixes to reuse."""
    wanted = {ask.name: answer_batch(model, [ask])[0][0] for ask in asks}
    copies = 0
    real = KVPool.copy

    def counted(pool: KVPool, *args: Any) -> None:
        nonlocal copies
        copies += 1
        real(pool, *args)

    leaving = [replace(ask, name=f"gone{i}") for i, ask in enumerate(asks[::5])]
    engine = LocalEngine(model, processor, max_running=16, kv_tokens=3000)
    most_waiting = 0
    KVPool.copy = counted  # type: ignore[method-assign]
    try:
        got: dict[str, tuple[int, ...]] = {}

        async def stays(ask: Ask) -> None:
            events = engine.submit(
                ask.name, list(ask.ids), [ask.visual_tokens], Sampling(ask.answer_tokens)
            )
            got[ask.name] = tuple([event.token_id async for event in events])

        async def leaves(ask: Ask) -> None:
            nonlocal most_waiting
            events = engine.submit(ask.name, list(ask.ids), [ask.visual_tokens], Sampling(60))
            await anext(events)
            stats = engine.stats()
            if stats.running < 16:  # the pool, not the batch, keeps the rest waiting
                most_waiting = max(most_waiting, stats.waiting)
            engine.cancel(ask.name)
            try:
                async for _ in events:
                    pass
            except RequestCancelled:
                got[ask.name] = ()

        async def run() -> None:
            await asyncio.gather(*(stays(ask) for ask in asks), *(leaves(ask) for ask in leaving))

        asyncio.run(run())
    finally:
        KVPool.copy = real  # type: ignore[method-assign]
        engine.close()
    engine = LocalEngine(model, processor, max_running=len(asks))
    try:
        together = serve_engine(engine, asks)
        wrong = serve_engine(engine, [replace(ask, grid=ask.grid.roll(1, dims=1)) for ask in asks])
    finally:
        engine.close()
    return {
        "equal": sum(got[name] == ids for name, ids in wanted.items()),
        "of": len(wanted),
        "equal_when_all_share_every_pass": sum(
            together[name].ids == ids for name, ids in wanted.items()
        ),
        "cancelled_neighbours": sum(ask.name in got for ask in leaving),
        "prefixes_reused": copies,
        "most_waiting_for_memory": most_waiting,
        "control_answers_changed_by_rolled_features": sum(
            wrong[name].ids != ids for name, ids in wanted.items()
        ),
    }


def bf16_agreement(
    model: M3ForConditionalGeneration, processor: M3Processor, asks: Sequence[Ask]
) -> dict[str, Any]:
    """In 16 bits: the likelihood of each token, and agreement up to the first near tie.

    A near tie is a gap between the two best logits, asked alone, below twice the largest
    difference seen anywhere; from there on two right answers may differ. That difference is given
    in bf16 grains too: one is the last bit of the best logit.
    """
    engine = LocalEngine(model, processor, max_running=16)
    logprobs: dict[str, list[float]] = {}

    async def one(ask: Ask) -> tuple[str, list[int]]:
        events = engine.submit(
            ask.name, list(ask.ids), [ask.visual_tokens], Sampling(ask.answer_tokens)
        )
        seen = [(event.token_id, event.logprob) async for event in events]
        logprobs[ask.name] = [logprob for _, logprob in seen]
        return ask.name, [token for token, _ in seen]

    async def run() -> dict[str, list[int]]:
        return dict(await asyncio.gather(*(one(ask) for ask in asks)))

    try:
        got = asyncio.run(run())
    finally:
        engine.close()
    gaps: list[float | None] = []
    worst = worst_grains = 0.0
    for ask in asks:
        ids = got[ask.name]
        whole = torch.tensor([[*ask.ids, *ids]])
        with torch.no_grad():
            out = model(input_ids=whole, image_grids=ask.grid[None], scale=ask.scale).logits
        rows = out[0, -len(ids) - 1 : -1].float()
        alone = rows.argmax(-1).tolist()
        differences = [
            abs(float(row[i] - row.logsumexp(-1)) - logprob)
            for row, i, logprob in zip(rows, ids, logprobs[ask.name], strict=True)
        ]
        top = rows.topk(2).values
        grains = [2.0 ** (math.floor(math.log2(max(abs(float(t)), 1e-3))) - 7) for t in top[:, 0]]
        worst = max(worst, *differences)
        worst_grains = max(worst_grains, *(d / g for d, g in zip(differences, grains, strict=True)))
        first = next((i for i, (a, b) in enumerate(zip(ids, alone, strict=True)) if a != b), None)
        gaps.append(None if first is None else float(top[first, 0] - top[first, 1]))
    return {
        "every_token_the_best_alone_too": gaps.count(None),
        "first_difference_at_a_near_tie": sum(g is not None and g < 2 * worst for g in gaps),
        "of": len(asks),
        "max_logprob_difference": worst,
        "max_logprob_difference_in_grains": worst_grains,
    }
