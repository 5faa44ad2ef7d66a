"""`m3-serve` as a process: ready, asked, ended by a signal, nothing left; mistakes in one line."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pyarrow.parquet as pq
import pytest

from router.log import read_log

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "serve.cli"]


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "M3_URL", "M3_API_KEY")}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return kept | {"PYTHONPATH": path}


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Runs `m3-serve up` in a session of its own; yields it with its URL once it is ready."""
    with (folder / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [*COMMAND, "up", "--port", "0", "--log-dir", str(folder / "log"),
             "--registry", str(folder / "registry"), *arguments],
            cwd=folder, env=_environment(), start_new_session=True, text=True,
            stdout=subprocess.PIPE, stderr=stderr,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "ready at http://127.0.0.1:" in line, (folder / "stderr").read_text()
        yield process, line.split()[-1]
    finally:
        for left in descendants(process.pid):
            left.kill()
        process.kill()
        process.communicate()


def configured(folder: Path, model: Path) -> list[str]:
    """Arguments that give a file of settings, in which the model lies beside it, and a limit."""
    (folder / "m").symlink_to(model)
    (folder / "m3.yaml").write_text("model: m\nlog_dir: of/file\nmax_body_bytes: 20_000\n")
    return ["--config", "m3.yaml"]


def descendants(pid: int) -> list[psutil.Process]:
    """Every process of the session that `pid` leads, or below it; Ray's daemons are both."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = os.getsid(process.pid) == pid or any(p.pid == pid for p in process.parents())
        except (psutil.Error, ProcessLookupError, PermissionError):
            continue
        if ours and process.pid != pid and process.status() != psutil.STATUS_ZOMBIE:
            found.append(process)
    return found


def end(process: subprocess.Popen[str], number: signal.Signals) -> None:
    before = descendants(process.pid)
    process.send_signal(number)
    assert process.wait(60) == 0
    deadline = time.monotonic() + 10
    while left := [p for p in before if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]:
        assert time.monotonic() < deadline, [p.cmdline() for p in left]
        time.sleep(0.1)
    assert not descendants(process.pid)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_in_process_serves_and_ends(
    tiny_model: Path, tmp_path: Path, ask_body: Any, command: Any, number: signal.Signals
) -> None:
    with started(tmp_path, "--in-process", *configured(tmp_path, tiny_model)) as (process, url):
        assert httpx2.post(f"{url}/v1/route", json={"a": 30_000 * "b"}).status_code == 413
        assert httpx2.get(f"{url}/health").status_code == 200
        schema = httpx2.get(f"{url}/openapi.json").json()
        assert schema["info"]["version"] == metadata.version("m3-router")
        state = set(command("m3-serve", "status", "--url", url).stdout.splitlines())
        assert {"status          ok", "router_ok       yes", "  alive          yes"} <= state
        assert not [line for line in state if {*"{}[]'"} & {*line}]
        # A stream that is under way when the signal comes is brought to its end.
        body = ask_body(stream=True, max_tokens=200, model="m3-576")
        with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as reply:
            lines = reply.iter_lines()
            next(lines)
            process.send_signal(number)
            assert "data: [DONE]" in list(lines)
        end(process, number)
    assert not (tmp_path / "of").exists()  # the folders of flags stand above the file's
    assert read_log(tmp_path / "log").decisions.num_rows > 0


HASTY = """
import sys
from pathlib import Path
from serve.in_process import run
from serve.settings import ServeSettings
from serve.web.listening import bind, url_of
settings = ServeSettings(model=Path(sys.argv[1]), registry=None, log_dir=None, drain_s=0.2)
listening = bind("127.0.0.1", 0)
run(settings, listening, lambda: print(url_of("127.0.0.1", listening), flush=True))
"""


@pytest.mark.slow
def test_what_outlasts_the_drain_ends_with_an_event_or_a_503(
    tiny_model: Path, ask_body: Any
) -> None:
    body = ask_body(model="m3-576", max_tokens=1400)
    with (
        subprocess.Popen(
            [sys.executable, "-c", HASTY, tiny_model], env=_environment(), text=True,
            stdout=subprocess.PIPE,
        ) as process,
        httpx2.Client(timeout=60) as http,
        ThreadPoolExecutor(16) as callers,
    ):  # fmt: skip
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        asked = [
            callers.submit(http.post, f"{url}/v1/chat/completions", json=body | {"stream": i < 8})
            for i in range(16)
        ]
        while httpx2.get(f"{url}/health").json()["engine"]["running"] < 16:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        replies = [each.result() for each in asked]
    assert process.returncode == 0
    assert {reply.status_code for reply in replies[:8]} <= {200, 503}
    for stream in replies[:8]:
        assert "The service stopped before the answer was complete" in stream.text
    assert {reply.status_code for reply in replies[8:]} == {503}
    assert all(int(reply.headers["retry-after"]) > 0 for reply in replies[8:])


def test_a_service_that_is_not_well_has_its_state_and_exit_status_1(
    running: Any, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.service.gateway.admission, "draining", True)
    state = command("m3-serve", "status", "--url", running.url)
    assert state.returncode == 1
    assert "status          stopping" in state.stdout
    assert "  alive          yes" in state.stdout


@pytest.mark.ray
@pytest.mark.slow
def test_ray_serves_answers_the_cli_and_leaves_nothing(
    tiny_model: Path, tmp_path: Path, picture_bytes: Any, command: Any
) -> None:
    picture = tmp_path / "picture.png"
    picture.write_bytes(picture_bytes(0))
    with started(tmp_path, *configured(tmp_path, tiny_model)) as (process, url):
        assert httpx2.post(f"{url}/v1/route", json={"a": 30_000 * "b"}).status_code == 413
        asked = command("m3-serve", "ask", picture, "What is it?", "--scale", 9, "--url", url)
        assert asked.returncode == 0, asked.stderr
        assert asked.stdout.strip()
        assert "9 visual tokens (pinned)\n" in asked.stderr
        state = command("m3-serve", "status", "--url", url)
        assert state.returncode == 0
        assert "status          ok" in state.stdout
        cluster = descendants(process.pid)
        assert len(cluster) > 5
        commands = " ".join(part for p in cluster for part in p.cmdline())
        folders = {Path(found) for found in re.findall(r"/tmp/m3-\w+", commands)}
        assert len(folders) == 1
        end(process, signal.SIGTERM)
    assert not folders.pop().exists()
    assert read_log(tmp_path / "log").decisions.num_rows > 0
    assert "Traceback" not in (tmp_path / "stderr").read_text()


def of_metric(url: str, name: str) -> float:
    """The sum of a metric over all who tell it."""
    lines = httpx2.get(f"{url}/metrics", timeout=30).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}[{{ ]", line))


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode", ["--in-process", pytest.param("--gateways=2", marks=pytest.mark.ray)]
)
def test_what_is_audited_is_labelled_while_there_is_nothing_else_to_do(
    tiny_model: Path, tmp_path: Path, ask_body: Any, mode: str
) -> None:
    labelling = ("--log-images", "--label-idle", "labels")
    with started(tmp_path, mode, *labelling, *configured(tmp_path, tiny_model)) as (process, url):
        for seed in range(3):
            body = ask_body(seeds=(seed,))
            reply = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=60)
            assert reply.status_code == 200
        assert httpx2.get(f"{url}/health/inflight").json() == {"inflight": 0}
        # It comes last on this machine, too.
        deadline = time.monotonic() + 300
        while not of_metric(url, "m3_labelled_pictures_total"):
            assert time.monotonic() < deadline, (tmp_path / "stderr").read_text()
            time.sleep(0.2)
        assert of_metric(url, "m3_labelling_down") == 0
        (labeller,) = [p for p in descendants(process.pid) if "--follow" in p.cmdline()]
        assert os.sched_getscheduler(labeller.pid) == os.SCHED_IDLE
        end(process, signal.SIGTERM)
    assert not labeller.is_running()
    rows = [row for file in (tmp_path / "labels").glob("*.parquet")
            for row in pq.read_table(file).to_pylist()]  # fmt: skip
    logged = read_log(tmp_path / "log").decisions.to_pylist()
    assert rows
    assert {row["question_id"] for row in rows} <= {row["request_id"] for row in logged}
    assert {row["source"] for row in rows} == {"log"}


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_setup_mistakes_are_one_line(tmp_path: Path, tiny_model: Path, command: Any) -> None:
    def up(*words: object) -> str:
        return one_line(command("m3-serve", "up", *words))

    assert "does not exist" in up("--model", tmp_path / "no")
    assert "config.json" in up("--model", tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"127.0.0.1:{port}" in up("--model", tiny_model, "--port", port)
    assert "router" in up("--model", tiny_model, "--port", 0, "--router", tmp_path / "no")
    assert "--porf" in up("--porf", 8000)
    assert "--port" in up("--port", 99999)


def test_asking_nobody_is_one_line(
    tmp_path: Path, picture_bytes: Any, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.client.errors.FIRST_DELAY_S", 0.001)
    (tmp_path / "a.png").write_bytes(picture_bytes(0))
    url = ["--url", "http://127.0.0.1:9"]
    for words, says in [
        (["ask", tmp_path / "a.png", "what?"], "m3-serve up"),
        (["status"], "m3-serve up"),
        (["ask", tmp_path / "b.png", "what?"], "not a file"),
    ]:
        assert says in one_line(command("m3-serve", *words, *url))


def test_help_loads_nothing_heavy(python: Any) -> None:
    code = (
        "import sys; import serve.cli; "
        "print([m for m in ('torch', 'ray', 'fastapi', 'transformers') if m in sys.modules])"
    )
    done = python("-c", code)
    assert done.stdout.strip() == "[]", done.stderr
    assert "status" in python("-m", "serve.cli", "--help").stdout
