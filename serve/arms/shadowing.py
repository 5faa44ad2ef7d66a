"""What a shadow would have done, as the decision log keeps it.

Knows decisions and the JSON of `router.records.DecisionRecord.shadow`; knows no requests.
"""

from __future__ import annotations

import json

from router.decision import RoutingDecision


def differs(decision: RoutingDecision, served: RoutingDecision) -> bool:
    """Return whether the shadow would have read something else."""
    return _actions(decision) != _actions(served)


def would_have(decision: RoutingDecision, served: RoutingDecision, ms: float) -> str:
    """Return the shadow's decision beside what was served, both of the first look."""
    return json.dumps(
        {
            "version": decision.router_version,
            "actions": _actions(decision),
            "visual_tokens": decision.visual_tokens,
            "served": {"actions": _actions(served), "visual_tokens": served.visual_tokens},
            "ms": round(ms, 3),
        }
    )


def has_failed(version: str, error: Exception) -> str:
    """Return that the shadow failed, by the kind of error: its words may quote the request."""
    return json.dumps({"version": version, "failed": type(error).__name__})


def _actions(decision: RoutingDecision) -> list[str]:
    return [reading.action for reading in decision.readings]
