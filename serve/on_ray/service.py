"""Runs the service on Ray Serve until it is told to stop: deploy, wait, drain, take away.

Knows Ray Serve's applications and signals; knows nothing of requests. Without RAY_ADDRESS it runs
on a cluster of its own; with it, it deploys to that cluster and takes only its own application
away.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from serve.errors import ServeSetupError
from serve.idle.labelling import labelling_while_idle
from serve.metrics import RayMetrics
from serve.on_ray.cluster import Progress, last_line, local_cluster, remote_cluster
from serve.settings import ServeSettings

POLL_S = 0.2
HASTY_DRAIN_S = 3.0
LAST_BYTES_S = 5.0  # for the proxy to send on what the gateways have said


class _Stopped(BaseException):
    """A signal arrived while Ray was starting."""


def http_options(settings: ServeSettings, host: str, port: int) -> dict[str, Any]:
    """Return how Ray's proxy listens."""
    return {
        "host": host,
        "port": port,
        # The gateway's own limit comes first: it answers with a sentence.
        "request_timeout_s": settings.request_timeout_s + 5.0,
        "keep_alive_timeout_s": settings.keep_alive_s,
    }


def deploy(settings: ServeSettings, host: str, port: int) -> Any:
    """Return the gateway's handle; the replicas are starting, see `wait_until_running`."""
    from ray import serve

    from serve.on_ray.app import APP_NAME, build_app, logging_config

    quiet = logging_config(settings)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        proxy_location="HeadOnly",
        http_options=http_options(settings, host, port),
        logging_config=quiet,
    )
    app = serve.RunTarget(build_app(settings), APP_NAME, "/", logging_config=quiet)
    return serve.run_many([app], wait_for_applications_running=False)[0]


def wait_until_running(stop: threading.Event) -> bool:
    """Return True once every replica answers, False if ``stop`` is set before.

    Raises:
        ServeSetupError: a replica fails to start, with what it said.
    """
    from ray import serve

    from serve.on_ray.app import APP_NAME

    while not stop.wait(POLL_S):
        app = serve.status().applications.get(APP_NAME)
        if app is None or app.status == "NOT_STARTED" or app.status == "DEPLOYING":
            continue
        if app.status == "RUNNING":
            return True
        said = [each.message for each in app.deployments.values() if each.message]
        why = last_line(said[0] if said else app.message)
        why = why.removeprefix("serve.errors.ServeSetupError: ")
        raise ServeSetupError(f"the service did not start: {why}")
    return False


def take_away() -> None:
    """Remove the application from a cluster that goes on; long answers may outlast the call."""
    from ray import serve

    from serve.on_ray.app import APP_NAME

    # Ray waits for a minute, and goes on removing when this process has ended.
    with contextlib.suppress(TimeoutError):
        serve.delete(APP_NAME)


def close_the_door() -> None:
    """Have a cluster that ends listen no more: who comes now is refused, not let in and cut off.

    Ray's proxies know no such wish, so their server is told itself; it sends what it has to send.
    """
    import ray
    from ray.serve.context import _get_global_client

    details = ray.get(_get_global_client()._controller.get_serve_instance_details.remote())
    names = [proxy["actor_name"] for proxy in details["proxies"].values()]
    proxies = [ray.get_actor(name, namespace="serve") for name in names]
    deadline = time.monotonic() + LAST_BYTES_S
    while time.monotonic() < deadline:
        closed = ray.get(
            [proxy.__ray_call__.remote(_closed) for proxy in proxies], timeout=LAST_BYTES_S
        )
        if all(closed):
            return
        time.sleep(POLL_S)


def _closed(proxy: Any) -> bool:
    """Tell a proxy's server to end; return whether it has. Runs in the proxy."""
    running, server = proxy._start_http_server_task.result()
    server.should_exit = True
    return bool(running.done())


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
    ray_is_starting = True

    def on_signal(number: int, frame: Any) -> None:
        stop.set()
        if ray_is_starting:
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
            ray_is_starting = False
            listen()  # ray.init sets a handler of its own
            try:
                _serve(settings, host, port, progress, ready, stop)
            finally:
                if address:
                    take_away()
            progress("stopping")
    except (_Stopped, SystemExit):  # SystemExit: the handler that Ray has while it starts
        progress("stopped before the service was ready")
        os._exit(0)  # everything is cleaned up; Ray's threads, cut off while starting, may crash


def _serve(
    settings: ServeSettings,
    host: str,
    port: int,
    progress: Progress,
    ready: Callable[[], None],
    stop: threading.Event,
) -> None:
    progress("starting gateway, encoder and generator")
    # What labels is a process beside this one, and no part of the application.
    gateway = deploy(settings.model_copy(update={"label_idle": None}), host, port)
    drain_s = HASTY_DRAIN_S
    if wait_until_running(stop):
        drain_s = settings.drain_s + 10.0
        ready()
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        with labelling_while_idle(settings, url, lambda: RayMetrics(settings.request_timeout_s)):
            stop.wait()
    # Requests may have come before everything ran, so the log is written out in any case.
    progress("draining")
    try:
        ended = all(gateway.broadcast("drain").results(timeout_s=drain_s))
    except Exception as error:  # a gateway that is not there has nothing to drain; stopping goes on
        progress(f"a gateway did not drain: {type(error).__name__}")
        return
    if not ended:
        progress(f"requests were still running after {settings.drain_s:g} s and were ended")
    if os.environ.get("RAY_ADDRESS") is None:
        try:
            close_the_door()
        except Exception as error:  # of another Ray, perhaps: then they are cut off
            progress(f"the proxy did not close: {type(error).__name__}")
