"""Does bad input hurt? Thousands of broken pictures and requests against a real service.

Three parts: what schemathesis makes of /openapi.json (in an environment of its own), mutated
pictures, and bodies that are the abuse. Meanwhile another process sends one small cached request
after the other, and the service's memory is sampled. Held to: no 5xx, no hang, an envelope on every
refusal, memory that grows by at most twice `max_inflight_bytes`, and a small request whose 99th
percentile stays within five times that of the idle service. Statuses of overload (408, 429, 503)
are counted apart: they are how the service protects itself.

    python -m venv ENV && ENV/bin/pip install schemathesis
    python benchmarks/abuse.py [--schemathesis ENV/bin/st] [--only KIND ...] [--seed N]
                               [--json PATH] [--quick]
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from _abuse import description
from _abuse.bodies import BODIES, Make, about
from _abuse.bombs import BOMBS, COSTLY
from _abuse.pictures import MUTATIONS, good
from _abuse.sending import CLOSED, HANGS, Ended, send
from _abuse.watched import Watched, percentile, watched
from _result import arguments, write

from serve.settings import ServeSettings

OVERLOAD = ("408", "429", "503")
LIMITS = {"probe_p99_ratio": 5.0, "loop_ms": 50.0}
SCHEMATHESIS = "openapi"
SENDERS = {"half_sent": 100, "slow_body": 50}  # at once; others: two, as many as there are cores
AFTER_S = 1.0  # what a kind leaves behind belongs to it


@dataclass
class Outcome:
    """What came of one kind of abuse.

    Attributes:
        statuses: replies by status, "closed", "hang".
        faults: what was wrong with replies.
        slowest_s: the longest that a sender waited.
        begin, end: when it was.
    """

    begin: float
    end: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0

    def add(self, ended: Ended) -> None:
        """Take one in."""
        word = {CLOSED: "closed", HANGS: "hang"}.get(ended.status, str(ended.status))
        self.statuses[word] += 1
        self.slowest_s = max(self.slowest_s, ended.seconds)
        if ended.fault:
            self.faults[ended.fault] += 1

    @property
    def server_errors(self) -> int:
        """Replies of 500 and above that are none of overload."""
        return sum(
            n for word, n in self.statuses.items() if word[0] == "5" and word not in OVERLOAD
        )


def kinds() -> dict[str, tuple[Make, int]]:
    """Return what makes each kind of request, and how many of it are sent."""
    pictures = {name: (about(make), 120) for name, make in MUTATIONS.items()}
    pictures |= {name: (about(make), 120) for name, make in BOMBS.items()}
    costly = {name: (about(make), 16) for name, make in COSTLY.items()}
    bodies = {name: (make, 60) for name, make in BODIES.items()}
    bodies["half_sent"], bodies["slow_body"] = (
        (BODIES["half_sent"], 300),
        (BODIES["slow_body"], 100),
    )
    return pictures | costly | bodies


def abuse(service: Watched, name: str, make: Make, n: int, least_s: float, seed: int) -> Outcome:
    """Send ``n`` requests of a kind, and more until ``least_s`` have passed, for the probe."""
    random = Random(f"{seed} {name}")
    outcome = Outcome(time.monotonic())
    n_senders = SENDERS.get(name, 2)

    def one(own: int) -> Ended:
        return send(make(Random(own)), service.host, service.port)

    with ThreadPoolExecutor(n_senders) as senders:
        sent = 0
        while sent < n or time.monotonic() - outcome.begin < least_s:
            batch = [random.randrange(2**60) for _ in range(max(n_senders, 4))]
            for ended in senders.map(one, batch):
                outcome.add(ended)
            sent += len(batch)
    time.sleep(AFTER_S)
    outcome.end = time.monotonic()
    return outcome


def describe(service: Watched, command: Path, seed: int, *, quick: bool) -> Outcome:
    """Let schemathesis ask, with further seeds until it has asked often enough."""
    outcome = Outcome(time.monotonic())
    while outcome.statuses.total() < (1 if quick else 2_000):
        report = description.check(command, service.url, seed, service.folder, quick=quick)
        outcome.statuses += report.statuses
        outcome.faults.update(report.failures)
        seed += 1
    time.sleep(AFTER_S)
    outcome.end = time.monotonic()
    return outcome


def figures(
    service: Watched, outcome: Outcome, idle: dict[str, float], base: int
) -> dict[str, Any]:
    """Return what is reported of one kind."""
    probes = service.probes(outcome.begin, outcome.end)
    small, live = probes["small"], probes["live"]
    p99 = percentile(small, 0.99)
    return {
        "requests": outcome.statuses.total(),
        "statuses": dict(sorted(outcome.statuses.items())),
        "server_errors": outcome.server_errors,
        "hangs": outcome.statuses["hang"],
        "faults": dict(outcome.faults),
        "slowest_s": round(outcome.slowest_s, 2),
        "memory_growth_bytes": max(0, service.peak_bytes(outcome.begin, outcome.end) - base),
        "probes": len(small),
        "probes_failed": sum(status != 200 for _, status in small + live),
        "probe_p50_ms": round(percentile(small, 0.5), 1),
        "probe_p99_ms": round(p99, 1),
        "probe_p99_ratio": round(p99 / idle["p99_ms"], 2),
        "live_p99_ms": round(percentile(live, 0.99), 1),
        "live_most_ms": round(max((ms for ms, _ in live), default=0.0), 1),
    }


def line(name: str, told: dict[str, Any]) -> str:
    """Return one row of the table."""
    statuses = " ".join(f"{word}:{n}" for word, n in told["statuses"].items())
    bad = told["server_errors"] + told["hangs"] + sum(told["faults"].values())
    return (
        f"{name:16}{told['requests']:6}{bad:5}{told['memory_growth_bytes'] / 1e6:8.0f}"
        f"{told['slowest_s']:8.1f}{told['probe_p99_ms']:9.0f}{told['probe_p99_ratio']:7.1f}"
        f"{told['live_p99_ms']:8.0f}{told['live_most_ms']:7.0f}{told['probes_failed']:6}"
        f"  {statuses}"
    )


HEAD = (
    f"{'kind':16}{'sent':>6}{'bad':>5}{'+MB':>8}{'slow s':>8}{'p99 ms':>9}{'ratio':>7}"
    f"{'live99':>8}{'most':>7}{'fail':>6}  statuses"
)


def fill_cache(service: Watched) -> None:
    """Show the service new pictures until it keeps no more: that memory is no growth by abuse."""
    random, before = Random("cache"), -1
    while (now := service.cached_pictures()) > before:
        before = now
        for _ in range(40):
            send(about(lambda own: good(own, "PNG"))(random), service.host, service.port)


def measure(
    service: Watched, chosen: dict[str, Callable[[], Outcome]], idle_s: float, *, quick: bool
) -> dict[str, Any]:
    """Return the report: the idle service first, then each kind in turn."""
    if quick:
        print("the picture cache is not filled first: its growth is counted too")
    else:
        fill_cache(service)
    time.sleep(3.0)  # warm
    begin = time.monotonic()
    time.sleep(idle_s)
    probes = service.probes(begin, time.monotonic())
    idle = {
        "probes": len(probes["small"]),
        "p50_ms": round(percentile(probes["small"], 0.5), 2),
        "p99_ms": round(percentile(probes["small"], 0.99), 2),
        "live_p99_ms": round(percentile(probes["live"], 0.99), 2),
        "live_most_ms": round(max(ms for ms, _ in probes["live"]), 2),
    }
    base = service.bytes_now()
    print(f"idle: p99 {idle['p99_ms']} ms of {idle['probes']} small requests, {base / 1e6:.0f} MB")
    print(HEAD, flush=True)
    per_kind = {}
    for name, run in chosen.items():
        per_kind[name] = figures(service, run(), idle, base)
        print(line(name, per_kind[name]), flush=True)
        for fault, n in per_kind[name]["faults"].items():
            print(f"    {n} x {fault}")
        if service.process.poll() is not None:
            raise RuntimeError(f"the service ended during {name}")
    return {"idle": idle, "base_bytes": base} | summary(per_kind) | {"per_kind": per_kind}


def summary(per_kind: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what all kinds come to, and whether it is within the limits."""
    statuses: Counter[str] = Counter()
    for told in per_kind.values():
        statuses.update(told["statuses"])
    most = max(told["memory_growth_bytes"] for told in per_kind.values())
    limit = 2 * ServeSettings().max_inflight_bytes
    ratio = max(told["probe_p99_ratio"] for told in per_kind.values())
    errors = sum(told["server_errors"] for told in per_kind.values())
    hangs = sum(told["hangs"] for told in per_kind.values())
    faults = sum(sum(told["faults"].values()) for told in per_kind.values())
    failed = sum(told["probes_failed"] for told in per_kind.values())
    return {
        "requests": statuses.total(),
        "statuses": dict(sorted(statuses.items())),
        "overload": {word: statuses[word] for word in OVERLOAD},
        "server_errors": errors, "hangs": hangs, "faults": faults, "probes_failed": failed,
        "memory_growth_bytes": most, "memory_limit_bytes": limit, "probe_p99_ratio": ratio,
        "held": {
            "no_server_error": errors == 0, "no_hang": hangs == 0, "no_fault": faults == 0,
            "memory": most <= limit, "probe": ratio <= LIMITS["probe_p99_ratio"] and not failed,
        },
    }  # fmt: skip


def main() -> None:
    """Measure, print, write."""
    parser = arguments(__doc__, "a few requests of each kind")
    parser.add_argument(
        "--schemathesis", type=Path, help="its command, in an environment of its own"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="KIND", help="these kinds, or "
                        f"{SCHEMATHESIS}, pictures, bodies")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    known = kinds()
    groups = {"pictures": [*MUTATIONS, *BOMBS, *COSTLY], "bodies": [*BODIES], SCHEMATHESIS: []}
    wanted = {each for name in given.only for each in [name, *groups.get(name, [])]}
    if unknown := [name for name in given.only if name not in known and name not in groups]:
        parser.error(f"unknown kind {unknown[0]}; there are {', '.join([*groups, *known])}")
    command = description.find(given.schemathesis)
    if command is None and (not wanted or SCHEMATHESIS in wanted):
        if not given.quick:
            parser.exit(2, description.HOW + "\n")
        print(f"{SCHEMATHESIS} is left out: {description.HOW}")
    share, least_s = (0.1, 2.0) if given.quick else (1.0, 8.0)
    with watched() as service:
        chosen: dict[str, Callable[[], Outcome]] = {}
        if command is not None and (not wanted or SCHEMATHESIS in wanted):
            chosen[SCHEMATHESIS] = lambda: describe(service, command, given.seed, quick=given.quick)
        for name, (make, n) in known.items():
            if not wanted or name in wanted:
                many = max(1, int(n * share))
                chosen[name] = lambda name=name, make=make, many=many: abuse(  # type: ignore[misc]
                    service, name, make, many, least_s, given.seed
                )
        report = measure(service, chosen, 5.0 if given.quick else 20.0, quick=given.quick)
        stderr = service.folder.joinpath("stderr").read_text(encoding="utf-8")
        report["tracebacks"] = stderr.count("Traceback")
        print(*stderr.splitlines()[-40:] if report["tracebacks"] else [], sep="\n")
    print(f"{report['requests']} requests; held: {report['held']}; tracebacks: "
          f"{report['tracebacks']}")  # fmt: skip
    write(report, given.json)
    if not given.quick:
        sys.exit(not all(report["held"].values()))


if __name__ == "__main__":
    main()
