"""Runs the service on Ray Serve until it is told to stop: cluster, application, drain, clean-up.

Knows Ray's start and end and nothing of requests. Without RAY_ADDRESS it starts a small cluster of
its own, in a folder of its own, and leaves no process and no file behind; with RAY_ADDRESS it
deploys to that cluster and takes only its own application away again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from serve.errors import ServeSetupError
from serve.settings import ServeSettings

OBJECT_STORE_BYTES = 200_000_000
START_TRIES = 3
RAY_SETTINGS = {
    "metrics_report_interval_ms": 2000,  # the gateway relays metrics; ten seconds are long to wait
    "worker_niceness": 0,  # Ray's 15 is meant for batch work: any other process would come first
    "worker_register_timeout_seconds": 180,  # a busy machine takes its time to import torch
}
LOG = logging.getLogger(__name__)
Progress = Callable[[str], None]


class _Stopped(BaseException):
    """A signal arrived while the service was starting."""


@contextlib.contextmanager
def local_cluster(progress: Progress = LOG.info, *, verbose: bool = False) -> Iterator[None]:
    """Run a small Ray cluster of this process's own while the context lasts.

    Raises:
        ServeSetupError: it does not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    # Ray's sockets lie below it, and a socket's path has at most 107 characters.
    folder = Path(
        tempfile.mkdtemp(prefix="m3-", dir="/tmp" if os.access("/tmp", os.W_OK) else None)
    )
    try:
        for tries_left in reversed(range(START_TRIES)):
            try:
                ray.init(
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    log_to_driver=verbose,
                    logging_level=logging.ERROR,
                    _temp_dir=str(folder),
                    _system_config=RAY_SETTINGS,
                )
                break
            except BaseException as error:  # a signal too; Ray itself raises bare Exceptions
                _kill_half_started(error)
                if not isinstance(error, Exception):
                    raise
                # Its agents have 15 s, fixed in its code, which a cold or busy machine may exceed
                # the first time; by the second their modules lie in memory.
                if not tries_left:
                    raise ServeSetupError(f"Ray did not start: {_reason(error)}") from error
                progress("Ray did not start in time; trying again")
        yield
    finally:
        ray.shutdown()
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove the folder, also while the last processes still write into it."""
    for _ in range(50):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
    LOG.warning("%s could not be removed", folder)


def _kill_half_started(error: BaseException) -> None:
    """End the processes of a node whose start raised; Ray may know it only in the traceback."""
    from ray._private import worker
    from ray._private.node import Node

    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    for node in [frame.f_locals.get("self") for frame in frames] + [worker._global_node]:
        if isinstance(node, Node):
            node.kill_all_processes(check_alive=False, allow_graceful=False)
            return


@contextlib.contextmanager
def remote_cluster(address: str, *, verbose: bool = False) -> Iterator[None]:
    """Be connected to a running Ray cluster while the context lasts.

    Raises:
        ServeSetupError: it cannot be reached.
    """
    import ray

    host, _, port = address.rpartition(":")
    if port.isdigit() and "/" not in host:
        try:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), 5.0).close()
        except OSError as error:
            raise ServeSetupError(
                f"the Ray cluster at {address} does not answer: {error.strerror or error}"
            ) from error
    try:
        ray.init(address=address, log_to_driver=verbose, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        line = str(error).splitlines()[0]
        raise ServeSetupError(f"the Ray cluster at {address} cannot be reached: {line}") from error
    try:
        yield
    finally:
        ray.shutdown()


def deploy(settings: ServeSettings, host: str, port: int) -> Any:
    """Return the gateway's handle once the application answers.

    Raises:
        ServeSetupError: it does not start.
    """
    from ray import serve

    from serve.app import APP_NAME, build_app

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = {"enable_access_log": False, "log_level": "WARNING"}
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={
                "host": host,
                "port": port,
                # The gateway's own limit comes first: it answers with a sentence.
                "request_timeout_s": settings.request_timeout_s + 5.0,
                "keep_alive_timeout_s": 30,
            },
            logging_config=quiet,
        )
        app = build_app(settings)
        return serve.run(app, name=APP_NAME, route_prefix="/", logging_config=quiet)
    except RuntimeError as error:
        raise ServeSetupError(f"the service did not start: {_failure(error)}") from error


def _failure(error: RuntimeError) -> str:
    """Return what a replica said when it failed: Ray's own error only names the deployment."""
    from ray import serve

    from serve.app import APP_NAME

    app = serve.status().applications.get(APP_NAME)
    said = [each.message for each in app.deployments.values() if each.message] if app else []
    return (
        _reason(said[0]).removeprefix("serve.errors.ServeSetupError: ") if said else _reason(error)
    )


def take_away() -> None:
    """Remove the application from a cluster that goes on."""
    from ray import serve

    from serve.app import APP_NAME

    serve.delete(APP_NAME)


def run(
    settings: ServeSettings,
    host: str,
    port: int,
    progress: Progress,
    ready: Callable[[], None],
    *,
    verbose: bool = False,
) -> None:
    """Serve until SIGTERM or SIGINT, then drain, clean up and return.

    Args:
        settings: of the service.
        host: of the HTTP proxy.
        port: of the HTTP proxy.
        progress: told what is going on.
        ready: called once requests are answered.
        verbose: show on stderr what the replicas log.

    Raises:
        ServeSetupError: the service cannot start.
    """
    stop = threading.Event()
    running = False

    def on_signal(number: int, frame: Any) -> None:
        stop.set()
        if not running:
            raise _Stopped

    def listen() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)

    listen()
    address = os.environ.get("RAY_ADDRESS")
    progress(f"connecting to Ray at {address}" if address else "starting Ray")
    if address:
        cluster = remote_cluster(address, verbose=verbose)
    else:
        cluster = local_cluster(progress, verbose=verbose)
    try:
        with cluster:
            listen()  # ray.init sets a handler of its own
            progress("starting gateway, encoder and generator")
            try:
                gateway = deploy(settings, host, port)
                running = True
                ready()
                stop.wait()
                progress("draining")
                _drain(gateway, settings.drain_s, progress)
            finally:
                if address:
                    take_away()
            progress("stopping")
    except (_Stopped, SystemExit):  # SystemExit: the handler that Ray has while it starts
        progress("stopped before the service was ready")
        os._exit(0)  # everything is cleaned up; Ray's threads, cut off while starting, may crash


def _drain(gateway: Any, drain_s: float, progress: Progress) -> None:
    try:
        ended = gateway.broadcast("drain").results(timeout_s=drain_s + 10.0)
    except Exception as error:  # a gateway that is gone has nothing to drain; stopping goes on
        progress(f"a gateway did not drain: {type(error).__name__}")
        return
    if not all(ended):
        progress(f"requests were still running after {drain_s:g} s")


def _reason(error: Exception | str) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
