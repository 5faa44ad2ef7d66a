"""A real service in a process of its own, with its memory and a small request's time watched.

Knows processes and clocks; knows nothing of the abuse.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
SAMPLE_S = 0.02


@dataclass
class Watched:
    """A running service. Times are those of `time.monotonic`."""

    host: str
    port: int
    process: subprocess.Popen[str]
    folder: Path
    memory: list[tuple[float, int]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://{self.host}:{self.port}"

    def bytes_now(self) -> int:
        """Return the memory that it and the processes it started hold."""
        own = Path(f"/proc/{self.process.pid}")
        total = 0
        with contextlib.suppress(OSError):  # one that is just ending
            children = [each.read_text().split() for each in own.glob("task/*/children")]
            for process in [own, *(Path("/proc") / pid for found in children for pid in found)]:
                # One that is just being made is still its parent, whose memory it shares.
                if process != own and _command(process) == _command(own):
                    continue
                total += int((process / "statm").read_text().split()[1]) * PAGE_BYTES
        return total

    def cached_pictures(self) -> int:
        """Return how many encoded pictures it keeps."""
        with urllib.request.urlopen(f"{self.url}/health") as reply:
            return int(json.load(reply)["encoder"]["cached_pictures"])

    def peak_bytes(self, begin: float, end: float) -> int:
        """Return the most it held between two times."""
        return max((n for at, n in self.memory if begin <= at <= end), default=0)

    def probes(self, begin: float, end: float) -> dict[str, list[tuple[float, int]]]:
        """Return milliseconds and status of each probe that began between two times."""
        found: dict[str, list[tuple[float, int]]] = {"small": [], "live": []}
        for line in self.folder.joinpath("probe").read_text(encoding="utf-8").splitlines():
            at, what, ms, status = line.split()
            if begin <= float(at) <= end:
                found[what].append((float(ms), int(status)))
        return found


def _command(process: Path) -> bytes:
    return (process / "cmdline").read_bytes()


def percentile(probes: list[tuple[float, int]], share: float) -> float:
    """Return the milliseconds below which that share of the probes lies."""
    return float(np.percentile([ms for ms, _ in probes], 100 * share)) if probes else float("nan")


@contextmanager
def watched() -> Iterator[Watched]:
    """Start the service as an operator would, pictures logged; end it as one would."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        up = [sys.executable, "-m", "serve.cli", "up", "--in-process", "--port", "0",
              "--log-dir", folder / "log", "--registry", folder / "registry",
              "--log-images"]  # fmt: skip
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        with folder.joinpath("stderr").open("w", encoding="utf-8") as said:
            process = subprocess.Popen(
                [*map(str, up)], stdout=subprocess.PIPE, stderr=said, text=True, cwd=folder, env=env
            )
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if "ready at" not in line:
                raise RuntimeError(folder.joinpath("stderr").read_text(encoding="utf-8"))
            port = int(line.rstrip().rpartition(":")[2])
            service = Watched("127.0.0.1", port, process, folder)
            with _sampled(service), _probed(service):
                yield service
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def _sampled(service: Watched) -> Iterator[None]:
    over = threading.Event()

    def sample() -> None:
        while not over.wait(SAMPLE_S) and service.process.poll() is None:
            service.memory.append((time.monotonic(), service.bytes_now()))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _probed(service: Watched) -> Iterator[None]:
    file = service.folder / "probe"
    script = Path(__file__).with_name("probe.py")
    probe = subprocess.Popen(
        [sys.executable, script, service.host, str(service.port), file], cwd=service.folder
    )
    try:
        while not (file.is_file() and file.stat().st_size):
            if probe.poll() is not None:
                raise RuntimeError("the probe ended")
            time.sleep(0.05)
        yield
    finally:
        probe.kill()
        probe.wait()
