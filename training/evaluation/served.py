"""Whether a router decides logged requests again as it did: replay of a log, to the last action.

Each request is decided under the constraints that its record keeps: pins, caps, the price floor of
a loaded hour, a second look or none. Knows decision records, routers and what was seen of a
picture; knows no files and no models.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.actions import Plan
from router.decision import Reason
from router.records import DecisionRecord, OracleRecord
from router.router import Router
from router.wishes import constraints_from_json

UNDECIDED = (Reason.fallback.value, Reason.no_image.value, "")
Asked = tuple[str, str]  # identity of a picture, and a question about it


@dataclass(frozen=True)
class Seen:
    """What a decision rests on: features (F,) float32, and what each action reads of the picture
    (None where the scales alone are known).
    """

    features: NDArray[np.float32]
    plan: Plan | None = None


@dataclass
class ServedAgain:
    """How many requests a router decides again as it did.

    Attributes:
        same: those.
        differing: (request id, actions that were served, actions now) of the others.
        left_out: why requests were not decided again, with their number.
    """

    same: int = 0
    differing: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def sentence(self) -> str:
        """Return it for people, a warning where not all are decided as they were."""
        of = self.same + len(self.differing)
        told = f"{self.same} of {of} logged decisions are taken again"
        if self.differing:
            name, served, now = self.differing[0]
            told = (
                f"warning: only {told}, so what is replayed is not what was served; request {name} "
                f"was read by {', '.join(served)}, now by {', '.join(now)}"
            )
        left = ", ".join(f"{count} {why}" for why, count in self.left_out.items())
        return f"{told} (left out: {left})" if left else told

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON, with the first of those that differ."""
        return {
            "same": self.same,
            "differing": len(self.differing),
            "left_out": dict(self.left_out),
            "first_differing": [
                {"request_id": name, "served": list(served), "now": list(now)}
                for name, served, now in self.differing[:10]
            ],
        }


def served_again(
    router: Router, records: Iterable[DecisionRecord], seen: Mapping[Asked, Seen]
) -> ServedAgain:
    """Return how a router decides logged requests that it decided before.

    Args:
        seen: by picture and question, see `seen_in`.

    Raises:
        ValueError: constraints that are damaged, or of a later version.
    """
    found = ServedAgain()
    for record in records:
        served = record.actions or ()
        if (why := _why_not(router, record)) is not None:
            found.left_out[why] += 1
        elif (now := decide_again(router, record, seen)) is None:
            found.left_out["without features"] += 1
        elif now == served:
            found.same += 1
        else:
            found.differing.append((record.request_id, served, now))
    return found


def decide_again(
    router: Router, record: DecisionRecord, seen: Mapping[Asked, Seen]
) -> tuple[str, ...] | None:
    """Return the actions that a router takes for a logged request, those after a second look if
    the confidence of the answer that was given asks for one; None where features are missing.

    Raises:
        RoutingError: the router cannot keep the request's constraints.
        ValueError: the record keeps no constraints that can be read.
    """
    if record.constraints is None:
        raise ValueError(f"request {record.request_id}: its record keeps no constraints")
    limits = replace(constraints_from_json(record.constraints), explain=False)
    pictures = len(record.picture_ids)
    features, plan = None, None
    if limits.fixed(pictures) is None:
        known = [seen.get((name, record.question or "")) for name in record.picture_ids]
        rows = [each.features for each in known if each is not None]
        if len(rows) < pictures:
            return None
        features = np.stack(rows)
        one = known[0] if pictures == 1 else None
        if one is not None and limits.focus and not router.space.is_uniform:
            if one.plan is None:
                return None
            plan = one.plan
    decision = router.route(features, limits, n_pictures=pictures, plan=plan)
    looked = record.escalated_from is not None
    confidence = record.first_confidence if looked else record.confidence
    if decision.open_look is not None and confidence is not None:
        finer = decision.open_look.escalate(confidence)
        if finer is not None:
            return (finer.action,)
    return tuple(reading.action for reading in decision.readings)


def seen_in(rows: Iterable[OracleRecord], router: Router) -> dict[Asked, Seen]:
    """Return what a router saw of each picture and question that oracle rows tell of."""
    found = {}
    for row in rows:
        plan = None
        if row.cells is not None and row.action_space == router.space.hash:
            plan = Plan(row.visual_tokens, row.cells)
        found[row.picture_id, row.question] = Seen(np.asarray(row.features, np.float32), plan)
    return found


def _why_not(router: Router, record: DecisionRecord) -> str | None:
    """Return why a request is not decided again, None if it is."""
    if record.status != "ok" or record.reason in UNDECIDED or record.actions is None:
        return "not decided by a router, or not answered"
    if record.router_version != router.version:
        return "of another router"
    if record.constraints is None:
        return "without constraints, from a log of before"
    proof = router.held.certificate
    if record.max_harm is not None and record.certificate != (proof and proof.identity):
        return "held to another certificate"
    return None
