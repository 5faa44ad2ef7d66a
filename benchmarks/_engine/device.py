"""The engine on a device with the shape of LLaVA-1.5-7B: prefill, decode, first token, requests a
second, per scale and for the mix, beside the roofline and beside `generate` in static batches.

Random weights: cost does not depend on values. Any device and shape will do, so the code is run on
small ones too.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from _engine.baselines import requests_per_second, serve_engine, serve_static
from _engine.workload import ANSWER_TOKENS, MIX, QUESTION_TOKENS, draw_requests
from transformers import GenerationConfig

from m3model import LocalEngine, M3Config, M3ForConditionalGeneration, M3Processor
from m3model.config import llava_shape
from m3model.cost import HARDWARE, Hardware, language_bytes, request_cost, request_seconds
from m3model.processing import build_image_processor
from m3model.prompt.vocabulary import build_tokenizer

TEXT = sum(QUESTION_TOKENS) // 2 - 1
ANSWER = sum(ANSWER_TOKENS) // 2


def hardware_named(name: str) -> Hardware:
    """The roofline of a device by the name that it gives itself.

    Raises:
        LookupError: an unknown device; its figures belong in `m3model.cost`.
    """
    for words, hardware in (("H200", "NVIDIA H200"), ("H100", "NVIDIA H100 SXM"),
                            ("A100", "NVIDIA A100 80GB"), ("L4", "NVIDIA L4")):  # fmt: skip
        if words in name:
            return HARDWARE[hardware]
    raise LookupError(f"no roofline for {name}")


def random_model(config: M3Config, device: str, dtype: torch.dtype) -> M3ForConditionalGeneration:
    """A model of this shape whose answers never end by themselves."""
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = M3ForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    model.generation_config = GenerationConfig(bos_token_id=1, pad_token_id=0)
    model.config.text_config.eos_token_id = None
    return model


def device_figures(
    config: M3Config | None = None,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    hardware: Hardware | None = None,
    *,
    count: int = 400,
    batch: int = 64,
) -> dict[str, Any]:
    """All figures; milliseconds and requests a second."""
    hardware = hardware or hardware_named(torch.cuda.get_device_name())
    config = config or llava_shape("7b")
    model = random_model(config, device, dtype)
    tokenizer = build_tokenizer([f"word{i}" for i in range(1000)])
    size = config.vision_config.image_size
    processor = M3Processor(build_image_processor(size), tokenizer)
    scales: dict[str, Any] = {}
    for scale in config.scales:
        scales[str(scale)] = _one_scale(model, processor, scale, hardware, count // 4, batch)
    asks = draw_requests(model, count, 1)
    mix = _rate(model, processor, asks, batch)
    finest = _rate(model, processor, draw_requests(model, count, 1, scale=config.scales[-1]), batch)
    static = requests_per_second(serve_static(model, asks, batch=batch, mixed=False))
    bound = {
        scale: request_seconds(config, scale, hardware, TEXT, ANSWER, pictures=0, batch=batch).total
        for scale in config.scales
    }
    routed = 1 / sum(share * bound[scale] for scale, share in MIX.items())
    flops = sum(
        share * request_cost(config, scale, TEXT, ANSWER, pictures=0).flops
        for scale, share in MIX.items()
    )
    steps = ANSWER - 1
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "roofline": hardware.name,
        "batch": batch,
        "scales": scales,
        "mix_requests_per_second": mix,
        "all_finest_requests_per_second": finest,
        "static_per_scale_requests_per_second": static,
        "roofline_mix_requests_per_second": routed,
        "routed_vs_finest": {
            "measured": mix / finest,
            "analytic": routed * bound[config.scales[-1]],
        },
        "share_of_compute": mix * flops / hardware.flops_per_second,
        "share_of_bandwidth_for_weights": mix
        * steps / batch
        * language_bytes(config, hardware.value_bytes)
        / hardware.bytes_per_second,
    }  # fmt: skip


def _rate(model: Any, processor: M3Processor, asks: list[Any], batch: int) -> float:
    engine = LocalEngine(model, processor, max_running=batch)
    rate = requests_per_second(serve_engine(engine, asks))
    engine.close()
    return rate


def _one_scale(
    model: M3ForConditionalGeneration,
    processor: M3Processor,
    scale: int,
    hardware: Hardware,
    count: int,
    batch: int,
) -> dict[str, float]:
    """One request alone (the quickest of five), then many."""
    engine = LocalEngine(model, processor, max_running=batch)
    best = dict.fromkeys(("first", "token"), float("inf"))
    for ask in draw_requests(model, 20, 2, scale=scale)[:5]:
        time.sleep(0.01)
        served = serve_engine(engine, [ask])[ask.name]
        best["first"] = min(best["first"], served.first - served.asked)
        token = (served.done - served.first) / max(ask.answer_tokens - 1, 1)
        best["token"] = min(best["token"], token)
    asks = draw_requests(model, count, 3, scale=scale)
    rate = requests_per_second(serve_engine(engine, asks))
    engine.close()
    alone = request_seconds(model.config, scale, hardware, TEXT, 2, pictures=0, batch=1)
    many = request_seconds(model.config, scale, hardware, TEXT, ANSWER, pictures=0, batch=batch)
    return {
        "first_token_ms": 1e3 * best["first"],
        "roofline_prefill_ms": 1e3 * alone.prefill,
        "decode_ms": 1e3 * best["token"],
        "roofline_decode_ms": 1e3 * alone.decode,
        "requests_per_second": rate,
        "roofline_requests_per_second": 1 / many.total,
        "static_requests_per_second": requests_per_second(
            serve_static(model, asks, batch=batch, mixed=False)
        ),
    }
