"""The cost formula against computed figures for LLaVA-1.5-7B, and the paper's Table 9."""

from __future__ import annotations

import pytest

from m3model import M3Config, request_cost
from m3model.config import llava_shape
from m3model.cost import (
    HARDWARE,
    encode_flops,
    prefill_flops,
    projector_flops,
    request_seconds,
)
from m3model.tiny import tiny_config


@pytest.fixture(scope="module")
def llava_7b() -> M3Config:
    return llava_shape("7b")


@pytest.mark.parametrize(
    ("scale", "tera_flops", "kv_mib"),
    [
        (576, 8.078, 308.0),
        (144, 2.392, 92.0),
        (36, 0.986, 38.0),
        (9, 0.636, 24.5),
        (1, 0.532, 20.5),
    ],
)
def test_prefill_and_cache(
    llava_7b: M3Config, scale: int, tera_flops: float, kv_mib: float
) -> None:
    cost = request_cost(llava_7b, scale, text_tokens=40, answer_tokens=16)
    assert cost.prefill_flops == pytest.approx(tera_flops * 1e12, rel=0.003)
    assert cost.kv_bytes / 2**20 == pytest.approx(kv_mib)
    assert cost.flops == cost.encode_flops + cost.prefill_flops + cost.decode_flops


def test_encode(llava_7b: M3Config) -> None:
    projector = projector_flops(llava_7b)
    assert projector == pytest.approx(24e9, rel=0.03)
    assert encode_flops(llava_7b) - projector == pytest.approx(366e9, rel=0.003)


@pytest.mark.parametrize(
    ("scale", "printed", "computed"),
    [(576, 8.0, 8.04), (144, 2.2, 2.27), (36, 0.9, 0.86), (9, 0.5, 0.51), (1, 0.4, 0.40)],
)
def test_the_papers_table(llava_7b: M3Config, scale: int, printed: float, computed: float) -> None:
    """Table 9, 30 text tokens: the paper prints one digit after the point; the other figure was
    computed outside this repository and rounds to it."""
    flops = prefill_flops(llava_7b, scale + 30)
    assert flops == pytest.approx(computed * 1e12, rel=0.03)
    assert flops == pytest.approx(printed * 1e12, abs=0.08e12)


def test_decode_adds_up_step_by_step(llava_7b: M3Config) -> None:
    long = request_cost(llava_7b, 36, answer_tokens=10)
    short = request_cost(llava_7b, 36, answer_tokens=9)
    # The ninth step looks at 76 + 9 tokens: linear layers, head, and its own attention.
    attention = 4 * 4096 * 32 * (76 + 9)
    step = long.decode_flops - short.decode_flops
    assert step == pytest.approx(12.95e9 + 0.262e9 + attention, rel=1e-3)
    assert request_cost(llava_7b, 36, answer_tokens=1).decode_flops == 0


def test_cached_pictures_cost_no_encoding(llava_7b: M3Config) -> None:
    assert request_cost(llava_7b, 18, pictures=0).encode_flops == 0
    two = request_cost(llava_7b, 18, pictures=2)
    assert two.encode_flops == 2 * encode_flops(llava_7b)


def test_more_tokens_cost_more() -> None:
    config = tiny_config(64)
    costs = [request_cost(config, scale).flops for scale in config.scales]
    assert costs == sorted(costs)


@pytest.mark.parametrize("counts", [(-1, 40, 8), (0, 0, 8), (9, 40, -1)])
def test_bad_counts(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="counts must not be negative"):
        request_cost(tiny_config(64), *counts)


# Milliseconds of one request alone, 16 answer tokens, computed by hand outside this repository:
# device, scale, encode, prefill, all.
ALONE = [
    ("NVIDIA H200", 576, 0.49, 10.23, 58.0),
    ("NVIDIA H200", 144, 0.49, 3.07, 50.0),
    ("NVIDIA H200", 1, 0.49, 3.07, 49.8),
    ("NVIDIA A100 80GB", 576, 1.56, 32.31, 149.9),
    ("NVIDIA A100 80GB", 9, 1.56, 7.55, 122.6),
]


@pytest.mark.parametrize(("device", "scale", "encode", "prefill", "total"), ALONE)
def test_a_request_alone_takes_the_hand_computed_time(
    llava_7b: M3Config, device: str, scale: int, encode: float, prefill: float, total: float
) -> None:
    took = request_seconds(llava_7b, scale, HARDWARE[device], 40, 16, batch=1)
    assert took.encode * 1e3 == pytest.approx(encode, rel=0.01)
    assert took.prefill * 1e3 == pytest.approx(prefill, rel=0.01)
    assert took.total * 1e3 == pytest.approx(total, rel=0.005)


@pytest.mark.parametrize(("scale", "prefill", "step"), [(576, 10.23, 7.94), (9, 0.80, 3.52)])
def test_a_batch_shares_the_weights(
    llava_7b: M3Config, scale: int, prefill: float, step: float
) -> None:
    took = request_seconds(llava_7b, scale, HARDWARE["NVIDIA H200"], 40, 16, batch=64)
    assert took.prefill * 1e3 == pytest.approx(prefill, rel=0.01)
    assert took.decode * 1e3 == pytest.approx(15 * step / 64, rel=0.01)


def test_cached_pictures_take_no_encoding_and_batches_hold_someone(llava_7b: M3Config) -> None:
    device = HARDWARE["NVIDIA H100 SXM"]
    assert request_seconds(llava_7b, 9, device, pictures=0).encode == 0.0
    with pytest.raises(ValueError, match="at least one request"):
        request_seconds(llava_7b, 9, device, batch=0)
