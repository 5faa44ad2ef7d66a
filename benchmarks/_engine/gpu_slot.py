"""The parts that only a GPU can prove, in the order of their worth, within minutes.

Every part writes its figures at once, and a second run goes on with those that are missing. What
there is no time for is said. With `--quick` the same code runs on a CPU and a small model.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _engine.baselines import (
    Served,
    poisson,
    requests_per_second,
    serve_engine,
    serve_static,
)
from _engine.device import ANSWER, TEXT, hardware_named, random_model
from _engine.workload import MIX, Ask, draw_requests

from m3model import LocalEngine, M3Config, M3ForConditionalGeneration, M3Processor
from m3model.capacity import measured_cpu, plan
from m3model.config import llava_shape
from m3model.cost import Hardware, kv_entries_per_token, language_bytes, request_seconds
from m3model.engine.local import PROMPT_TOKENS_A_STEP
from m3model.processing import build_image_processor
from m3model.prompt.vocabulary import build_tokenizer
from m3model.tiny import tiny_config

ROOT = Path(__file__).resolve().parents[2]
ROWS = (1, 16, 64, 256)
STEPS = 20  # timed steps of a number of rows


@dataclass
class Slot:
    """A device, the shape that is measured there, and how many requests at once."""

    device: str
    config: M3Config
    dtype: torch.dtype
    hardware: Hardware
    count: int
    batch: int
    quick: bool

    @cached_property
    def model(self) -> M3ForConditionalGeneration:
        """Random weights: cost does not depend on values."""
        return random_model(self.config, self.device, self.dtype)

    @cached_property
    def processor(self) -> M3Processor:
        size = self.config.vision_config.image_size
        return M3Processor(
            build_image_processor(size), build_tokenizer([f"word{i}" for i in range(1000)])
        )

    @contextmanager
    def engine(self, rows: int, **options: Any) -> Iterator[LocalEngine]:
        """An engine that is closed, and its memory given back, at the end."""
        engine = LocalEngine(self.model, self.processor, max_running=rows, **options)
        try:
            yield engine
        finally:
            engine.close()
            del engine
            if self.device == "cuda":
                torch.cuda.empty_cache()

    def asks(self, count: int, seed: int, scale: int | None = None) -> list[Ask]:
        """Requests of the benchmark's mix, or all at a scale."""
        return draw_requests(self.model, count, seed, scale=scale)

    def wait(self) -> None:
        """Returns when the device has done what it was given."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def this_device(slot: Slot) -> dict[str, Any]:
    """What the figures were measured on."""
    found: dict[str, Any] = {"torch": torch.__version__, "roofline": slot.hardware.name}
    if slot.device == "cuda":
        free, total = torch.cuda.mem_get_info()
        found |= {"name": torch.cuda.get_device_name(), "cuda": torch.version.cuda,
                  "free_bytes": free, "total_bytes": total}  # fmt: skip
    with slot.engine(2, kv_tokens=2048) as engine:
        stats = engine.stats()
        found |= {"attention": stats.attention, "device": stats.device, "dtype": stats.dtype,
                  "captured": engine._packed._fixed is not None}  # fmt: skip
    return found


def checks(slot: Slot) -> dict[str, Any]:
    """The tests that need a GPU."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return {"returncode": done.returncode, "said": done.stdout.strip().splitlines()[-15:]}


def syncs(slot: Slot) -> dict[str, Any]:
    """How often a step of the same rows waits for the device, as CUDA itself counts."""
    counted: list[int] = []
    with slot.engine(16, kv_tokens=16 * 800) as engine:
        real = engine._packed.launch

        def launch(chunks: Any) -> Any:
            if not (slot.device == "cuda" and engine._packed.goes_on(chunks)):
                return real(chunks)
            torch.cuda.set_sync_debug_mode("warn")
            try:
                with warnings.catch_warnings(record=True) as told:
                    warnings.simplefilter("always")
                    return real(chunks)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                counted.append(sum("synchroniz" in str(each.message) for each in told))

        engine._packed.launch = launch  # type: ignore[method-assign]
        serve_engine(engine, slot.asks(16, 8))
    return {"steps": len(counted), "most_syncs_in_a_step": max(counted, default=0)}


def decode(slot: Slot) -> dict[str, Any]:
    """Milliseconds of a step at several numbers of rows and 144 visual tokens: captured, eager,
    and the bound."""
    return {str(rows): _steps(slot, rows) for rows in ROWS if rows <= slot.batch * 4}


def _steps(slot: Slot, rows: int) -> dict[str, Any]:
    context = 144 + TEXT
    found: dict[str, Any] = {}
    kept: dict[str, list[int]] = {}
    room = 144 + 80 + _answer_tokens(PROMPT_TOKENS_A_STEP, rows)
    with slot.engine(rows, kv_tokens=rows * room) as engine:
        packed = engine._packed
        ways = {"eager": None} | ({"captured": packed._fixed} if packed._fixed else {})
        for way, fixed in ways.items():
            packed._fixed = fixed
            times, ids = _timed(slot, engine, rows)
            found[f"{way}_ms"], kept[way] = 1e3 * float(np.median(times)), ids
    if len(kept) == 2:
        same = sum(a == b for a, b in zip(kept["eager"], kept["captured"], strict=True))
        found["same_tokens"] = same / len(kept["eager"])
    weights = language_bytes(slot.config, slot.hardware.value_bytes)
    entry = kv_entries_per_token(slot.config) * slot.hardware.value_bytes
    reading = weights + rows * context * entry
    found["bound_ms"] = 1e3 * reading / slot.hardware.bytes_per_second
    found["share_of_bound"] = found["bound_ms"] / found.get("captured_ms", found["eager_ms"])
    return found


def _answer_tokens(prompt_tokens: int, rows: int) -> int:
    return STEPS + 8 + rows * 200 // prompt_tokens


def _timed(slot: Slot, engine: LocalEngine, rows: int) -> tuple[list[float], list[int]]:
    """Seconds of each step in which all rows go on, and the tokens that they say."""
    times, ids = list[float](), list[int]()
    real = engine._packed.launch

    def launch(chunks: Any) -> Any:
        if not (len(chunks) == rows and engine._packed.goes_on(chunks)):
            return real(chunks)
        slot.wait()
        start = time.perf_counter()
        said = real(chunks)
        slot.wait()
        times.append(time.perf_counter() - start)
        return said

    engine._packed.launch = launch  # type: ignore[method-assign]
    # Long enough that the first are still there when the last one's prompt is read.
    answer = _answer_tokens(engine.prompt_tokens, rows)
    asks = [replace(ask, answer_tokens=answer) for ask in slot.asks(max(rows, 20), 9, 144)[:rows]]
    for served in serve_engine(engine, asks).values():
        ids.extend(served.ids)
    engine._packed.launch = real  # type: ignore[method-assign]
    return times, ids


def prefill(slot: Slot) -> dict[str, Any]:
    """Milliseconds to the first token of a request alone, by scale, beside the bound."""
    found = {}
    with slot.engine(4) as engine:
        for scale in slot.config.scales:
            best = float("inf")
            for ask in slot.asks(20, 2, scale)[:6]:
                time.sleep(0.005)
                served = serve_engine(engine, [ask])[ask.name]
                best = min(best, served.first - served.asked)
            bound = request_seconds(
                slot.config, scale, slot.hardware, TEXT, 2, pictures=0, batch=1
            ).prefill
            found[str(scale)] = {
                "first_token_ms": 1e3 * best, "bound_ms": 1e3 * bound,
                "share_of_bound": bound / best,
            }  # fmt: skip
    return found


def mixed(slot: Slot) -> dict[str, Any]:
    """Requests a second of the mix and of everything at the finest scale, beside the bound."""
    found: dict[str, Any] = {}
    computed = plan(
        slot.config, slot.hardware, MIX, text_tokens=TEXT, answer_tokens=ANSWER,
        max_batch=slot.batch,
    )  # fmt: skip
    bounds = {"mix": computed.load.features_cached, "finest": computed.finest.features_cached}
    for name, scale in (("mix", None), ("finest", slot.config.scales[-1])):
        asks = slot.asks(slot.count, 1, scale)
        with slot.engine(slot.batch) as engine:
            serve_engine(engine, asks[:8])
            rate = requests_per_second(serve_engine(engine, asks))
        found[name] = {
            "requests_per_second": rate, "bound_requests_per_second": bounds[name],
            "share_of_bound": rate / bounds[name],
        }  # fmt: skip
    ratio = found["mix"]["requests_per_second"] / found["finest"]["requests_per_second"]
    return {**found, "mix_over_finest": ratio, "bound_mix_over_finest": computed.ratio}


def static(slot: Slot) -> dict[str, Any]:
    """Requests a second of Hugging Face's `generate` in static batches of one scale each."""
    asks = slot.asks(max(slot.count // 2, 20), 1)
    served = serve_static(slot.model, asks, batch=slot.batch, mixed=False)
    return {"requests_per_second": requests_per_second(served)}


def under_load(slot: Slot, rate: float) -> dict[str, Any]:
    """Seconds to the first token and to the end, Poisson arrivals."""
    asks = slot.asks(slot.count, 11)
    with slot.engine(slot.batch) as engine:
        served: list[Served] = list(
            serve_engine(engine, asks, poisson(len(asks), rate, 0)).values()
        )
    first = np.array([one.first - one.asked for one in served])
    total = np.array([one.done - one.asked for one in served])
    return {
        "requests_per_second": rate, "ttft_mean_s": float(first.mean()),
        "ttft_p95_s": float(np.percentile(first, 95)), "latency_mean_s": float(total.mean()),
        "latency_p95_s": float(np.percentile(total, 95)),
    }  # fmt: skip


def memory(slot: Slot) -> dict[str, Any]:
    """The cache that an engine takes, and what is left to allocate at the worst moment."""
    with slot.engine(slot.batch) as engine:
        serve_engine(engine, slot.asks(slot.batch, 12))
        pool = engine._pool
        found = {"kv_tokens": pool.tokens, "kv_bytes": pool.tokens * pool.bytes_per_token}
    if slot.device == "cuda":
        found |= {"peak_allocated_bytes": torch.cuda.max_memory_allocated(),
                  "total_bytes": torch.cuda.mem_get_info()[1]}  # fmt: skip
    return found


def mini(slot: Slot, seconds: float, out: Path) -> dict[str, Any]:
    """m3-mini, trained with what is left of the time; a run that was cut off goes on from its last
    checkpoint, which is written every 200 steps."""
    command = [sys.executable, "-m", "training.cli", "model", "--preset", "mini", "--out", str(out)]
    if slot.quick:
        command += ["--max-steps", "1"]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as cut:  # no figure yet: it is begun again, and goes on
        said = (cut.stderr or b"").decode().strip().splitlines()[-1:]
        return {"error": f"not finished in {seconds:.0f} s", "said": said}
    told: dict[str, Any] = {"said": done.stderr.strip().splitlines()[-3:]}
    return told | {"error": f"it ended with {done.returncode}"} if done.returncode else told


def run(path: Path, seconds: float, quick: bool) -> dict[str, Any]:
    """Runs what is missing in a report, for so long, and returns it all."""
    until = time.monotonic() + seconds
    report: dict[str, Any] = {"parts": {}, "left_out": []}
    if path.is_file():
        report = json.loads(path.read_text("utf-8"))
        report["left_out"] = []
    slot = _slot(quick)

    def loaded() -> dict[str, Any]:
        rate = report["parts"].get("mix and finest", {}).get("mix", {}).get("requests_per_second")
        return under_load(slot, 0.8 * rate) if rate else {"left out": "the mix was not measured"}

    def trained() -> dict[str, Any]:
        out = (path.parent if quick else ROOT / "runs") / "gpu-mini"
        return mini(slot, max(until - time.monotonic(), 60.0), out)

    # Name, what it does, seconds that it may take on a GPU.
    parts: list[tuple[str, Callable[[], dict[str, Any]], float]] = [
        ("device", lambda: this_device(slot), 45), ("checks", lambda: checks(slot), 120),
        ("syncs", lambda: syncs(slot), 20), ("decode", lambda: decode(slot), 90),
        ("mix and finest", lambda: mixed(slot), 75), ("under load", loaded, 40),
        ("prefill", lambda: prefill(slot), 30), ("memory", lambda: memory(slot), 30),
        ("static batches", lambda: static(slot), 60),
        ("m3-mini", trained, 120),
    ]  # fmt: skip
    for name, work, takes in parts:
        if "error" not in report["parts"].get(name, {"error": "missing"}):
            continue
        if not quick and until - time.monotonic() < takes / 2:
            report["left_out"].append(name)
            continue
        start = time.perf_counter()
        try:
            found = work()
        except Exception as error:  # the next part may be of more use than a traceback
            found = {"error": f"{type(error).__name__}: {error}"}
        found["seconds"] = time.perf_counter() - start
        report["parts"][name] = found
        report["quick"] = quick
        print(f"{name}: {json.dumps(found)}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    if report["left_out"]:
        print(f"no time left for: {', '.join(report['left_out'])}; run it again to go on")
    return report


def _slot(quick: bool) -> Slot:
    if quick:
        torch.set_num_threads(1)
        return Slot("cpu", tiny_config(1200), torch.float32, measured_cpu(1), 20, 4, True)
    hardware = hardware_named(torch.cuda.get_device_name())
    return Slot("cuda", llava_shape("7b"), torch.bfloat16, hardware, 400, 64, False)
