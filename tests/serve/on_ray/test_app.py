"""The Ray Serve application as YAML names it: arguments are settings, mistakes are errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.build_app import build_app as unfold

from serve.on_ray.app import build_app


def deployments(**arguments: object) -> dict[str, object]:
    app = call_user_app_builder_with_args_if_necessary(build_app, arguments)
    return {each.name: each for each in unfold(app, name="m3").deployments}


def test_the_application_is_gateway_encoder_generator(tiny_model: Path) -> None:
    found = deployments(
        model=str(tiny_model), generator={"replicas": 3, "num_gpus": 0.5, "max_ongoing_requests": 9}
    )
    assert set(found) == {"gateway", "encoder", "generator"}
    generator = found["generator"]
    assert generator.num_replicas == 3  # type: ignore[attr-defined]
    assert generator.ray_actor_options["num_gpus"] == 0.5  # type: ignore[attr-defined]
    for each in found.values():
        assert each.max_queued_requests > 0  # type: ignore[attr-defined]
    assert generator.max_ongoing_requests == 9  # type: ignore[attr-defined]
    assert found["encoder"].ray_actor_options["num_cpus"] == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "wrong", [{"modell": "x"}, {"generator": {"replica": 2}}, {"audit_rate": "much"}]
)
def test_a_misspelt_argument_is_an_error(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        deployments(**wrong)
