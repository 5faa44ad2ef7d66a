"""A service as `m3-serve up` starts it, the load on it, and the CPU that all its processes use."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

CLIENTS_SCRIPT = Path(__file__).with_name("clients.py")


@dataclass(frozen=True)
class Service:
    """One that runs; ``process`` is the parent of all that belongs to it."""

    process: psutil.Process
    port: int
    folder: Path

    def cpu_s(self) -> float:
        """Return the CPU seconds that its processes have used, those that are gone left out."""
        total = 0.0
        for each in [self.process, *self.process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                times = each.cpu_times()
                total += times.user + times.system
        return total

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to one request."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/chat/completions", json.dumps(body).encode(),
            {"content-type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=120) as reply:
            return dict(json.load(reply))

    def load(
        self, bodies: Sequence[dict[str, Any]], clients: int, seconds: float
    ) -> dict[str, float]:
        """Return what the clients saw, and CPU milliseconds a request of service and clients."""
        file = self.folder / "bodies.json"
        file.write_text(json.dumps([json.dumps(body) for body in bodies]), encoding="utf-8")
        before, own = self.cpu_s(), psutil.Process().cpu_times()
        done = subprocess.run(
            [sys.executable, str(CLIENTS_SCRIPT), "127.0.0.1", str(self.port), str(file),
             str(clients), str(seconds)],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        cpu_s = self.cpu_s() - before
        after = psutil.Process().cpu_times()
        client_s = (after.children_user - own.children_user) + (
            after.children_system - own.children_system
        )
        seen = json.loads(done.stdout)
        n = len(seen["latency_s"])
        if set(seen["statuses"]) != {"200"}:
            raise RuntimeError(f"not every request was answered: {seen['statuses']}")
        ms = np.percentile(seen["latency_s"], [50, 95, 99]) * 1000
        report = {
            "requests": float(n), "requests_per_s": n / seen["wall_s"],
            "p50_ms": ms[0], "p95_ms": ms[1], "p99_ms": ms[2],
            "cpu_ms": 1000 * cpu_s / n, "client_cpu_ms": 1000 * client_s / n,
        }  # fmt: skip
        if seen["first_s"]:
            report["first_token_p50_ms"] = float(np.median(seen["first_s"]) * 1000)
        return {name: round(float(value), 2) for name, value in report.items()}


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def running(
    *flags: str, port: int, folder: Path | None = None, **environment: str
) -> Iterator[Service]:
    """Run the service with these flags and variables while the context lasts.

    Args:
        folder: of its ``log`` and ``registry``; None: one that goes away with it.
    """
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "serve.cli", "up", "--port", str(port), *flags,
                 "--log-dir", str(folder / "log"), "--registry", str(folder / "registry")],
                env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
            try:
                _wait(process, port, folder / "log.txt")
                yield Service(psutil.Process(process.pid), port, folder)
            finally:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(90)
                process.kill()
                process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return
        time.sleep(0.5)
    raise RuntimeError(f"the service did not start: {log.read_text()[-2000:]}")
