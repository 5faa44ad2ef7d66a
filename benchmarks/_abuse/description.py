"""What schemathesis makes of /openapi.json: requests of its own, and whether the replies conform.

It lives in an environment of its own (it brings other versions of what is tested here), and runs
as a process. Knows its command line and its report; knows nothing of the service.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOW = """schemathesis is not found. Put it into an environment of its own:
    python -m venv ENV && ENV/bin/pip install schemathesis
and name it with --schemathesis ENV/bin/st, or leave it out with --only pictures bodies"""
# A description cannot say which strings are pictures, nor which of its fields exclude each other:
# what it allows may be refused. All other checks hold.
NOT_CHECKED = "positive_data_acceptance"
CASES = {True: 20, False: 400}  # of each operation, besides those of its coverage phase


@dataclass(frozen=True)
class Report:
    """What came of a run: replies by status, and a line for each kind of failure."""

    statuses: Counter[str]
    failures: list[str]


def find(given: Path | None) -> Path | None:
    """Return schemathesis' command, None where there is none."""
    if given is not None:
        return given if given.is_file() else None
    found = shutil.which("st") or shutil.which("schemathesis")
    return None if found is None else Path(found)


def check(command: Path, url: str, seed: int, folder: Path, *, quick: bool) -> Report:
    """Return what schemathesis found.

    Raises:
        RuntimeError: it could not run.
    """
    events, summary = folder / "events.ndjson", folder / "summary.json"
    run = [
        command, "--no-color", "run", f"{url}/openapi.json", "--seed", seed, "--workers", 2,
        "--max-examples", CASES[quick], "--checks", "all", "--exclude-checks", NOT_CHECKED,
        "--continue-on-failure", "--generation-database", "none", "--request-timeout", 120,
        "--report", "ndjson,json", "--report-ndjson-path", events, "--report-json-path", summary,
    ]  # fmt: skip
    done = subprocess.run([*map(str, run)], capture_output=True, text=True, check=False, cwd=folder)
    if not summary.is_file():
        raise RuntimeError(f"schemathesis failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    told = json.loads(summary.read_text(encoding="utf-8"))
    failures = [
        f"{each['title']}: {', '.join(each['operations'][:3])} ({each['count']})"
        for each in told["failures"]
    ]
    failures += [f"error: {json.dumps(each)[:200]}" for each in told["errors"]]
    return Report(Counter(_statuses(events)), failures)


def _statuses(events: Path) -> Iterator[str]:
    with events.open(encoding="utf-8") as lines:
        for line in lines:
            scenario: dict[str, Any] = json.loads(line).get("ScenarioFinished", {})
            for each in scenario.get("recorder", {}).get("interactions", {}).values():
                reply = each.get("response")
                yield "none" if reply is None else str(reply["status_code"])
