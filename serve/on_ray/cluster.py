"""A Ray cluster to serve on: one of this process's own, or one that is running already.

Knows Ray's start and end; knows nothing of applications. A cluster of its own is small, lies in a
folder of its own, and leaves no process and no file behind.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from serve.errors import ServeSetupError
from serve.on_ray.headers import IMPORT_PATH

OBJECT_STORE_BYTES = 200_000_000
LARGEST_MESSAGE = 2**28  # bytes; above any request's pictures and their tokens
START_TRIES = 3
RAY_SETTINGS = {
    "metrics_report_interval_ms": 2000,  # the gateway relays metrics; ten seconds are long to wait
    "worker_niceness": 0,  # Ray's 15 is meant for batch work: any other process would come first
    "worker_register_timeout_seconds": 180,  # a busy machine takes its time to import torch
    "automatic_object_spilling_enabled": False,  # no variable switches that off
}
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Pictures and tokens go from process to process, and not through the object store, which may
    # spill to disk: between deployments by gRPC, whose messages have at most 4 MB by default;
    # from Ray's proxy as results of its methods, of which 100 kB are sent along by default.
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(LARGEST_MESSAGE),
    "RAY_max_direct_call_object_size": str(LARGEST_MESSAGE),
    "RAY_task_rpc_inlined_bytes_limit": str(LARGEST_MESSAGE),
    # Ray scales by what replicas and gateways tell this often; ten seconds are long to wait.
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    # A replica that is unwell ends nothing whole: the time for long answers is for healthy ones.
    "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS": "1",
    # A proxy that is gone is everybody's outage: looked for every second, and one that is hung is
    # replaced after 15 s.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "4",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": IMPORT_PATH,
}
LOG = logging.getLogger(__name__)
Progress = Callable[[str], None]


@contextlib.contextmanager
def local_cluster(progress: Progress = LOG.info, *, verbose: bool = False) -> Iterator[None]:
    """Run a small Ray cluster of this process's own while the context lasts.

    Raises:
        ServeSetupError: it does not start.
    """
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
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
                    raise ServeSetupError(f"Ray did not start: {last_line(error)}") from error
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
        raise ServeSetupError(
            f"the Ray cluster at {address} cannot be reached: {line}; if it was started with a "
            "token, set RAY_AUTH_MODE=token"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def last_line(error: Exception | str) -> str:
    """Return the last line of a message: what is left of a traceback that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
