"""The engine beside static batches: exactness, throughput, latency under load, memory.

    python benchmarks/engine.py --json benchmarks/results/engine.json
    python benchmarks/engine.py --quick
    python -m benchmarks.engine --gpu-slot      # or: make gpu

A small LLaVA with random weights (cost does not depend on values), one torch thread; 200 requests,
30/25/20/15/10 % of them at 1/9/36/144/576 visual tokens, questions of 20-60 tokens, answers of
5-60. Pictures come encoded, as in the service. With a CUDA device the shape of LLaVA-1.5-7B is
measured there as well. Throughput is the median of interleaved repetitions.

`--gpu-slot` measures that alone, in eight minutes at most: the tests that need a GPU, waits for the
device, captured steps against eager ones, prompts, the mix, a load, memory, static batches; what is
left trains m3-mini. It writes after every part, and goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import copy
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from _engine import gpu_slot
from _engine.baselines import (
    Served,
    poisson,
    requests_per_second,
    serve_engine,
    serve_static,
)
from _engine.bound import bound_share
from _engine.device import device_figures
from _engine.exactness import bf16_agreement, exactness
from _engine.launches import host_copies_a_step, launches_a_layer
from _engine.workload import ANSWER_TOKENS, MIX, QUESTION_TOKENS, build_model, draw_requests
from _result import arguments, write

from m3model import LocalEngine, M3ForConditionalGeneration, M3Processor, Sampling
from m3model.capacity import measured_cpu, plan
from m3model.cost import Hardware, kv_bytes_per_token
from m3model.engine.kv_pool import PAGE_TOKENS
from m3model.tiny import tiny_config

BATCH = 16
GPU_REPORT = Path(__file__).parent / "results" / "gpu.json"


def fresh(model: M3ForConditionalGeneration, processor: M3Processor) -> LocalEngine:
    """An engine with as many slots as the static batches have rows, and no prefixes kept."""
    return LocalEngine(model, processor, max_running=BATCH)


def throughput(
    model: M3ForConditionalGeneration, processor: M3Processor, count: int, repeats: int
) -> dict[str, Any]:
    """Requests a second of every way, all requests at once."""
    mixed = draw_requests(model, count, 1)
    uniform = {scale: draw_requests(model, count, 1, scale=scale) for scale in (9, 576)}
    rates: dict[str, list[float]] = {}

    def note(name: str, served: dict[str, Served]) -> None:
        rates.setdefault(name, []).append(requests_per_second(served))

    for _ in range(repeats):
        engine = LocalEngine(model, processor, max_running=256)
        note("engine, 256 slots", serve_engine(engine, mixed))
        engine.close()
        for name, asks in (
            ("engine", mixed), ("engine, all at 576", uniform[576]),
            ("engine, all at 9", uniform[9]),
        ):  # fmt: skip
            engine = fresh(model, processor)
            note(name, serve_engine(engine, asks))
            engine.close()
        note("static, one scale a batch", serve_static(model, mixed, batch=BATCH, mixed=False))
        note("static, mixed and left-padded", serve_static(model, mixed, batch=BATCH, mixed=True))
    note(
        "static, all at 576",
        serve_static(model, uniform[576], batch=BATCH, mixed=False),
    )
    return {name: statistics.median(each) for name, each in rates.items()}


def routed_vs_finest(
    model: M3ForConditionalGeneration, rates: dict[str, float], cpu: Hardware
) -> dict[str, float]:
    """How many times faster the mix is than everything at the finest scale; measured, computed."""
    analytic = plan(
        model.config, cpu, MIX,
        text_tokens=sum(QUESTION_TOKENS) // 2 - 1, answer_tokens=sum(ANSWER_TOKENS) // 2,
        max_batch=BATCH,
    )  # fmt: skip
    return {
        "measured": rates["engine"] / rates["engine, all at 576"],
        "analytic": analytic.load.features_cached / analytic.finest.features_cached,
        "requests_per_second": rates["engine"],
        "analytic_requests_per_second": analytic.load.features_cached,
    }


def wider(count: int, cpu: Hardware) -> dict[str, float]:
    """The same on a model of eight times the operations: dispatching weighs less."""
    model, processor = build_model(512, 8)
    rates = {}
    for name, scale in (("engine", None), ("engine, all at 576", 576)):
        engine = fresh(model, processor)
        rates[name] = requests_per_second(
            serve_engine(engine, draw_requests(model, count, 1, scale=scale))
        )
        engine.close()
    return routed_vs_finest(model, rates, cpu)


def under_load(
    model: M3ForConditionalGeneration,
    processor: M3Processor,
    count: int,
    rate: float,
    seeds: int,
    *,
    static: bool = True,
) -> dict[str, Any]:
    """Seconds to the first token and to the end, Poisson arrivals at `rate` a second."""
    seen: dict[str, list[Served]] = {"engine": []}
    for seed in range(seeds):
        asks, arrivals = draw_requests(model, count, 10 + seed), poisson(count, rate, seed)
        engine = fresh(model, processor)
        seen["engine"] += serve_engine(engine, asks, arrivals).values()
        engine.close()
        if static:
            served = serve_static(model, asks, batch=BATCH, mixed=False, arrivals=arrivals)
            seen.setdefault("static, one scale a batch", []).extend(served.values())

    def figures(served: list[Served], streams: bool) -> dict[str, float]:
        total = np.array([s.done - s.asked for s in served])
        first = np.array([s.first - s.asked for s in served]) if streams else total
        return {
            "ttft_mean_s": float(first.mean()),
            "ttft_p95_s": float(np.percentile(first, 95)),
            "latency_mean_s": float(total.mean()),
            "latency_p95_s": float(np.percentile(total, 95)),
        }

    out: dict[str, Any] = {"engine": figures(seen["engine"], True)}
    if static:
        rest = seen["static, one scale a batch"]
        out["static, one scale a batch"] = figures(rest, False)
        out["static, if it streamed"] = figures(rest, True)
    return out


def kind_of_attention(model: M3ForConditionalGeneration, processor: M3Processor) -> dict[str, str]:
    """What the engine reads contexts with, and where: a slower way is never taken in silence."""
    engine = fresh(model, processor)
    stats = engine.stats()
    engine.close()
    return {
        "attention": stats.attention, "device": stats.device, "dtype": stats.dtype,
        "products": stats.products,
    }  # fmt: skip


def kv_bytes(model: M3ForConditionalGeneration, processor: M3Processor) -> dict[str, int]:
    """Cache of sixteen requests in flight: what the pool holds, and what the formula says."""
    asks = draw_requests(model, 20, 3)[:BATCH]
    engine = fresh(model, processor)
    pool = engine._pool
    page = pool.bytes_per_token * PAGE_TOKENS

    async def run() -> int:
        streams = [
            engine.submit(ask.name, list(ask.ids), [ask.visual_tokens], Sampling(200))
            for ask in asks
        ]
        for stream in streams:
            await anext(stream)
        used = engine.stats().kv_pages_used
        for stream in streams:
            await stream.aclose()  # type: ignore[attr-defined]
        return used

    measured = asyncio.run(run()) * page
    engine.close()
    tokens = [len(ask.ids) - 1 + ask.scale + 200 for ask in asks]
    pages = sum(-(-n // PAGE_TOKENS) * PAGE_TOKENS for n in tokens)
    return {
        "measured": measured,
        "computed": pages * kv_bytes_per_token(model.config),
        "computed_without_page_rounding": sum(tokens) * kv_bytes_per_token(model.config),
    }


def growth(model: M3ForConditionalGeneration, processor: M3Processor, count: int) -> dict[str, Any]:
    """Memory of the process after a tenth of many short requests and after all of them."""
    engine = LocalEngine(model, processor, max_running=64, kv_tokens=8192)
    process, rss = psutil.Process(), list[float]()
    asks = draw_requests(model, 200, 4, scale=9)
    draw = torch.Generator().manual_seed(0)

    async def run() -> None:
        slots = asyncio.Semaphore(128)

        async def one(i: int) -> None:
            async with slots:
                ask = asks[i % len(asks)]
                tokens = ask.visual_tokens + torch.randn(1, generator=draw)  # a new picture
                events = engine.submit(str(i), list(ask.ids), [tokens], Sampling(2))
                assert len([event async for event in events]) == 2
                if i + 1 in (count // 10, count):
                    rss.append(process.memory_info().rss / 2**20)

        await asyncio.gather(*(one(i) for i in range(count)))

    asyncio.run(run())
    stats = engine.stats()
    engine.close()
    return {
        "requests": count,
        "rss_mib_after_a_tenth": rss[0],
        "rss_mib_after_all": rss[1],
        "kv_pages_used_at_the_end": stats.kv_pages_used,
    }


def main() -> None:
    parser = arguments(__doc__, quick="few requests, a smaller model")
    parser.add_argument("--gpu-slot", action="store_true", help="only what needs a GPU, quickly")
    parser.add_argument(
        "--seconds", type=float, default=460.0, help="that the parts of --gpu-slot may take"
    )
    options = parser.parse_args()
    quick = options.quick
    if options.gpu_slot:
        if not (quick or torch.cuda.is_available()):
            parser.error("--gpu-slot needs an NVIDIA GPU; with --quick its code runs on this CPU")
        gpu_slot.run(options.json or GPU_REPORT, options.seconds, quick)
        return
    torch.set_num_threads(1)
    model, processor = build_model(*((64, 2) if quick else ()))
    count, repeats, seeds = (20, 1, 1) if quick else (200, 3, 2)

    exact = exactness(model, processor, draw_requests(model, count, 0, questions_a_picture=2))
    print(f"exact: {exact}")
    half = copy.deepcopy(model).to(torch.bfloat16)
    exact["bf16"] = bf16_agreement(half, processor, draw_requests(model, count, 0)[:60])
    print(f"bf16: {exact['bf16']}")

    rates = throughput(model, processor, count, repeats)
    print(*(f"{name:32}{rate:8.2f} requests/s" for name, rate in rates.items()), sep="\n")

    # A load that static batches can hold as well; they set it.
    rate = 0.8 * min(rates["engine"], rates["static, one scale a batch"])
    load = under_load(model, processor, count, rate, seeds)
    own = 0.8 * rates["engine"]
    load["engine, at 80 % of its own capacity"] = under_load(
        model, processor, count, own, seeds, static=False
    )["engine"]
    for name, figures in load.items():
        print(f"{name:36}" + "  ".join(f"{k} {v:.3f}" for k, v in figures.items()))
    ours, static, streamed = (
        load[name] for name in ("engine", "static, one scale a batch", "static, if it streamed")
    )

    cpu = measured_cpu(1)
    shares = {
        name: bound_share(
            model, processor, draw_requests(model, count, 1, scale=scale), cpu, batch, repeats
        )
        for name, scale, batch in (
            ("mixed", None, BATCH), ("all_finest", 576, BATCH), ("mixed_in_256_slots", None, 256),
        )
    }  # fmt: skip
    a_layer, besides = launches_a_layer()
    result: dict[str, Any] = {
        "benchmark": "engine",
        "command": "python benchmarks/engine.py --json benchmarks/results/engine.json",
        "quick": quick,
        "requests": count,
        "model": "random weights, language model 256 wide, 4 layers, 24x24 grid, fp32, one thread",
        "exact": exact,
        "requests_per_second": rates,
        "throughput_ratio": {
            "vs_left_padded": rates["engine"] / rates["static, mixed and left-padded"],
            "vs_per_scale": rates["engine"] / rates["static, one scale a batch"],
        },
        "poisson": {
            "ttft_ratio_vs_per_scale": ours["ttft_mean_s"] / static["ttft_mean_s"],
            "p95_ratio_vs_per_scale": ours["latency_p95_s"] / static["latency_p95_s"],
            "ttft_ratio_vs_per_scale_if_it_streamed": ours["ttft_mean_s"]
            / streamed["ttft_mean_s"],
            "requests_per_second": rate,
            "seconds": load,
        },
        "routed_vs_finest": {
            **routed_vs_finest(model, rates, cpu),
            "hardware": asdict(cpu),
            "model_of_eight_times_the_operations": None if quick else wider(100, cpu),
        },
        **kind_of_attention(model, processor),
        "bound_share": {name: figures["share"] for name, figures in shares.items()},
        "bound": shares,
        "decode": {
            "ops_per_layer": a_layer,
            "ops_besides": besides,
            "host_copies_per_step": host_copies_a_step(
                model, processor, draw_requests(model, 20, 6)
            ),
        },
        "kv_bytes": kv_bytes(model, processor),
        "growth": growth(model, processor, 300 if quick else 10_000),
        "gpu": device_figures() if torch.cuda.is_available() and not quick else None,
    }  # fmt: skip
    if quick:  # the code that measures a GPU, on this CPU and a small model
        small = device_figures(tiny_config(1200), "cpu", torch.float32, cpu, count=20, batch=4)
        print(f"the device figures' own code: {sorted(small)}")
    for key in (
        "attention",
        "products",
        "bound_share",
        "decode",
        "throughput_ratio",
        "routed_vs_finest",
        "kv_bytes",
        "growth",
        "gpu",
    ):
        print(f"{key}: {result[key]}")
    print(f"poisson: { ({k: v for k, v in result['poisson'].items() if k != 'seconds'}) }")
    write(result, options.json)


if __name__ == "__main__":
    main()
