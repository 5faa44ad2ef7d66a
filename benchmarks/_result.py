"""What every benchmark's command line shares: two flags, and a report that says how it was made.

Knows files and the machine; knows nothing of what is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def arguments(description: str | None, quick: str) -> argparse.ArgumentParser:
    """Return a parser with `--json` and `--quick`.

    Args:
        description: the script's docstring; its first line is shown.
        quick: what is smaller with `--quick`.
    """
    committed = f"benchmarks/results/{Path(sys.argv[0]).stem}.json"
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument(
        "--json", type=Path, help=f"write the report there (committed: {committed})"
    )
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def write(report: dict[str, Any], path: Path | None) -> None:
    """Write the report with the command, machine and day it was made by; no path, no file."""
    if path is None:
        return
    made = {
        "command": shlex.join(["python", *sys.argv]),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "day": f"{datetime.now(UTC):%Y-%m-%d}",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report | {"made": made}, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")
