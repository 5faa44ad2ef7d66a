"""Where a shadow would have done otherwise, from the decision log.

Knows the JSON of `DecisionRecord.shadow`; knows no routers. First looks are compared: whether a
second one had followed depends on an answer that was not given.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from router.places import Place
from router.records import DecisionRecord
from training.errors import BadRecord, TrainingError

Reading = tuple[str, ...]  # the actions of a request's pictures


@dataclass
class ShadowReport:
    """What a router would have done as a shadow.

    Attributes:
        version: of the router.
        decided: requests that it decided too.
        same: those that it would have read as they were.
        served_tokens, shadow_tokens: visual tokens of the first looks at those, together.
        ms: milliseconds that it took, together.
        failed: requests on which it failed, by the kind of error.
        changes: (served, shadow) actions -> requests, and visual tokens that it would have saved.
    """

    version: str
    decided: int = 0
    same: int = 0
    served_tokens: int = 0
    shadow_tokens: int = 0
    ms: float = 0.0
    failed: Counter[str] = field(default_factory=Counter)
    changes: dict[tuple[Reading, Reading], tuple[int, int]] = field(default_factory=dict)

    def add(self, told: dict[str, Any]) -> None:
        """Take in the shadow of one request."""
        if "failed" in told:
            self.failed[str(told["failed"])] += 1
            return
        served, tokens = told["served"], int(told["visual_tokens"])
        self.decided += 1
        self.served_tokens += int(served["visual_tokens"])
        self.shadow_tokens += tokens
        self.ms += float(told["ms"])
        pair = tuple(served["actions"]), tuple(told["actions"])
        if pair[0] == pair[1]:
            self.same += 1
            return
        number, saved = self.changes.get(pair, (0, 0))
        self.changes[pair] = number + 1, saved + int(served["visual_tokens"]) - tokens

    def commonest(self, n_rows: int = 12) -> list[tuple[Reading, Reading, int, int]]:
        """Return (served, shadow, requests, tokens saved) of the most frequent changes."""
        rows = [(*pair, *counts) for pair, counts in self.changes.items()]
        return sorted(rows, key=lambda row: (-row[2], row[0], row[1]))[:n_rows]


def report(log: Place) -> list[ShadowReport]:
    """Return what each router that was a shadow would have done, the last one first.

    Raises:
        TrainingError: the log is not there, holds no shadow, or is damaged.
    """
    import pyarrow.compute as pc

    from router.log import NewerLog, Notes, tables

    if not log.is_dir():
        raise TrainingError(f"the log folder {log} does not exist; give --log-dir")
    found: dict[str, ShadowReport] = {}
    latest: dict[str, Any] = {}
    try:
        for table in tables(log, DecisionRecord, Notes(), ("time_utc", "request_id", "shadow")):
            for row in table.filter(pc.is_valid(table["shadow"])).to_pylist():
                told = _told(row)
                version = told["version"]
                found.setdefault(version, ShadowReport(version)).add(told)
                latest[version] = max(latest.get(version, row["time_utc"]), row["time_utc"])
    except NewerLog as error:
        raise BadRecord(str(error)) from error
    except (KeyError, TypeError) as error:
        raise BadRecord(f"what a shadow did is damaged in {log}: {error!r}") from error
    if not found:
        raise TrainingError(f"{log} tells of no shadow; m3-train shadow ROUTER begins one")
    return sorted(found.values(), key=lambda each: latest[each.version], reverse=True)


def _told(row: dict[str, Any]) -> dict[str, Any]:
    try:
        told = dict(json.loads(row["shadow"]))
        told["version"] = str(told["version"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadRecord(
            f"request {row['request_id']}: what a shadow did is damaged ({error!r})"
        ) from error
    return told
