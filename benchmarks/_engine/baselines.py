"""What the engine is compared with: `generate` in static batches, and both ways under a load.

A static server collects up to a batch of waiting requests, of one scale or of all together with
padding on the left, answers it to the end and sends the answers. Times are wall-clock seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from _engine.workload import Ask
from transformers import StoppingCriteria, StoppingCriteriaList

from m3model import LocalEngine, M3ForConditionalGeneration, Sampling


@dataclass(frozen=True)
class Served:
    """One answer: its ids, and when it was asked, begun and complete."""

    ids: tuple[int, ...]
    asked: float
    first: float
    done: float


class _OwnLengths(StoppingCriteria):
    """Ends a batch once every row has its own number of tokens; notes when the first is there."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = torch.tensor(lengths)
        self.steps = 0
        self.first = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        if not self.first:
            input_ids.cpu()  # a device works behind: wait until the token is there
            self.first = time.perf_counter()
        self.steps += 1
        return (self.lengths <= self.steps).to(input_ids.device)


def answer_batch(
    model: M3ForConditionalGeneration, asks: Sequence[Ask]
) -> tuple[list[tuple[int, ...]], float]:
    """The answers of one static batch, and when its first tokens were there."""
    longest = max(len(ask.ids) for ask in asks)
    device = model.get_input_embeddings().weight.device
    ids = torch.zeros(len(asks), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, ask in enumerate(asks):
        ids[row, longest - len(ask.ids) :] = torch.tensor(ask.ids)
        mask[row, longest - len(ask.ids) :] = 1
    stop = _OwnLengths([ask.answer_tokens for ask in asks])
    out = model.generate(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        image_grids=[ask.grid.to(device) for ask in asks],
        scale=[ask.scale for ask in asks],
        max_new_tokens=max(ask.answer_tokens for ask in asks),
        do_sample=False,
        stopping_criteria=StoppingCriteriaList([stop]),
    ).tolist()
    return [tuple(row[: ask.answer_tokens]) for row, ask in zip(out, asks, strict=True)], stop.first


def _take(queue: list[Ask], batch: int, mixed: bool) -> list[Ask]:
    """Removes and returns the next batch: the oldest request and who may go with it."""
    taken = [ask for ask in queue if mixed or ask.scale == queue[0].scale][:batch]
    for ask in taken:
        queue.remove(ask)
    return taken


def serve_static(
    model: M3ForConditionalGeneration,
    asks: Sequence[Ask],
    *,
    batch: int,
    mixed: bool,
    arrivals: Sequence[float] | None = None,
) -> dict[str, Served]:
    """Answers all requests in static batches; `arrivals` in seconds from now, None: all at once."""
    start = time.perf_counter()
    due = [start + at for at in (arrivals or [0.0] * len(asks))]
    coming, queue = list(zip(due, asks, strict=True)), list[Ask]()
    when = {ask.name: at for at, ask in coming}
    served = {}
    while coming or queue:
        now = time.perf_counter()
        while coming and coming[0][0] <= now:
            queue.append(coming.pop(0)[1])
        if not queue:
            time.sleep(max(coming[0][0] - time.perf_counter(), 0.0))
            continue
        taken = _take(queue, batch, mixed)
        answers, first = answer_batch(model, taken)
        done = time.perf_counter()
        for ask, ids in zip(taken, answers, strict=True):
            served[ask.name] = Served(ids, when[ask.name], first, done)
    return served


def serve_engine(
    engine: LocalEngine, asks: Sequence[Ask], arrivals: Sequence[float] | None = None
) -> dict[str, Served]:
    """Answers all requests with the engine, streaming."""

    async def one(ask: Ask, at: float, start: float) -> tuple[str, Served]:
        await asyncio.sleep(max(start + at - time.perf_counter(), 0.0))
        asked, first, ids = start + at, 0.0, []
        sampling = Sampling(ask.answer_tokens)
        async for event in engine.submit(ask.name, list(ask.ids), [ask.visual_tokens], sampling):
            first = first or time.perf_counter()
            ids.append(event.token_id)
        return ask.name, Served(tuple(ids), asked, first, time.perf_counter())

    async def run() -> dict[str, Served]:
        start = time.perf_counter()
        each = zip(asks, arrivals or [0.0] * len(asks), strict=True)
        return dict(await asyncio.gather(*(one(ask, at, start) for ask, at in each)))

    return asyncio.run(run())


def requests_per_second(served: dict[str, Served]) -> float:
    """From the first question to the last answer."""
    span = max(s.done for s in served.values()) - min(s.asked for s in served.values())
    return len(served) / span


def poisson(count: int, rate: float, seed: int) -> list[float]:
    """Arrival times in seconds of `count` requests at `rate` a second."""
    draw = torch.Generator().manual_seed(seed)
    return torch.empty(count).exponential_(rate, generator=draw).cumsum(0).tolist()
