"""A running service told to stop while clients ask: on Ray, without time, and in one process."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _faults.load import Load, counts

from m3model.tiny import write_tiny_checkpoint

STREAM_TOKENS, LONG_STREAM_TOKENS = 600, 1400
COMMAND = [sys.executable, "-m", "serve.cli", "up", "--port", "0"]
REPLICAS = ["--gateways", "2", "--encoders", "2", "--generators", "2"]
# `m3-serve up` on Ray with a setting that is no option of it: no time for what is under way.
WITHOUT_TIME = """
import sys
from pathlib import Path
from serve.on_ray.service import run
from serve.settings import DeploymentSettings, ServeSettings
from serve.web.listening import bind
two = DeploymentSettings(replicas=2)
settings = ServeSettings(
    model=Path(sys.argv[1]), registry=None, log_dir=None, drain_s=0.1,
    gateway=two, encoder=two, generator=two,
)
with bind("127.0.0.1", 0) as free:
    port = free.getsockname()[1]
ready = lambda: print(f"ready at http://127.0.0.1:{port}", flush=True)
run(settings, "127.0.0.1", port, lambda what: None, ready)
"""
# As what a request may end that was begun after the signal, or reached a gateway after it.
FINE = ("whole", "error event", "503 told", "refused")


def sigterm(requests: int) -> dict[str, Any]:
    """Return the entry of the report: the sum, and below it the three ways apart."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = str(write_tiny_checkpoint(folder / "model"))
        up = [*COMMAND, "--model", model, "--registry", str(folder / "none")]
        up += ["--log-dir", str(folder / "log")]
        parts = {
            "on_ray": _stopped([*up, *REPLICAS], requests // 4, STREAM_TOKENS),
            "on_ray_without_time": _stopped(
                [sys.executable, "-c", WITHOUT_TIME, model], requests // 10, LONG_STREAM_TOKENS
            ),
            "in_process": _stopped([*up, "--in-process"], requests // 4, STREAM_TOKENS),
        }
    added = ("requests", "failed", "in_flight_on_victim")
    both = {key: sum(part[key] for part in parts.values()) for key in added}
    return {**both, "recovered_s": max(part["recovered_s"] for part in parts.values()), **parts}


def _stopped(command: Sequence[str], requests: int, stream_tokens: int) -> dict[str, Any]:
    """Return how the requests ended; recovered means that the process has left, with code 0."""
    with _running(command) as (process, url):
        with Load(url, stream_tokens=stream_tokens) as load:
            load.until(requests)
            in_flight, at = load.open, time.time()
            process.send_signal(signal.SIGTERM)
            code = process.wait(120)
            gone = time.time()
        ended = load.ended
    begun, later = [x for x in ended if x.started < at], [x for x in ended if x.started >= at]
    return {
        "requests": sum(not each.stream for each in begun),
        "failed": sum(each.how not in FINE for each in ended) + (code != 0),
        "in_flight_on_victim": in_flight,
        "recovered_s": round(gone - at, 1),
        "under_way": counts([each for each in begun if each.ended >= at]),
        "begun_later": counts(later),
    }


@contextmanager
def _running(command: Sequence[str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A service as a process, once it is ready, and its address."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "ready at http" not in line:
            raise RuntimeError(f"the service did not start: {process.communicate()}")
        yield process, line.split()[-1]
    finally:
        process.terminate()
        process.communicate(timeout=120)
