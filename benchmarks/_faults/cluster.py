"""The service on a small Ray cluster, its replicas by name, and what can be done to them.

Knows Ray; knows nothing of requests or faults.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
from _faults import inside
from ray import cloudpickle, serve
from ray.actor import ActorHandle
from ray.exceptions import RayActorError
from ray.serve._private.common import DeploymentID
from ray.serve.context import _get_global_client

from m3model import M3Config
from m3model.tiny import write_tiny_checkpoint
from router import ComplexityPredictor, Policy, Router, feature_schema
from serve.on_ray.app import APP_NAME, build_app, logging_config
from serve.on_ray.cluster import local_cluster
from serve.on_ray.service import http_options, wait_until_running
from serve.settings import DeploymentSettings, ServeSettings
from serve.web.listening import bind
from training.registry.journal import append, read_state

cloudpickle.register_pickle_by_value(inside)  # the replicas do not know this folder
SCALES = (1, 9, 36, 144, 576)
LOOK_S = 0.05
LONGEST_RECOVERY_S = 120.0


@dataclass(frozen=True)
class Strike:
    """What the victim had in its hands, and when it was hit."""

    in_flight: int
    at: float


@dataclass(frozen=True)
class Replica:
    """A running replica."""

    name: str  # of its actor
    pid: int

    @property
    def actor(self) -> ActorHandle[Any]:
        """Return the replica's actor."""
        return ray.get_actor(self.name, namespace="serve")


class Cluster:
    """The running service.

    Args:
        url: of the service.
        folder: for notes and routers.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self._notes = 0

    @property
    def controller(self) -> ActorHandle[Any]:
        """Return Ray Serve's controller."""
        return _get_global_client()._controller

    def details(self) -> dict[str, Any]:
        """Return what the controller says of everything."""
        found: dict[str, Any] = ray.get(self.controller.get_serve_instance_details.remote())
        return found

    def replicas(self, deployment: str) -> list[Replica]:
        """Return the replicas that run."""
        found = self.details()["applications"][APP_NAME]["deployments"][deployment]["replicas"]
        return [
            Replica(each["actor_name"], each["pid"])
            for each in found
            if str(each["state"].value) == "RUNNING"
        ]

    def strike(self, victim: ActorHandle[Any], kind: str) -> Strike:
        """Hurt a replica or a proxy when it is busy; see `inside.hurt`."""
        self._notes += 1
        note = self.folder / f"note-{self._notes}.json"
        with suppress(RayActorError):  # it may be gone before it can say so; the note is there
            ray.get(victim.__ray_call__.remote(inside.hurt, kind, str(note)))
        while not note.exists():
            time.sleep(0.002)
        found = json.loads(note.read_text("utf-8"))
        return Strike(found["in_flight"], found["at"])

    def kill(self, actor: ActorHandle[Any]) -> int:
        """End an actor's process as hard as can be; return its number."""
        number: int = ray.get(actor.__ray_call__.remote(inside.pid))
        os.kill(number, signal.SIGKILL)
        return number

    def in_hand(self, deployment: str) -> int:
        """Return how many requests the deployment's replicas are working on."""
        asked = [
            each.actor.__ray_call__.remote(inside.in_flight) for each in self.replicas(deployment)
        ]
        return sum(ray.get(asked))

    def until_without(self, deployment: str, victim: Replica, wanted: int) -> tuple[float, float]:
        """Return when the victim was out of service, and when as many as wanted ran without it."""
        out = None
        limit = time.time() + LONGEST_RECOVERY_S
        while time.time() < limit:
            running = self.replicas(deployment)
            if out is None and victim.name not in [each.name for each in running]:
                out = time.time()
            if out is not None and len(running) == wanted:
                return out, time.time()
            time.sleep(LOOK_S)
        raise TimeoutError(f"{deployment} did not recover within {LONGEST_RECOVERY_S:g} s")

    def scale(self, deployment: str, replicas: int) -> None:
        """Have so many replicas of a deployment; return when they run and nobody else."""
        wanted = self.controller.update_deployment_replicas.remote(
            DeploymentID(deployment, APP_NAME), replicas
        )
        ray.get(wanted)
        while True:
            app = self.details()["applications"][APP_NAME]
            found = app["deployments"][deployment]["replicas"]
            if len(found) == replicas == len(self.replicas(deployment)):
                return
            time.sleep(LOOK_S)


def make_routers(folder: Path, model: Path) -> None:
    """Write routers that always choose 9 and 36, "r9" and "r36", and one that is damaged."""
    config = M3Config.from_pretrained(model)
    schema = feature_schema(SCALES, config.grid_side, config.hidden_size)
    features = np.random.default_rng(0).standard_normal((40, len(schema.names)))
    for favourite in (9, 36):
        suffices = np.tile([scale >= favourite for scale in SCALES], (len(features), 1))
        predictor = ComplexityPredictor().fit(features.astype(np.float32), suffices)
        policy = Policy(costs=tuple(scale / SCALES[-1] for scale in SCALES), price=0.1)
        Router(predictor, schema, policy).save_pretrained(folder / f"r{favourite}")
    (folder / "damaged").mkdir()
    (folder / "damaged" / "config.json").write_text("{}")


def promote(registry: Path, name: str) -> None:
    """Put a router that lies in the registry in force, sound or not."""
    state = read_state(registry)
    assert append(registry, state, state.next("promote", state.current, name, "", ""))


@contextmanager
def running(folder: Path, replicas: int = 2) -> Iterator[Cluster]:
    """The service with so many replicas of each part, on a cluster of its own."""
    model = write_tiny_checkpoint(folder / "model")
    registry = folder / "registry"
    make_routers(registry, model)
    each = DeploymentSettings(replicas=replicas)
    settings = ServeSettings(
        model=model, router=registry / "r36", registry=registry, log_dir=folder / "log",
        gateway=each, encoder=each, generator=each,
    )  # fmt: skip
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    with local_cluster():
        serve.start(
            proxy_location="HeadOnly", http_options=http_options(settings, "127.0.0.1", port),
            logging_config=logging_config(settings),
        )  # fmt: skip
        target = serve.RunTarget(
            build_app(settings),
            APP_NAME,
            "/",
            logging_config=logging_config(settings),
            external_scaler_enabled=True,
        )
        serve.run_many([target], wait_for_applications_running=False)
        wait_until_running(threading.Event())
        yield Cluster(f"http://127.0.0.1:{port}", folder)
