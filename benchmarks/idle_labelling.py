"""What callers feel of the service labelling its own audited requests with capacity to spare.

One service in one process answers questions about pictures that it has not seen, which arrive at
random (Poisson), in rounds: in every other one the process that labels is held back (SIGSTOP). Both
rounds of a pair have the same arrivals; which comes first alternates. The load is a share of the
time that requests take one after the other. All that is asked is audited, so there is always
something to label.
"""

from __future__ import annotations

import asyncio
import base64
import io
import re
import signal
import socket
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
from _load.service import Service, running
from _result import arguments, write
from PIL import Image

from training.scenes import generate_scene

CHAT = "/v1/chat/completions"
MODES = ("alone", "labelling")


def bodies() -> Iterator[dict[str, Any]]:
    """Yield requests, each about a scene of its own."""
    for seed in count():
        scene, file = generate_scene(seed), io.BytesIO()
        Image.fromarray(scene.image).save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode()
        parts = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
            {"type": "text", "text": scene.questions[0].text},
        ]
        yield {"max_tokens": 8, "messages": [{"role": "user", "content": parts}]}


async def ask_at(
    http: httpx2.AsyncClient, times: Sequence[float], asked: Sequence[dict[str, Any]]
) -> list[float]:
    """Return how long each request took, in milliseconds from when it was due."""
    start = time.perf_counter()

    async def one(due: float, body: dict[str, Any]) -> float:
        await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
        (await http.post(CHAT, json=body)).raise_for_status()
        return (time.perf_counter() - start - due) * 1000.0

    return await asyncio.gather(*(one(*each) for each in zip(times, asked, strict=True)))


def labelled(service: Service) -> float:
    """Return the pictures labelled so far."""
    address = f"http://127.0.0.1:{service.port}/metrics"
    with urllib.request.urlopen(address, timeout=30) as reply:
        found = re.search(r"^m3_labelled_pictures_total (\S+)", reply.read().decode(), re.M)
    return float(found[1]) if found else 0.0


def labeller(service: Service) -> psutil.Process:
    """Return the process that labels."""
    while True:
        for process in service.process.children():
            if "--follow" in process.cmdline():
                return process
        time.sleep(0.1)


async def measure(service: Service, args: Any) -> dict[str, Any]:
    """Return latencies by mode, and what was labelled meanwhile."""
    requests, rng = bodies(), np.random.default_rng(args.seed)
    process = labeller(service)
    process.send_signal(signal.SIGSTOP)
    url = f"http://127.0.0.1:{service.port}"
    limits = httpx2.Limits(max_connections=64)
    async with httpx2.AsyncClient(base_url=url, timeout=60, limits=limits) as http:
        began = time.perf_counter()
        for _ in range(args.backlog):
            await ask_at(http, [0.0], [next(requests)])
        each_s = (time.perf_counter() - began) / args.backlog
        rate = args.load / each_s
        ms: dict[str, list[float]] = {mode: [] for mode in MODES}
        ratios, seconds = [], dict.fromkeys(MODES, 0.0)
        process.send_signal(signal.SIGCONT)
        while labelled(service) < 1:  # it has its model loaded and a log to work on
            await asyncio.sleep(0.5)
        before = labelled(service)
        for number in range(args.rounds):
            gaps = rng.exponential(1 / rate, round(rate * args.seconds))
            times, p95 = np.cumsum(gaps).tolist(), {}
            for mode in MODES if number % 2 else reversed(MODES):
                asked = [next(requests) for _ in times]
                held = mode == "alone"
                process.send_signal(signal.SIGSTOP if held else signal.SIGCONT)
                began = time.perf_counter()
                found = await ask_at(http, times, asked)
                seconds[mode] += time.perf_counter() - began
                process.send_signal(signal.SIGSTOP)  # while the next pictures are drawn
                ms[mode] += found
                p95[mode] = float(np.percentile(found, 95))
            ratios.append(p95["labelling"] / p95["alone"])
            print(f"round {number + 1} of {args.rounds}: p95 x{ratios[-1]:.2f}", flush=True)
    done = labelled(service) - before
    process.send_signal(signal.SIGCONT)
    await asyncio.sleep(1.0)
    began, start = time.perf_counter(), labelled(service)
    await asyncio.sleep(args.seconds)
    spare_rate = (labelled(service) - start) / (time.perf_counter() - began)
    told = {
        mode: {f"p{p}_ms": round(float(np.percentile(ms[mode], p)), 1) for p in (50, 95, 99)}
        | {"requests": len(ms[mode])}
        for mode in MODES
    }
    return told | {
        "load": args.load, "requests_per_s": round(rate, 2),
        "p50_ratio": round(told["labelling"]["p50_ms"] / told["alone"]["p50_ms"], 3),
        "p95_ratio": round(told["labelling"]["p95_ms"] / told["alone"]["p95_ms"], 3),
        "p95_ratio_of_rounds": [round(ratio, 3) for ratio in sorted(ratios)],
        "labelled": int(done), "labelled_per_s": round(done / seconds["labelling"], 2),
        "labelled_per_s_without_requests": round(spare_rate, 2),
    }  # fmt: skip


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def main() -> None:
    """Measure, print a table, write the report."""
    parser = arguments(__doc__, "4 rounds of 6 s, a backlog of 250 pictures")
    parser.add_argument("--load", type=float, default=0.3, help="of the service's time")
    parser.add_argument("--rounds", type=int, default=12, help="pairs of rounds")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each round")
    parser.add_argument("--backlog", type=int, default=1000, help="pictures to label beforehand")
    parser.add_argument("--seed", type=int, default=0, help="of the arrivals")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds, args.backlog = 4, 6.0, 250
    with tempfile.TemporaryDirectory() as folder:
        flags = ("--in-process", "--log-images", "--label-idle", str(Path(folder) / "labels"))
        with running(*flags, port=free_port()) as service:
            report = asyncio.run(measure(service, args))
    for mode in MODES:
        told = report[mode]
        print(f"{mode:10} p50 {told['p50_ms']:7.1f} ms   p95 {told['p95_ms']:7.1f} ms   "
              f"{told['requests']} requests")  # fmt: skip
    print(f"ratio      p50 {report['p50_ratio']:7.2f}      p95 {report['p95_ratio']:7.2f}")
    print(f"labelled {report['labelled']} pictures meanwhile, {report['labelled_per_s']}/s; "
          f"{report['labelled_per_s_without_requests']}/s without requests")  # fmt: skip
    write(report, args.json)


if __name__ == "__main__":
    main()
