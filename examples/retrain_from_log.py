"""Retrain the router from a service's log: collect, fit, compare before with after, promote.

    python examples/retrain_from_log.py [--log .m3/log] [--out runs/retrained] [--promote [--force]]

Needs a log with pictures: run the service with m3-serve up --log-images and send it questions, at
least about 40 different pictures. Running services follow a promotion within a second; the gate
lets through what thousands of pictures show to be fit, --force whatever there is. Every step is an
m3-train command, printed before it runs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from router import default_router_path
from router.registry import DEFAULT_REGISTRY, current_router_path


def m3_train(*arguments: str | Path) -> None:
    """Run one m3-train command; one that fails says why and ends this script."""
    words = [str(argument) for argument in arguments]
    print(f"$ m3-train {shlex.join(words)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "training.cli", *words])
    if done.returncode:
        sys.exit(done.returncode)


def judged(router: Path, oracle: Path, out: Path) -> str:
    """Return how a router does on the log's test pictures, which no router was fitted on."""
    m3_train("evaluate", "--router", router, "--oracle", oracle, "--out", out)
    found = json.loads((out / "report.json").read_text(encoding="utf-8"))
    low, high = (100 * found["router"]["difference_from_finest"][end] for end in ("low", "high"))
    return (
        f"{found['router']['accuracy']:.1%} right at {found['router']['visual_tokens']:.1f} visual "
        f"tokens ({low:+.1f} to {high:+.1f} points from the finest scale, "
        f"{found['n_questions']} test questions)"
    )


def main() -> None:
    """Learn from the log, print before and after, and promote if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--log", type=Path, default=Path(".m3/log"), help="the service's --log-dir")
    parser.add_argument("--out", type=Path, default=Path("runs/retrained"), help="folder to write")
    parser.add_argument("--registry", type=Path, default=DEFAULT_REGISTRY)
    parser.add_argument("--model", type=Path, help="the service's --model, if it has one")
    parser.add_argument("--before", type=Path, help="router folder; else the one in force")
    parser.add_argument("--promote", action="store_true", help="put the new router in force")
    parser.add_argument("--force", action="store_true", help="whatever the gate says")
    given = parser.parse_args()
    before = given.before or current_router_path(given.registry) or default_router_path()
    oracle, candidate = given.out / "oracle", given.out / "router"

    model = [] if given.model is None else ["--model", given.model]
    m3_train("collect", "--from-log", given.log, "--out", oracle, *model)
    m3_train("fit", "--oracle", oracle, "--out", candidate)
    told = {
        "before": judged(before, oracle, given.out / "before"),
        "after": judged(candidate, oracle, given.out / "after"),
    }
    for name, sentence in told.items():
        print(f"{name:7} {sentence}")
    if given.promote:  # the gate is closed to a router that is not shown to be cheaper and as good
        live = [] if given.before is None else ["--incumbent", given.before]
        forced = ["--force"] if given.force else []
        m3_train("promote", "--router", candidate, "--oracle", oracle,
                 "--registry", given.registry, *live, *forced)  # fmt: skip


if __name__ == "__main__":
    main()
