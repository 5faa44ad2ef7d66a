"""The Ray Serve application as YAML names it: arguments are settings, mistakes are errors."""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import ValidationError
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.build_app import build_app as unfold
from ray.serve.config import HTTPOptions

from serve.errors import ServeSetupError
from serve.in_process import server_config
from serve.on_ray.app import build_app
from serve.on_ray.service import http_options
from serve.settings import API_KEYS_VARIABLE, ServeSettings
from serve.tenants.keys import Key


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


def test_what_a_replica_has_begun_it_may_end(tiny_model: Path) -> None:
    for drain_s, request_timeout_s in ((20.0, 120.0), (300.0, 60.0)):
        limits = {"drain_s": drain_s, "request_timeout_s": request_timeout_s}
        for each in deployments(model=str(tiny_model), **limits).values():
            granted = each._deployment_config.graceful_shutdown_timeout_s  # type: ignore[attr-defined]
            assert granted > max(drain_s, request_timeout_s)


def test_connections_outlive_the_pools_in_front() -> None:
    settings = ServeSettings()
    assert settings.keep_alive_s >= 75  # nginx keeps its own for 60 s
    here = server_config(FastAPI(), settings)
    there = HTTPOptions(**http_options(settings, "127.0.0.1", 8000))
    assert here.timeout_keep_alive == there.keep_alive_timeout_s == settings.keep_alive_s
    assert there.request_timeout_s > settings.request_timeout_s  # type: ignore[operator]


def test_digests_and_names_travel_and_a_file_must_be_right(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def carried(**more: str) -> object:
        return deployments(model=str(tiny_model), **more)["gateway"].init_args[1]  # type: ignore[attr-defined]

    monkeypatch.delenv(API_KEYS_VARIABLE, raising=False)
    assert carried() is None
    monkeypatch.setenv(API_KEYS_VARIABLE, " first,second ,,")
    digests = [hashlib.sha256(key).hexdigest() for key in (b"first", b"second")]
    assert carried() == tuple(Key(name=f"key-{n}", sha256=d) for n, d in enumerate(digests, 1))
    monkeypatch.delenv(API_KEYS_VARIABLE)
    file = tmp_path / "keys.yaml"
    file.write_text(f"- {{name: alice, sha256: {digests[0]}}}\n")
    assert carried(api_keys_file=str(file)) == (Key(name="alice", sha256=digests[0]),)
    file.unlink()
    with pytest.raises(ServeSetupError, match="cannot be read"):
        carried(api_keys_file=str(file))


@pytest.mark.parametrize(
    "wrong", [{"modell": "x"}, {"generator": {"replica": 2}}, {"audit_rate": "much"}]
)
def test_a_misspelt_argument_is_an_error(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        deployments(**wrong)


OPEN_DOOR = """
import os, sys
from ray import serve
from serve.errors import ServeSetupError
from serve.on_ray.app import build_app, proxy_host
from serve.on_ray.cluster import local_cluster
from serve.settings import ServeSettings

os.environ.pop("M3_API_KEYS", None)
settings = ServeSettings(model=sys.argv[1], registry=None, log_dir=None)
with local_cluster():
    assert proxy_host() is None
    build_app(settings)
    serve.start(http_options={"host": "0.0.0.0", "port": int(sys.argv[2])})
    try:
        build_app(settings)
    except ServeSetupError as error:
        print(error)
    os.environ["M3_API_KEYS"] = "a-key"
    build_app(settings)
print("built with keys")
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_proxy_that_others_reach_asks_for_keys_whoever_started_it(
    tiny_model: Path, python: Any
) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    done = python("-c", OPEN_DOOR, tiny_model, port)
    assert done.returncode == 0, done.stderr
    refusal, built = done.stdout.splitlines()
    assert "0.0.0.0 can be reached from other machines, and no API keys are set" in refusal
    assert built == "built with keys"
