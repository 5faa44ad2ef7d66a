"""Two gateways, one file of keys: budgets shared, keys exchanged, feedback at either, no leak."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from serve.tenants.keys import new_key

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[3]
CHAT = "/v1/chat/completions"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.fixture
def keys() -> list[tuple[str, str]]:
    return [new_key("alice", 10_000), new_key("bob")]


@pytest.fixture
def up(tiny_model: Path, tmp_path: Path, keys: list[tuple[str, str]]) -> Iterator[Any]:
    """Runs `m3-serve up` with two gateways; yields process and URL."""
    (tmp_path / "keys.yaml").write_text("\n".join(entry for _, entry in keys))
    left_out = ("RAY_ADDRESS", "M3_API_KEYS")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    with (tmp_path / "stderr").open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "serve.cli", "up", "--port", "0", "--gateways", "2",
             "--model", tiny_model, "--api-keys-file", "keys.yaml", "--log-dir", "log",
             "--registry", "registry", "--verbose"],
            cwd=tmp_path, env=kept | {"PYTHONPATH": str(ROOT)}, text=True,
            stdout=subprocess.PIPE, stderr=stderr,
        )  # fmt: skip
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1:]
        assert url, (tmp_path / "stderr").read_text()
        yield process, url[0]
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_two_gateways_keep_one_file(
    up: Any, keys: list[tuple[str, str]], tmp_path: Path, ask_body: Any
) -> None:
    process, url = up
    alice, bob = (key for key, _ in keys)
    with httpx2.Client(base_url=url, timeout=60) as http:
        # Each gateway has half of the budget, and both are met sooner or later.
        left, answers = set[str](), []
        for turn in range(40):
            reply = http.post(CHAT, json=ask_body(max_tokens=1), headers=bearer(alice))
            if reply.status_code == 200:
                answers.append(reply)
            assert reply.headers["x-ratelimit-limit-tokens"] == "5000", turn
            left.add(reply.headers["x-ratelimit-remaining-tokens"])
        refused = reply
        assert (refused.status_code, refused.json()["error"]["code"]) == (
            429, "rate_limit_exceeded",
        )  # fmt: skip
        # No router: 576 each. Nine empty one bucket, a few more for what comes back meanwhile.
        assert 18 <= len(answers) <= 24

        # Feedback on every answer arrives whichever gateway takes it; a stranger's never.
        for reply in answers:
            said = {"request_id": reply.json()["id"], "score": 1}
            for _ in range(2):
                done = http.post("/v1/feedback", json=said, headers=bearer(alice))
                assert done.status_code == 200, done.text
            stolen = http.post("/v1/feedback", json=said, headers=bearer(bob))
            assert stolen.status_code == 404

        # The file changes: the old key goes and the new one comes, at both, within seconds.
        new, entry = new_key("alice", 10_000)
        (tmp_path / "new.yaml").write_text(entry)
        (tmp_path / "new.yaml").replace(tmp_path / "keys.yaml")
        time.sleep(3)
        for _ in range(8):
            assert http.get("/v1/models", headers=bearer(alice)).status_code == 401
            assert http.get("/v1/models", headers=bearer(bob)).status_code == 401
            assert http.get("/v1/models", headers=bearer(new)).status_code == 200

        deadline = time.monotonic() + 20
        while 'tenant="alice"' not in (metrics := http.get("/metrics").text):
            assert time.monotonic() < deadline, metrics[:500]
            time.sleep(0.5)
    told = [" ".join(each.cmdline()) for each in psutil.Process(process.pid).children(True)]
    (folder,) = set(re.findall(r"/tmp/m3-\w+", "\n".join(told)))
    time.sleep(1.5)  # the log's second
    secrets = [alice, bob, new, (tmp_path / "log" / "answers.secret").read_text()]
    files = [path for place in (Path(folder), tmp_path) for path in place.rglob("*")
             if path.is_file() and path.name != "answers.secret"]  # fmt: skip
    assert any("log" in path.name for path in files)
    for path in files:
        said_there = path.read_bytes()
        assert not [path for secret in secrets if secret.encode() in said_there]
    assert not [secret for secret in secrets if secret in metrics]
