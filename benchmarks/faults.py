"""Faults survived: what callers see while parts of the service are killed, hung, swapped, stopped.

Real processes on a small Ray cluster of its own: 2 gateways, 2 encoders, 2 generators, 8 clients in
a closed loop, every fifth request a stream; a small random model. Every fault strikes while
its victim has requests in its hands.

    python benchmarks/faults.py --json benchmarks/results/faults.json
    python benchmarks/faults.py --only sigterm --json benchmarks/results/faults.json

Per fault: `requests` that were no streams; `failed`, those of them without a whole answer and
streams that were cut off without an error event; `in_flight_on_victim`, what it had in its
hands; `recovered_s`, until everything ran as before. Nothing is tried again by the clients,
except by the openai SDK under `gateway_kill` and `proxy_kill`. With --only the other faults of the
file stay as they are.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from _faults.changes import router_swap, scaling
from _faults.cluster import Cluster, running
from _faults.replicas import (
    callers_leave,
    controller_kill,
    gateway_kill,
    poison_picture,
    proxy_kill,
    replica_fault,
)
from _faults.stopping import sigterm
from _result import arguments

Fault = Callable[[Cluster, int], dict[str, Any]]
ON_THE_CLUSTER: dict[str, Fault] = {
    "generator_kill": replica_fault("generator", "kill"),
    "encoder_kill": replica_fault("encoder", "kill"),
    "controller_kill": controller_kill,
    "gateway_kill": gateway_kill,
    "dead_engine": replica_fault("generator", "dead_engine"),
    "blocked_loop": replica_fault("generator", "blocked_loop"),
    "hung_worker": replica_fault("generator", "hung_worker"),
    "router_swap": router_swap,
    "scaling": scaling,
    "stopped_encoder": replica_fault("encoder", "stop"),
    "proxy_kill": proxy_kill,
    "poison_picture": poison_picture,
    "callers_leave": callers_leave,
}
COLUMNS = ("requests", "failed", "in_flight_on_victim", "recovered_s")


def main() -> None:
    parser = arguments(__doc__, "a fifth of the requests")
    names = [*ON_THE_CLUSTER, "sigterm"]
    parser.add_argument("--only", action="append", choices=names, metavar="FAULT", default=[])
    given = parser.parse_args()
    wanted = given.only or names
    requests = 100 if given.quick else 500
    report: dict[str, Any] = {}
    if given.only and given.json is not None and given.json.is_file():
        report = json.loads(given.json.read_text("utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        cluster: AbstractContextManager[Any] = nullcontext()
        if on_it := [name for name in wanted if name in ON_THE_CLUSTER]:
            cluster = running(Path(folder))
        print(f"{'':16}" + "".join(f"{column:>22}" for column in COLUMNS))
        with cluster as service:
            for name in on_it:
                report[name] = ON_THE_CLUSTER[name](service, requests)
                show(name, report[name])
        if "sigterm" in wanted:
            report["sigterm"] = sigterm(requests)
            show("sigterm", report["sigterm"])
    if given.json is not None:
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        print(f"written to {given.json}")


def show(name: str, found: dict[str, Any]) -> None:
    """Print a fault's line, and below it how its requests ended."""
    print(f"{name:16}" + "".join(f"{found[column]:>22}" for column in COLUMNS))
    rest = {key: value for key, value in found.items() if key not in COLUMNS}
    print(f"{'':16}  {rest}", flush=True)


if __name__ == "__main__":
    main()
