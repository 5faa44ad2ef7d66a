"""A service whose registry and log lie in an object store: killed, it has lost nothing it said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from router.log import read_log
from serve.arms.assignment import is_drawn, session_of

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


@contextmanager
def up(*flags: object) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a service in a process of its own, which is killed in the end."""
    words = ["up", "--in-process", "--port", 0, *flags]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    with subprocess.Popen(
        [sys.executable, "-m", "serve.cli", *map(str, words)], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path},
    ) as service:  # fmt: skip
        assert service.stdout is not None
        try:
            line = service.stdout.readline()
            if "is ready at" not in line:
                service.kill()
                assert service.stderr is not None
                pytest.fail(service.stderr.read())
            yield line.split()[-1], service
        finally:
            service.kill()


def get(url: str, body: Any = None) -> dict[str, Any]:
    request = urllib.request.Request(
        url, None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=60) as reply:
        found: dict[str, Any] = json.load(reply)
        return found


def wait_for(version: str, url: str, body: Any) -> None:
    give_up = time.monotonic() + 60
    while get(f"{url}/v1/chat/completions", body)["routing"]["router_version"] != version:
        assert time.monotonic() < give_up
        time.sleep(0.05)


def test_a_turn_with_nothing_on_this_disk(
    tiny_model: Path, make_router: Callable[[Path, int], str], command: Callable[..., Any],
    ask_body: Callable[..., dict[str, Any]], s3: str, tmp_path: Path,
) -> None:  # fmt: skip
    first, second = make_router(tmp_path / "a", 9), make_router(tmp_path / "b", 144)
    registry, log = f"{s3}/registry", f"{s3}/log"

    def train(*words: object) -> None:
        done = command("m3-train", *words)
        assert done.returncode == 0, done.stderr

    train("promote", "--force", "--router", tmp_path / "a", "--registry", registry)
    flags = [
        "--model", tiny_model, "--router", tmp_path / "b", "--registry", registry,
        "--log-dir", log, "--log-images",
    ]  # fmt: skip
    with up(*flags) as (url, service):
        train("promote", "--force", "--router", tmp_path / "b", "--registry", registry)
        wait_for(second, url, ask_body())
        train("rollback", "--registry", registry)
        wait_for(first, url, ask_body())
        assert get(f"{url}/health")["status"] == "ok"
        # `b` was rolled back; a third is tried on all that it may have, and stopped.
        third = make_router(tmp_path / "c", 36)
        train("canary", tmp_path / "c", "--share", 0.5, "--registry", registry)
        groups = [f"g{number}" for number in range(16)]
        drawn = {group for group in groups if is_drawn(session_of("", group, [], []), third, 0.5)}
        wait_for(third, url, ask_body(routing={"group_id": min(drawn)}))
        wait_for(first, url, ask_body(routing={"group_id": min({*groups} - drawn)}))
        assert get(f"{url}/health")["encoder"]["trial"].startswith("canary ")
        train("canary", "--stop", "--quarantine", "--registry", registry)
        wait_for(first, url, ask_body(routing={"group_id": min(drawn)}))
        give_up = time.monotonic() + 60
        while {first, second} - set(read_log(log).decisions["router_version"].to_pylist()):
            assert time.monotonic() < give_up
        kept = read_log(log).decisions["request_id"].to_pylist()
        service.kill()
    train("log", "compact", "--log-dir", log)
    assert set(kept) <= set(read_log(log).decisions["request_id"].to_pylist())
    train(
        "collect", "--from-log", log, "--model", tiny_model, "--out", tmp_path / "out",
        "--workers", 1,
    )  # fmt: skip
    assert list((tmp_path / "out").glob("oracle-*.parquet"))
