"""The engine alone: the looks of a service's requests, from as many loops as it had clients.

    python benchmarks/_load/bare.py MODEL LOOKS.json CLIENTS SECONDS

LOOKS.json is a list of requests, each a list of looks {"messages", "visual_tokens", "max_tokens"}.
Pictures are noise, as many tokens as were read. Prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from m3model import LocalEngine, M3ForConditionalGeneration, M3Processor
from m3model.engine.interface import Sampling

Look = tuple[list[int], torch.Tensor, int]


async def one_loop(engine: LocalEngine, turns: Any, until: float, done: list[float]) -> None:
    """Answer one request after another; its looks come after each other."""
    while time.perf_counter() < until:
        began = time.perf_counter()
        number, looks = next(turns)
        for i, (ids, tokens, longest) in enumerate(looks):
            sampling = Sampling(max_new_tokens=longest)
            async for _ in engine.submit(f"{number}.{i}", ids, [tokens], sampling):
                pass
        done.append(time.perf_counter() - began)


async def measure(folder: str, file: str, clients: int, seconds: float) -> dict[str, float]:
    """Return requests a second and CPU milliseconds a request."""
    torch.set_num_threads(1)
    model = M3ForConditionalGeneration.from_pretrained(folder).eval()
    processor = M3Processor.from_pretrained(folder)
    width = model.config.hidden_size
    requests: list[list[Look]] = [
        [
            (processor.prompt_ids(look["messages"]), torch.randn(look["visual_tokens"], width),
             look["max_tokens"])
            for look in looks
        ]
        for looks in json.loads(Path(file).read_text("utf-8"))
    ]  # fmt: skip
    engine = LocalEngine(model, processor)
    turns = ((i, requests[i % len(requests)]) for i in itertools.count())
    done: list[float] = []
    for warming in (1.0, seconds):
        done.clear()
        began, cpu = time.perf_counter(), time.process_time()
        until = began + warming
        await asyncio.gather(*(one_loop(engine, turns, until, done) for _ in range(clients)))
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    engine.close()
    return {"requests_per_s": len(done) / wall_s, "cpu_ms": 1000 * cpu_s / len(done)}


if __name__ == "__main__":
    folder, file, clients, seconds = sys.argv[1:]
    print(json.dumps(asyncio.run(measure(folder, file, int(clients), float(seconds)))))
