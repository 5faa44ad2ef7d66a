"""What the service costs beside the engine alone: in one process, on Ray, in Ray's faster modes.

Eight closed-loop clients ask about generated scenes in turn: all are in the encoder's cache, and
too many for the engine's prefixes, so every prompt is read anew. CPU is that of all processes of
the service, Ray's own and HAProxy included, without the clients'. What is routed may be read in
part (focus); the ratios tell its time beside always 576. The engine alone answers the same looks
(prompts, visual tokens, answer lengths) about noise, cut beforehand. The last rows are a wider
random model whose answers never end by themselves, so that the generator's cost is what it would be
with a model worth serving. `--only MODE` measures some modes.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from _engine.workload import build_model
from _load.service import Service, free_port, running
from _result import arguments, write
from PIL import Image

from m3model import default_model_path
from training.scenes import generate_scene

BARE = Path(__file__).parent / "_load" / "bare.py"
CLIENTS, SCENES = 8, 240
MODES: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "in_process": (("--in-process",), {}),
    "ray_default": ((), {}),
    "ray_throughput": ((), {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}),
    "ray_haproxy": (
        (), {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"},
    ),
}  # fmt: skip
WORKLOADS = {"routed": "m3-auto", "always_576": "m3-576", "always_9": "m3-9"}
HEAVY_WIDTH, HEAVY_LAYERS, HEAVY_TOKENS = 384, 6, 48


def bodies(model: str, max_tokens: int, *, stream: bool = False) -> list[dict[str, Any]]:
    """Return a question about each of the scenes."""
    asked = []
    for seed in range(SCENES):
        scene, file = generate_scene(seed), io.BytesIO()
        Image.fromarray(scene.image).save(file, "PNG")
        data = base64.b64encode(file.getvalue()).decode()
        parts = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
            {"type": "text", "text": scene.questions[0].text},
        ]
        body = {"model": model, "max_tokens": max_tokens, "stream": stream}
        asked.append(body | {"messages": [{"role": "user", "content": parts}]})
    return asked


def looks_of(service: Service, asked: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Return the looks that each request takes, as the service says."""
    found = []
    for body in asked:
        if body["model"] == "m3-auto":
            tokens = looked(service.ask(body)["routing"])
        else:
            tokens = [int(body["model"].removeprefix("m3-"))]
        content = [{"type": "image"}, body["messages"][0]["content"][1]]
        messages = [{"role": "user", "content": content}]
        found.append(
            [
                {"messages": messages, "visual_tokens": n, "max_tokens": body["max_tokens"]}
                for n in tokens
            ]
        )
    return found


def looked(routing: dict[str, Any]) -> list[int]:
    """Return the visual tokens of each look that a reply tells of."""
    second = routing.get("second_look")
    if second is None:
        return [routing["visual_tokens"]]
    return [second["first_visual_tokens"], second["second_visual_tokens"]]


def bare(model: Path, looks: list[list[dict[str, Any]]], seconds: float) -> dict[str, float]:
    """Return what the engine alone takes for them."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "looks.json"
        file.write_text(json.dumps(looks), encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(BARE), str(model), str(file), str(CLIENTS), str(seconds)],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
    return {name: round(value, 2) for name, value in json.loads(done.stdout).items()}


def measure(
    modes: list[str], model: Path | None, workloads: dict[str, list[dict[str, Any]]], seconds: float
) -> dict[str, Any]:
    """Return workload -> mode -> figures, the engine alone beside the first mode."""
    report: dict[str, Any] = {name: {} for name in workloads}
    for mode in modes:
        flags, environment = MODES[mode]
        model_flags = () if model is None else ("--model", str(model))
        with running(*flags, *model_flags, port=free_port(), **environment) as service:
            if mode == modes[0]:
                looks = {name: looks_of(service, asked) for name, asked in plain(workloads).items()}
            for name, asked in workloads.items():
                # Every picture once: they are in the cache now.
                service.load([body | {"max_tokens": 1} for body in asked], CLIENTS, 0)
                report[name][mode] = service.load(asked, CLIENTS, seconds)
                print(row(name, mode, report[name][mode]), flush=True)
        if mode == modes[0]:
            for name, found in looks.items():
                report[name]["engine_alone"] = bare(model or default_model_path(), found, seconds)
                print(row(name, "engine_alone", report[name]["engine_alone"]), flush=True)
    return report


def plain(workloads: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Return the workloads that do not stream."""
    return {name: asked for name, asked in workloads.items() if not asked[0]["stream"]}


def row(workload: str, mode: str, figures: dict[str, float]) -> str:
    """Return a line of the table."""
    columns = ("requests_per_s", "p50_ms", "p95_ms", "p99_ms", "first_token_p50_ms", "cpu_ms")
    cells = "".join(f"{figures[c]:>10.1f}" if c in figures else f"{'':>10}" for c in columns)
    return f"{workload:<12}{mode:<16}{cells}"


def ratios(small: dict[str, Any], heavy: dict[str, Any]) -> dict[str, float]:
    """Return the figures that are aimed at, of the modes that were measured."""
    found: dict[str, float] = {}
    routed = small["routed"]
    if "in_process" in routed:
        here, alone = routed["in_process"], routed["engine_alone"]
        found["in_process_cpu_ms_beside_the_engine"] = here["cpu_ms"] - alone["cpu_ms"]
        always = small["always_576"]["in_process"]
        found["routed_over_always_576_time_a_request"] = (
            always["requests_per_s"] / here["requests_per_s"]
        )
        found["routed_over_always_576_cpu"] = here["cpu_ms"] / always["cpu_ms"]
        ray = [figures["cpu_ms"] for mode, figures in routed.items() if mode.startswith("ray")]
        if ray:
            found["best_ray_over_in_process_cpu"] = min(ray) / here["cpu_ms"]
    if heavy:
        modes = heavy["heavy_576"]
        alone = modes["engine_alone"]["cpu_ms"]
        found["heavy_engine_cpu_ms"] = alone
        for mode, figures in modes.items():
            if mode != "engine_alone":
                found[f"heavy_{mode}_over_engine_cpu"] = figures["cpu_ms"] / alone
    return {name: round(value, 3) for name, value in found.items()}


def main() -> None:
    parser = arguments(__doc__, "two modes, two seconds each")
    parser.add_argument("--only", action="append", choices=list(MODES), help="one of the modes")
    args = parser.parse_args()
    seconds = 2.0 if args.quick else 8.0
    modes = args.only or (["in_process", "ray_default"] if args.quick else list(MODES))
    print(f"{'workload':<12}{'mode':<16}{'req/s':>10}{'p50 ms':>10}{'p95':>10}{'p99':>10}"
          f"{'first':>10}{'CPU ms':>10}")  # fmt: skip
    workloads = {name: bodies(model, 16) for name, model in WORKLOADS.items()}
    workloads["streamed"] = bodies("m3-auto", 16, stream=True)
    small = measure(modes, None, workloads, seconds)
    with tempfile.TemporaryDirectory() as folder:
        model, processor = build_model(HEAVY_WIDTH, HEAVY_LAYERS)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        asked = bodies("m3-576", HEAVY_TOKENS)
        heavy = measure(modes, Path(folder), {"heavy_576": asked}, seconds)
    report = {
        "clients": CLIENTS,
        "scenes": SCENES,
        "ratios": ratios(small, heavy),
        "workloads": small | heavy,
    }
    for name, value in report["ratios"].items():
        print(f"{name:<45}{value:>8.3f}")
    write(report, args.json)


if __name__ == "__main__":
    main()
