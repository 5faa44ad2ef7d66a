"""Fixtures that several test files share: commands, a tiny model, routers for it, services.

Nothing here needs trained weights, the network or a GPU.
"""

from __future__ import annotations

import base64
import gc
import io
import logging
import os
import pkgutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

# Before numpy, torch or LightGBM start threads: what tests compute is too small to share, and
# threads that wait for one another burn the cores that other processes need.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("_TYPER_FORCE_DISABLE_TERMINAL", "1")  # no escape codes in captured help

import numpy as np
import pytest
from hypothesis import settings

# How long an example takes is the machine's affair.
settings.register_profile("any machine", settings(), deadline=None)
settings.load_profile("any machine")

ROOT = Path(__file__).resolve().parents[1]
SCALES = (1, 9, 36, 144, 576)
PROGRAMS = {
    "m3-serve": "serve.cli:main",
    "m3-train": "training.cli:main",
    "m3model.convert": "m3model.convert.checkpoint:main",
}
# What commands see of the terminal, and what they do not see of a developer's shell.
TERMINAL = {"COLUMNS": "250", "NO_COLOR": "1"}
NOT_PASSED_ON = ("M3_API_KEY", "M3_URL", "RAY_ADDRESS")
Finished = subprocess.CompletedProcess[str]


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keeps the garbage collector from reading what imports made, now and ever after.

    Hundreds of thousands of objects of torch and transformers live to the end; each full
    collection, of which pytest asks for several, would visit them all.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def command() -> Callable[..., Finished]:
    """Runs a program of `PROGRAMS` with arguments, in this process; returns how it ended."""

    def run(program: str, *arguments: object) -> Finished:
        main, argv = pkgutil.resolve_name(PROGRAMS[program]), [program, *map(str, arguments)]
        out, err, code = io.StringIO(), io.StringIO(), 0
        with _as_if_alone(argv), redirect_stdout(out), redirect_stderr(err):
            try:
                main()
            except SystemExit as ended:
                code = int(ended.code or 0)
        return Finished(argv, code, out.getvalue(), err.getvalue())

    return run


@contextmanager
def _as_if_alone(argv: list[str]) -> Iterator[None]:
    """Arguments, environment, logging and signals as a new process has them; then as before."""
    root = logging.getLogger()
    loggers = [root, *(logging.getLogger(name) for name in ("serve", "training", "m3model"))]
    levels, handlers = [logger.level for logger in loggers], root.handlers[:]
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    root.handlers[:] = []
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", argv)
            for name, value in TERMINAL.items():
                patch.setenv(name, value)
            for name in NOT_PASSED_ON:
                patch.delenv(name, raising=False)
            yield
    finally:
        root.handlers[:] = handlers
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for number, handler in signals.items():
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def python() -> Callable[..., Finished]:
    """Runs Python with arguments as a new process, where only that shows the truth."""
    kept = {name: value for name, value in os.environ.items() if name not in NOT_PASSED_ON}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))

    def run(*arguments: object) -> Finished:
        return subprocess.run(
            [sys.executable, *map(str, arguments)], cwd=ROOT,
            env=kept | TERMINAL | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model folder with all five scales."""
    from m3model.tiny import write_tiny_checkpoint

    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def vllm_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python whose environment holds a stand-in for vLLM, as far as anyone can tell."""
    folder = tmp_path_factory.mktemp("environment")
    (folder / "vllm.py").symlink_to(ROOT / "tests" / "m3model" / "engine" / "vllm" / "stand_in.py")
    python = folder / "python"
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{folder}" exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    return python


@pytest.fixture(scope="session")
def make_router(tiny_model: Path) -> Callable[[Path, int], str]:
    """Writes a router that always chooses the given scale; returns its version."""
    from m3model import M3Config
    from router import ComplexityPredictor, Policy, Router, feature_schema

    config = M3Config.from_pretrained(tiny_model)
    schema = feature_schema(SCALES, config.grid_side, config.hidden_size)
    random = np.random.default_rng(0)
    features = random.standard_normal((40, len(schema.names))).astype(np.float32)

    def make(folder: Path, favourite: int) -> str:
        suffices = np.tile([scale >= favourite for scale in SCALES], (len(features), 1))
        predictor = ComplexityPredictor().fit(features, suffices)
        policy = Policy(costs=tuple(scale / SCALES[-1] for scale in SCALES), price=0.1)
        router = Router(predictor, schema, policy)
        router.save_pretrained(folder)
        return router.version

    return make


@pytest.fixture(scope="session")
def make_focus_router(tiny_model: Path) -> Callable[..., Any]:
    """Writes a router of scales and foci; it chooses the named action, or else the finest scale."""
    from m3model import M3Config
    from router import Action, ActionSpace, ComplexityPredictor, Policy, Router, feature_schema
    from router.actions import CellRule

    space = ActionSpace(
        (
            Action("1", 1), Action("9", 9, base="1"),
            Action("9+144@500x12", 9, 144, CellRule(500, "none", 12), "9"),
            Action("36", 36, base="9"),
            Action("36+576@250rx48", 36, 576, CellRule(250, "ring", 48), "36"),
            Action("144", 144, base="36"), Action("576", 576, base="144"),
        )
    )  # fmt: skip
    config = M3Config.from_pretrained(tiny_model)
    schema = feature_schema(SCALES, config.grid_side, config.hidden_size)
    random = np.random.default_rng(0)
    features = random.standard_normal((40, len(schema.names))).astype(np.float32)

    @cache
    def fitted(favourite: str) -> ComplexityPredictor:
        suffices = np.tile([name in (favourite, "576") for name in space.names], (40, 1))
        return ComplexityPredictor().fit(features, suffices)

    def make(folder: Path, favourite: str, second_look: Any = None) -> Router:
        predictor = fitted(favourite)
        policy = Policy(costs=tuple(scale / SCALES[-1] for scale in SCALES), price=0.1)
        router = Router(predictor, schema, policy, second_look=second_look, space=space)
        router.save_pretrained(folder)
        return router

    return make


@pytest.fixture(scope="session")
def promote() -> Callable[[Path, Path | None], None]:
    """Puts a router folder that lies in a registry in force, sound or not; None: rolls all back."""
    from training.registry.journal import append, read_state

    def point(registry: Path, router: Path | None) -> None:
        state = read_state(registry)
        action, name = ("rollback", None) if router is None else ("promote", router.name)
        assert append(registry, state, state.next(action, state.current, name, "", ""))

    return point


@pytest.fixture(scope="session")
def restrict() -> Callable[[Path, Any], None]:
    """Holds what a registry has in force to a `router.registry.Restriction`; None: to nothing."""
    from training.registry.restrictions import restrict as hold

    def write(registry: Path, restriction: Any) -> None:
        hold(restriction, registry)

    return write


@pytest.fixture(scope="session")
def picture_bytes() -> Callable[..., bytes]:
    """Returns a PNG of noise made from a seed."""
    from PIL import Image

    def picture(seed: int = 0, size: tuple[int, int] = (64, 48)) -> bytes:
        random = np.random.default_rng(seed)
        pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    return picture


@pytest.fixture(scope="session")
def picture_url(picture_bytes: Callable[..., bytes]) -> Callable[..., str]:
    """Returns the data URL of such a picture."""

    def url(seed: int = 0, size: tuple[int, int] = (64, 48)) -> str:
        return "data:image/png;base64," + base64.b64encode(picture_bytes(seed, size)).decode()

    return url


@pytest.fixture(scope="session")
def ask_body(picture_url: Callable[..., str]) -> Callable[..., dict[str, Any]]:
    """Returns a chat request about the pictures of some seeds."""

    def body(
        question: str = "What is it?", seeds: tuple[int, ...] = (0,), detail: str | None = None,
        size: tuple[int, int] = (64, 48),
        **more: Any,
    ) -> dict[str, Any]:  # fmt: skip
        extra = {} if detail is None else {"detail": detail}
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": picture_url(seed, size), **extra}}
            for seed in seeds
        ]
        parts.append({"type": "text", "text": question})
        messages = [{"role": "user", "content": parts}]
        return {"model": "m3-auto", "messages": messages, "max_tokens": 6, **more}

    return body


@dataclass(frozen=True)
class RunningService:
    """A service behind a port, and the folders it works with."""

    url: str
    registry: Path
    log_dir: Path
    router_version: str
    service: Any


@pytest.fixture(scope="session")
def running(
    tiny_model: Path, make_router: Callable[[Path, int], str], tmp_path_factory: Any
) -> Iterator[RunningService]:
    """The in-process service under uvicorn on a free port; its router always chooses 36."""
    import uvicorn

    from serve.in_process import compose
    from serve.settings import ServeSettings
    from serve.web.listening import bind

    folder = tmp_path_factory.mktemp("service")
    version = make_router(folder / "router", 36)
    settings = ServeSettings(
        model=tiny_model, router=folder / "router", registry=folder / "registry",
        registry_poll_s=0.05, log_dir=folder / "log", log_prompts=True, max_body_bytes=3_000_000,
    )  # fmt: skip
    service = compose(settings)
    listening = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(service.api, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = listening.getsockname()[1]
    yield RunningService(
        f"http://127.0.0.1:{port}", settings.registry, settings.log_dir, version, service
    )
    server.should_exit = True
    thread.join(20)
    service.encoder.close()
    service.generator.close()
    service.gateway.log.close()
    listening.close()


@pytest.fixture(scope="session")
def s3_process() -> Iterator[subprocess.Popen[str]]:
    """An S3 server with a bucket, a process of its own, for which the environment has the keys.

    Its packages (``pip install "moto[s3,server]"``) may lie elsewhere: MOTO_PYTHON names the
    interpreter that has them.
    """
    pytest.importorskip("obstore", reason='object stores: pip install "m3-router[stores]"')
    python = os.environ.get("MOTO_PYTHON", sys.executable)
    moto = subprocess.run([python, "-c", "import moto.server"], capture_output=True)
    if moto.returncode:
        pytest.skip(f'no S3 server: pip install "moto[s3,server]" for {python}')
    with subprocess.Popen(
        [python, ROOT / "tests/whole/s3_server.py"], stdout=subprocess.PIPE, text=True
    ) as server, pytest.MonkeyPatch.context() as patch:  # fmt: skip
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        }.items():  # fmt: skip
            patch.setenv(name, value)
        request = urllib.request.Request(f"{endpoint}/bucket", method="PUT", data=b"")
        with urllib.request.urlopen(request):
            yield server
        server.kill()


@pytest.fixture
def s3(s3_process: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of an empty folder in an object store; copies of routers lie in ``tmp_path``."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"s3://bucket/{uuid.uuid4().hex}"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="session")
def ray_service(
    tiny_model: Path, make_router: Callable[[Path, int], str], tmp_path_factory: Any
) -> Iterator[RunningService]:
    """The service on a local Ray cluster, shared by the whole test run; two of each stage."""
    from serve.on_ray.cluster import local_cluster
    from serve.on_ray.service import deploy, wait_until_running
    from serve.settings import DeploymentSettings, ServeSettings

    folder = tmp_path_factory.mktemp("ray")
    version = make_router(folder / "router", 36)
    settings = ServeSettings(
        model=tiny_model, router=folder / "router", registry=folder / "registry",
        registry_poll_s=0.2, log_dir=folder / "log", log_images=True,
        encoder=DeploymentSettings(replicas=2), generator=DeploymentSettings(replicas=2),
    )  # fmt: skip
    port = free_port()
    with local_cluster():
        gateway = deploy(settings, "127.0.0.1", port)
        assert wait_until_running(threading.Event())
        yield RunningService(
            f"http://127.0.0.1:{port}", settings.registry, settings.log_dir, version, gateway
        )
