"""The process that labels while the service is idle: it is there, comes last, and goes with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from serve.configuration.settings_file import faults_of
from serve.errors import ServeSetupError
from serve.idle import labelling
from serve.idle.labelling import LabellingProcess
from serve.metrics import LocalMetrics
from serve.on_ray.app import build_app
from serve.settings import ServeSettings

ROOT = Path(__file__).resolve().parents[3]
TELL = (
    "import json, os, sys, time\nprint(json.dumps({'labelled': %d, 'waiting': %d}), flush=True)\n"
)
STAY = "print(os.getpid(), file=open(sys.argv[1], 'a'), flush=True)\ntime.sleep(600)\n"


def until(is_there: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := is_there()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@contextmanager
def labeller(
    monkeypatch: pytest.MonkeyPatch, script: str, *arguments: object
) -> Iterator[tuple[LabellingProcess, LocalMetrics]]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    metrics = LocalMetrics()
    process = LabellingProcess(["-c", script, *map(str, arguments)], 1, metrics, first_pause_s=0.01)
    try:
        yield process, metrics
    finally:
        process.end()


def value(metrics: LocalMetrics, name: str) -> float:
    found = metrics._registry.get_sample_value(name)
    assert found is not None
    return found


def pids(file: Path) -> list[int]:
    return [int(line) for line in file.read_text().split()] if file.exists() else []


def test_it_comes_last_tells_how_far_it_is_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with labeller(monkeypatch, TELL % (3, 7) + STAY, tmp_path / "pids") as (process, metrics):
        (pid,) = until(lambda: pids(tmp_path / "pids"))
        seen = psutil.Process(pid)
        assert seen.ppid() == os.getpid()
        assert os.sched_getscheduler(pid) == os.SCHED_IDLE
        assert seen.nice() == 19
        assert os.getsid(pid) == pid  # where sessions share evenly, in one that comes last
        until(lambda: value(metrics, "m3_labelled_pictures_total") == 3)
        assert value(metrics, "m3_unlabelled_pictures") == 7
        assert value(metrics, "m3_labelling_down") == 0
        process.end()
        assert not psutil.pid_exists(pid)


def test_one_that_dies_is_started_again_and_what_it_did_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Twice it labels two pictures and fails; the third stays."""
    script = TELL % (2, 1) + (
        "if len(open(sys.argv[1], 'a+').readlines() or open(sys.argv[1]).readlines()) < 2:\n"
        "    print(os.getpid(), file=open(sys.argv[1], 'a'), flush=True)\n"
        "    sys.exit('error: the disk is full')\n"
    ) + STAY  # fmt: skip
    with labeller(monkeypatch, script, tmp_path / "pids") as (_, metrics):
        until(lambda: len(pids(tmp_path / "pids")) == 3)
        until(lambda: value(metrics, "m3_labelling_down") == 0)
        until(lambda: value(metrics, "m3_labelled_pictures_total") == 6)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == [
        f"idle labelling ended with status 1, and is started again in {pause} s: "
        "error: the disk is full"
        for pause in ("0.01", "0.02")
    ]


def test_one_that_is_not_there_is_an_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    with labeller(monkeypatch, "raise SystemExit(2)") as (_, metrics):
        until(lambda: value(metrics, "m3_labelling_down") == 1)


@pytest.mark.parametrize("state", [signal.SIGTERM, signal.SIGSTOP])
def test_one_that_does_not_listen_is_ended_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: signal.Signals
) -> None:
    monkeypatch.setattr(labelling, "END_S", 0.2)
    deaf = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    with labeller(monkeypatch, deaf + TELL % (0, 0) + STAY, tmp_path / "pids") as (process, _):
        (pid,) = until(lambda: pids(tmp_path / "pids"))
        if state is signal.SIGSTOP:
            os.kill(pid, state)
        process.end()
        assert not psutil.pid_exists(pid)


PARENT = """
import sys, time
from serve.idle.labelling import LabellingProcess
from serve.metrics import LocalMetrics
process = LabellingProcess(["-c", sys.argv[1], sys.argv[2]], 1, LocalMetrics())
time.sleep(600)
"""


def test_kill_9_of_the_service_ends_it(tmp_path: Path) -> None:
    path = {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, TELL % (0, 0) + STAY, str(tmp_path / "pids")],
        env=os.environ | path,
    ) as parent:
        (pid,) = until(lambda: pids(tmp_path / "pids"))
        parent.kill()
    until(lambda: not psutil.pid_exists(pid))


def test_it_needs_what_it_labels() -> None:
    for settings in (
        {"label_idle": "labels"},
        {"label_idle": "labels", "log_images": True, "log_dir": None},
    ):
        (fault,) = faults_of(settings)
        assert "label_idle: needs a log_dir and log_images: true" in str(fault)
    assert not faults_of({"label_idle": "labels", "log_images": True})


def test_the_log_may_lie_in_an_object_store() -> None:
    pytest.importorskip("obstore", reason='object stores: pip install "m3-router[stores]"')
    told = {"label_idle": "labels", "log_images": True, "log_dir": "s3://bucket/log"}
    words = labelling._command(ServeSettings.model_validate(told), "http://here")
    assert words[words.index("--from-log") + 1] == "s3://bucket/log"


def test_a_serve_config_cannot_start_it(tmp_path: Path, command: Any) -> None:
    arguments = {"label_idle": "/labels", "log_images": True}
    with pytest.raises(ServeSetupError, match="only m3-serve up starts a process for it"):
        build_app(ServeSettings(**arguments))
    application = {"import_path": "serve.on_ray.app:build_app", "args": arguments}
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps({"applications": [application]}))
    done = command("m3-serve", "config", "validate", file)
    assert done.returncode == 2
    assert "applications.0.args.label_idle: only m3-serve up starts" in done.stderr
