"""Capacity plans against figures computed outside this repository for LLaVA-1.5-7B."""

from __future__ import annotations

import pytest

from m3model.capacity import measured_cpu, plan
from m3model.config import llava_shape
from m3model.cost import HARDWARE
from m3model.tiny import tiny_config

MIX = {1: 30, 9: 25, 36: 20, 144: 15, 576: 10}
# Device, answer tokens, batch; requests a second of the mix and of all-576, encoded and cached.
TABLE = [
    ("NVIDIA H200", 16, 16, 173.8, 190.1, 67.8, 70.2),
    ("NVIDIA H200", 16, 64, 278.2, 322.6, 79.5, 82.7),
    ("NVIDIA H200", 16, 256, 327.4, 390.6, 83.1, 86.6),
    ("NVIDIA H200", 32, 64, 214.6, 240.0, 68.5, 70.9),
    ("NVIDIA A100 80GB", 16, 64, 93.7, 109.7, 26.0, 27.1),
    ("NVIDIA A100 80GB", 32, 64, 75.2, 85.2, 23.0, 23.9),
]
# Requests that fit: device, scale, answer tokens.
FITS = [
    ("NVIDIA H200", 576, 16, 331), ("NVIDIA H200", 144, 16, 1048), ("NVIDIA H200", 1, 32, 2873),
    ("NVIDIA A100 80GB", 576, 16, 166), ("NVIDIA A100 80GB", 9, 32, 1297),
]  # fmt: skip


@pytest.mark.parametrize(("device", "answer", "batch", "mix", "cached", "finest", "kept"), TABLE)
def test_requests_a_second(
    device: str, answer: int, batch: int, mix: float, cached: float, finest: float, kept: float
) -> None:
    made = plan(llava_shape("7b"), HARDWARE[device], MIX, answer_tokens=answer, max_batch=batch)
    assert made.load.batch == made.finest.batch == batch
    assert made.load.with_encode == pytest.approx(mix, rel=0.05)
    assert made.load.features_cached == pytest.approx(cached, rel=0.05)
    assert made.finest.with_encode == pytest.approx(finest, rel=0.01)
    assert made.finest.features_cached == pytest.approx(kept, rel=0.01)
    assert made.ratio == made.load.with_encode / made.finest.with_encode


@pytest.mark.parametrize(("device", "scale", "answer", "fits"), FITS)
def test_requests_that_fit(device: str, scale: int, answer: int, fits: int) -> None:
    made = plan(llava_shape("7b"), HARDWARE[device], {scale: 1}, answer_tokens=answer)
    assert made.load.fits == pytest.approx(fits, rel=0.005)
    assert made.load.batch == min(256, made.load.fits)
    assert made.mean_visual_tokens == scale


def test_the_finest_scale_alone_is_its_own_measure() -> None:
    made = plan(llava_shape("13b"), HARDWARE["NVIDIA H100 SXM"], {576: 3})
    assert made.load == made.finest
    assert made.ratio == 1


@pytest.mark.parametrize("mix", [{}, {1: 0.0}, {1: -1.0, 9: 2.0}, {1: float("nan")}, {2: 1.0}])
def test_bad_mixes(mix: dict[int, float]) -> None:
    with pytest.raises(ValueError, match=r"mix needs|unknown scale"):
        plan(llava_shape("7b"), HARDWARE["NVIDIA H200"], mix)


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has room for 21\.6 GB"):
        plan(llava_shape("13b"), HARDWARE["NVIDIA L4"], MIX)


def test_a_cpu_is_measured() -> None:
    cpu = measured_cpu(1)
    assert 1e8 < cpu.flops_per_second < 1e14
    assert 1e8 < cpu.bytes_per_second < 1e13
    assert cpu.value_bytes == 4
    assert plan(tiny_config(64), cpu, MIX).ratio > 1
