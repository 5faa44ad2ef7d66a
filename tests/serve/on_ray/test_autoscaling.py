"""How many replicas tokens ask for: hand-worked, and through Ray's own configuration."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from serve.on_ray.autoscaling import autoscaling_config, wanted_replicas
from serve.on_ray.outstanding import OUTSTANDING, USUAL, Workload
from serve.settings import AutoscalingSettings, DeploymentSettings, ServeSettings


@pytest.mark.parametrize(
    ("outstanding", "usual", "queued", "replicas"),
    [
        # 640 tokens are a request at 576 with 64 to answer; 2,000 for each replica.
        ([], [], 0, 1),  # nothing is going on; never none
        ([640.0, 640.0], [640.0, 640.0], 0, 1),  # 1,280
        ([2000.0], [640.0], 0, 1),  # as much as there should be
        ([2000.1], [640.0], 0, 2),
        ([65.0 * 20], [65.0], 0, 1),  # 20 requests at one token: 1,300
        ([640.0 * 20], [640.0], 0, 7),  # 20 requests at 576: 12,800
        ([0.0], [65.0], 40, 2),  # 40 x 65 = 2,600 wait outside
        ([0.0, 0.0], [640.0, 0.0], 10, 4),  # one replica is new: 10 x 640 = 6,400
        ([], [], 10, 4),  # both are: 10 x 640, taken for the largest
        ([1000.0], [100.0], -0.5, 1),  # Ray's averages may be off
        ([2000.0000000001], [640.0], 0, 1),
    ],
)
def test_replicas_by_tokens(
    outstanding: list[float], usual: list[float], queued: float, replicas: int
) -> None:
    assert wanted_replicas(outstanding, usual, queued, 640.0, 2000.0) == replicas


def context(config: AutoscalingConfig, **metrics: dict[Any, float]) -> AutoscalingContext:
    return AutoscalingContext(
        DeploymentID("generator", "m3"), "generator", "m3", 2, 2, [], 0.0, 3.0,
        metrics or None, None, 1, 9, {}, None, None, 0.0, config,
    )  # fmt: skip


def test_ray_finds_and_asks_the_policy() -> None:
    settings = AutoscalingSettings(max_replicas=9, target_tokens=1000.0, upscale_delay_s=20.0)
    config = autoscaling_config(settings, 640)
    assert (config.min_replicas, config.max_replicas) == (1, 9)
    assert (config.upscale_delay_s, config.downscale_delay_s) == (20.0, 300.0)
    assert config.look_back_period_s == 20.0
    policy = _resolve_policy_callable(config.policy)
    assert policy(context(config)) == (2, {})  # 3 wait, 640 each
    told = {OUTSTANDING: {"a": 1500.0, "b": 2000.0}, USUAL: {"a": 100.0, "b": 200.0}}
    assert policy(context(config, **told)) == (4, {})  # 3,500 + 3 x 150


def test_a_replica_tells_plain_floats_of_what_it_has() -> None:
    load = Workload()
    with load.taken(640):
        with load.taken(9):
            assert load.stats() == {OUTSTANDING: 649.0, USUAL: 324.5}
        stats = load.stats()
    assert stats == {OUTSTANDING: 640.0, USUAL: 324.5}
    assert {type(value) for value in stats.values()} == {float}  # others end Ray's listening
    for _ in range(500):
        with load.taken(100):
            pass
    assert load.stats()[OUTSTANDING] == 0.0
    assert load.stats()[USUAL] == pytest.approx(100.0, abs=0.01)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"replicas": 2, "autoscaling": {"max_replicas": 2, "target_tokens": 9.0}}, "exclude each"),
        ({"autoscaling": {"max_replica": 2, "target_tokens": 9.0}}, "max_replica"),
        ({"autoscaling": {"max_replicas": 1, "min_replicas": 2, "target_tokens": 9.0}}, "is below"),
        ({"autoscaling": {"max_replicas": 2, "target_tokens": 0.0}}, "greater than 0"),
        ({"autoscaling": {"max_replicas": 2}}, "target_tokens"),
        ({"autoscaling": {"max_replicas": 2, "min_replicas": 0, "target_tokens": 9.0}}, "min_repl"),
    ],
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DeploymentSettings.model_validate(wrong)


def test_gateways_are_not_scaled_by_tokens() -> None:
    scaled = {"autoscaling": {"max_replicas": 2, "target_tokens": 9.0}}
    with pytest.raises(ValidationError, match=r"gateway\.replicas"):
        ServeSettings.model_validate({"gateway": scaled})
    assert ServeSettings.model_validate({"encoder": scaled}).encoder.autoscaling is not None
