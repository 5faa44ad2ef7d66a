"""`m3-serve up` told to stop while clients ask, on Ray and in one process."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _faults.load import Ended, Load, counts

from m3model.tiny import write_tiny_checkpoint

STREAM_TOKENS = 600
READY = "m3-serve is ready at "
# What a request may end as that was begun after the signal, or reached a gateway after it.
TURNED_AWAY = ("whole", "refused", "503 told", "error event")


def sigterm(requests: int) -> dict[str, Any]:
    """Return the entry of the report: Ray's figures, and below it those of one process."""
    with tempfile.TemporaryDirectory() as name:
        model = write_tiny_checkpoint(Path(name) / "model")
        replicas = ("--gateways", "2", "--encoders", "2", "--generators", "2")
        on_ray = _stopped(Path(name), model, requests // 2, replicas)
        alone = _stopped(Path(name), model, requests // 2, ("--in-process",))
    both = {key: on_ray[key] + alone[key] for key in ("requests", "failed", "in_flight_on_victim")}
    slower = max(on_ray["recovered_s"], alone["recovered_s"])
    return {**both, "recovered_s": slower, "on_ray": on_ray, "in_process": alone}


def _stopped(folder: Path, model: Path, requests: int, options: tuple[str, ...]) -> dict[str, Any]:
    with _up(folder, model, options) as (process, url):
        with Load(url, stream_tokens=STREAM_TOKENS) as load:
            load.until(requests)
            in_flight, at = load.open, time.time()
            process.send_signal(signal.SIGTERM)
            code = process.wait(120)
            gone = time.time()
        ended = load.ended
    begun = [each for each in ended if each.started < at]
    late = [each for each in ended if each.started >= at]
    bad = [each for each in begun if _is_bad(each)] + [each for each in late if _is_bad(each)]
    return {
        "requests": sum(not each.stream for each in begun),
        "failed": len(bad) + (code != 0),
        "in_flight_on_victim": in_flight,
        "recovered_s": round(gone - at, 1),
        "under_way_then": counts([each for each in begun if each.ended >= at]),
        "begun_later": counts(late),
    }


def _is_bad(each: Ended) -> bool:
    return each.how not in TURNED_AWAY


@contextmanager
def _up(
    folder: Path, model: Path, options: tuple[str, ...]
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "serve.cli", "up", "--port", "0", "--model", str(model)]
    places = ["--registry", str(folder / "none"), "--log-dir", str(folder / "log")]
    process = subprocess.Popen([*command, *places, *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line.startswith(READY):
            raise RuntimeError(f"m3-serve up did not start: {line!r}")
        yield process, line.removeprefix(READY).strip()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(120)
