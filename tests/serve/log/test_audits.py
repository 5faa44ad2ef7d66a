"""Which requests are audited: a uniform share, the same draws for a seed, changed while running."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from router.log import read_log
from router.log.auditing import AUDIT, read_audit_rate, write_audit_rate
from serve.log.audits import Audits
from serve.log.decisions import DecisionLog


def test_audits_are_drawn_uniformly() -> None:
    audits = Audits(None, 0.3)
    share = sum(audits.draw() for _ in range(2000)) / 2000
    assert abs(share - 0.3) < 0.05  # five standard deviations
    assert not any(Audits(None, 0.0).draw() for _ in range(100))
    assert all(Audits(None, 1.0).draw() for _ in range(100))


def test_a_seed_repeats_its_draws() -> None:
    first, again, other = (Audits(None, 0.5, seed) for seed in (7, 7, 8))
    drawn = [[each.draw() for _ in range(64)] for each in (first, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize("told", ["{}", "[]", "", '{"rate": 2}', '{"rate": true}', '{"rate": "1"}'])
def test_what_is_no_share_changes_nothing(tmp_path: Path, told: str, caplog: Any) -> None:
    (tmp_path / AUDIT).write_text(told)
    with pytest.raises(ValueError, match=r"rate|share|Expecting"):
        read_audit_rate(tmp_path)
    audits = Audits(tmp_path, 0.25)
    audits.look()
    assert audits.rate == 0.25
    assert "0.25 of the requests are audited as before" in caplog.text


def test_a_log_that_is_written_follows_what_it_is_told(tmp_path: Path) -> None:
    write_audit_rate(tmp_path, 0.5)
    log = DecisionLog(tmp_path, flush_s=0.01, audit_rate=0.125)
    try:
        assert log.audits.rate == 0.5
        write_audit_rate(tmp_path, None)
        until = time.monotonic() + 30
        while log.audits.rate != 0.125 and time.monotonic() < until:
            time.sleep(0.05)
        assert log.audits.rate == 0.125
    finally:
        log.close()


def test_a_running_service_audits_another_share(running: Any, ask_body: Any, command: Any) -> None:
    """Told by the command, without a restart; its records say who was audited."""
    assert command("m3-train", "log", "audit", "--log-dir", running.log_dir).stderr.endswith(
        "audited: as each service was started\n"
    )
    assert command("m3-train", "log", "audit", "0", "--log-dir", running.log_dir).returncode == 0
    log = running.service.gateway.log._log
    until = time.monotonic() + 30
    try:
        while log.audits.rate != 0 and time.monotonic() < until:
            time.sleep(0.05)
        url, name = f"{running.url}/v1/chat/completions", "who-is-audited"
        reply = httpx2.post(url, json=ask_body(), headers={"x-request-id": name}, timeout=60)
        assert reply.status_code == 200
        assert log.flush()
        rows = read_log(running.log_dir).decisions.to_pylist()
        assert [row["audited"] for row in rows if row["request_id"] == name] == [False]
    finally:
        done = command("m3-train", "log", "audit", "--reset", "--log-dir", running.log_dir)
    assert done.returncode == 0
    while log.audits.rate != 1 and time.monotonic() < until:
        time.sleep(0.05)
    assert log.audits.rate == 1


@pytest.mark.parametrize("words", [["2"], ["nan"], ["0.5", "--reset"], ["0.5", "--log-dir", "no"]])
def test_a_mistake_is_one_line(tmp_path: Path, command: Any, words: list[str]) -> None:
    folder = [] if "--log-dir" in words else ["--log-dir", tmp_path]
    done = command("m3-train", "log", "audit", *words, *folder)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / AUDIT).exists()
