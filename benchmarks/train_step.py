"""One M3 training step, ours beside the official way: time (CPU: process time), peak memory.

The official way runs the vision tower once per scale and holds every scale's graph until one
backward pass; ours encodes once and takes each scale back before the next begins. Both compute the
same loss and the same gradients (held by a test). Every way runs in a process of its own, because a
process's peak memory never falls again. On a GPU the peak is that of the CUDA allocator.

    python benchmarks/train_step.py [--json PATH] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from _result import arguments, write

WAYS = ("official", "one vision pass, all graphs held", "one vision pass, scale by scale")


def build(quick: bool) -> Any:
    """Return a small random M3 whose tower and language model weigh about the same per token."""
    import torch

    from m3model import M3Config, M3ForConditionalGeneration

    torch.manual_seed(0)
    width, layers = (128, 4) if quick else (256, 8)
    vision = {
        "model_type": "clip_vision_model", "hidden_size": width, "intermediate_size": 4 * width,
        "num_hidden_layers": layers, "num_attention_heads": width // 64, "image_size": 336,
        "patch_size": 14, "projection_dim": width,
    }  # fmt: skip
    text = {
        "model_type": "llama", "vocab_size": 4096, "hidden_size": width,
        "intermediate_size": 3 * width, "num_hidden_layers": layers,
        "num_attention_heads": width // 64, "num_key_value_heads": width // 64,
    }  # fmt: skip
    config = M3Config(vision_config=vision, text_config=text, image_token_index=4095)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return M3ForConditionalGeneration(config).to(device).train()


def batch_for(model: Any, rows: int, text_tokens: int) -> dict[str, Any]:
    """Return rows of one picture and ``text_tokens`` tokens; the last eight are the answer."""
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 4000, (rows, text_tokens), generator=generator)
    ids[:, 1] = model.config.image_token_id
    labels = ids.clone()
    labels[:, :-8] = -100
    pixels = torch.randn(rows, 3, 336, 336, generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return {k: v.to(model.device) for k, v in {**batch, "pixel_values": pixels}.items()}


def step(way: str, model: Any, batch: dict[str, Any]) -> float:
    """Return the loss of one step of forward and backward passes."""
    import torch

    from training.finetune.train import multi_scale_backward, multi_scale_loss

    model.zero_grad(set_to_none=True)
    if way == WAYS[0]:
        losses = [model(**batch, scale=scale).loss for scale in model.config.scales]
        loss = torch.stack(losses).mean()
        loss.backward()
    elif way == WAYS[1]:
        loss = multi_scale_loss(model, batch)
        loss.backward()
    else:
        loss = multi_scale_backward(model, batch, torch.Tensor.backward)
    return float(loss.detach())


def measure(way: str, rows: int, repeats: int, quick: bool) -> dict[str, Any]:
    """Return time and peak memory of a way; called in a process of its own."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    model = build(quick)
    batch = batch_for(model, rows, 64)
    on_gpu = model.device.type == "cuda"
    # What is there before the first step (libraries, weights, gradients, batch) is not the step's.
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = torch.cuda.memory_allocated() if on_gpu else _peak_rss()
    vision: list[int] = []
    model.model.vision_tower.register_forward_hook(lambda *_: vision.append(1))
    seconds, loss = [], 0.0
    for _ in range(repeats + 1):
        # On a CPU: time of this process only, so that neighbours on the machine do not count.
        clock = time.perf_counter if on_gpu else time.process_time
        started = clock()
        loss = step(way, model, batch)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(clock() - started)
    peak = torch.cuda.max_memory_allocated() if on_gpu else _peak_rss()
    return {
        "way": way,
        "seconds": statistics.median(seconds[1:]),
        "step_memory_mib": (peak - before) / 2**20,
        "peak_memory_mib": peak / 2**20,
        "vision_passes": len(vision) / (repeats + 1),
        "loss": loss,
    }


def _peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(rows: int, repeats: int, quick: bool) -> dict[str, Any]:
    """Return the measurement of every way, each from its own process."""
    import torch

    found = []
    for way in WAYS:
        command = [sys.executable, __file__, "--one", way, "--rows", str(rows)]
        command += ["--repeats", str(repeats), *(["--quick"] if quick else [])]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(result.stdout.strip().splitlines()[-1]))
    first = found[0]
    for row in found:
        row["time_ratio"] = row["seconds"] / first["seconds"]
        row["step_memory_ratio"] = row["step_memory_mib"] / first["step_memory_mib"]
    cuda = torch.cuda.is_available()
    return {
        "benchmark": "train_step",
        "device": torch.cuda.get_device_name() if cuda else "cpu, fp32",
        "threads": int(os.environ.get("OMP_NUM_THREADS", "1")),
        "torch": torch.__version__,
        "rows": rows,
        "repeats": repeats,
        "quick": quick,
        "ways": found,
    }


def main() -> None:
    """Print the table and write it where asked."""
    parser = arguments(__doc__, quick="a smaller model, fewer repeats")
    parser.add_argument("--rows", type=int, help="conversations a step")
    parser.add_argument("--repeats", type=int, help="timed steps")
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    rows, repeats = (
        given.rows or (2 if given.quick else 4),
        given.repeats or (2 if given.quick else 5),
    )
    if given.one:
        print(json.dumps(measure(given.one, rows, repeats, given.quick)))
        return
    result = run(rows, repeats, given.quick)
    print(f"{result['device']}, {result['threads']} thread(s), {rows} conversations a step")
    print(
        f"{'way':36}{'s/step':>8}{'ratio':>7}{'step MiB':>10}{'ratio':>7}{'vision':>8}{'loss':>9}"
    )
    for row in result["ways"]:
        print(
            f"{row['way']:36}{row['seconds']:8.2f}{row['time_ratio']:7.2f}"
            f"{row['step_memory_mib']:10.0f}{row['step_memory_ratio']:7.2f}"
            f"{row['vision_passes']:8.0f}{row['loss']:9.4f}"
        )
    write(result, given.json)


if __name__ == "__main__":
    main()
