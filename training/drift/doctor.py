"""Examines the router in force: its log, its fresh audits, its registry; says what is wrong.

Knows which checks there are and in which order; each is another module's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from router import default_router_path
from router.drift.population import Population, read_population
from router.errors import RouterFileError
from router.places import Place
from router.registry import Restriction, current_router_path
from router.router import Router
from training.drift.attempts import judged_on
from training.drift.audits import (
    check_accuracy,
    check_calibration,
    check_certificate,
    check_features,
    check_fresh,
)
from training.drift.checks import Check, harm_in_words, healthy
from training.drift.decisions import (
    check_backlog,
    check_collapse,
    check_log,
    check_served,
    read_facts,
)
from training.drift.safer import safer
from training.errors import TrainingError
from training.fitting.telling import untelling_kinds, why_untelling
from training.oracle.data import OracleData, read_oracle, scored_by
from training.promotion.gate import Contender, live, of_the_traffic
from training.promotion.weighing import DELTA
from training.registry.journal import State, read_state
from training.registry.names import START

STALE_DAYS = 14  # of a trial or a restriction that nobody ended
MANY_ATTEMPTS = 10  # candidates on the same audits


@dataclass(frozen=True)
class Examination:
    """What was found.

    Attributes:
        name, version: of the router in force; "" where it cannot be read, or is none.
        in_force: what the registry calls it.
        checks: in the order that they were made.
        advised: what it should be held to; None: to nothing.
    """

    name: str
    version: str
    in_force: str
    checks: tuple[Check, ...]
    advised: Restriction | None

    @property
    def healthy(self) -> bool:
        """Return whether nothing is bad."""
        return healthy(self.checks)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "healthy": self.healthy,
            "router": self.name,
            "router_version": self.version,
            "in_force": self.in_force,
            "checks": [asdict(check) for check in self.checks],
            "advised": None if self.advised is None else asdict(self.advised),
        }


def examine(
    log: Place | None, oracle: Sequence[Path], registry: Place, given: Path | None
) -> Examination:
    """Return what is wrong with the router in force, and what is not.

    Args:
        log: of the service; None: it is not looked at.
        oracle: folders with labels of its audits; none: no answers are judged.
        registry: that services follow.
        given: the service's `--router`, which counts where nothing was promoted.

    Raises:
        TrainingError: nothing to examine, or a folder that holds nothing.
        RouterFileError: the registry's journal cannot be read.
    """
    if log is None and not oracle:
        raise TrainingError("nothing to examine: give --log, and --oracle with its labels")
    facts = None if log is None else read_facts(log)
    audits = of_the_traffic(read_oracle(oracle)) if oracle else None
    state = read_state(registry)
    checks = []
    if facts is not None:
        labelled = None if audits is None else set(audits.picture_ids.tolist())
        checks += [check_log(facts), check_backlog(facts, labelled)]
    contender, fault = _in_force(registry, given, audits)
    router = None if contender is None else contender.router
    fresh = told = None
    if fault is not None:
        checks.append(fault)
    elif contender is not None:
        told = None if router is None else _population(registry, given, router)
        if facts is not None:
            checks += [
                check_served(facts, router, contender.name),
                check_collapse(facts, router, told),
            ]
        if audits is not None and router is not None:
            fresh, found = _of_audits(contender, router, told, audits)
            checks += found
    checks = _weighed(checks) + _of_registry(registry, state, audits)
    why = harm_in_words(checks)
    advised = None
    if why:
        sure = fresh if router is not None and _priceable(checks) else None
        advised = Restriction(None, why) if router is None else safer(router, sure, why)
    return Examination(
        "" if contender is None else contender.name,
        "" if contender is None else contender.version,
        state.current or START, tuple(checks), advised,
    )  # fmt: skip


def _weighed(checks: Sequence[Check]) -> list[Check]:
    """Return the checks; where enough audits lose nothing, a collapse is how the traffic is."""
    fine = {check.name for check in checks if check.verdict == "ok"}
    if not {"fresh", "accuracy"} <= fine:
        return list(checks)
    return [
        replace(check, verdict="warning", do="nothing is lost by it; retrain when you can")
        if check.name == "collapse" and check.verdict == "bad"
        else check
        for check in checks
    ]


def _priceable(checks: Sequence[Check]) -> bool:
    """Return whether another price may be the cure: not for another model, nor for a router that
    tells nothing apart any more."""
    return not any(check.harms and check.name in ("match", "collapse") for check in checks)


def _in_force(
    registry: Place, given: Path | None, audits: OracleData | None
) -> tuple[Contender | None, Check | None]:
    """Return what is in force, or what is wrong with it."""
    try:
        model_hash = _shipped_model() if audits is None else audits.model_hash
        return live(registry, given, model_hash), None
    except (TrainingError, RouterFileError) as error:
        return None, Check(
            "router", "bad", f"the router in force cannot be read: {error}",
            do="m3-train rollback, or promote another",
        )  # fmt: skip


def _shipped_model() -> str:
    try:
        return str(Router.from_pretrained(default_router_path()).metadata.get("model_hash"))
    except (OSError, ValueError):
        return ""


def _population(registry: Place, given: Path | None, router: Router) -> Population | None:
    folder = current_router_path(registry) or given or default_router_path()
    return read_population(folder, router)


def _of_audits(
    contender: Contender, router: Router, told: Population | None, audits: OracleData
) -> tuple[OracleData | None, list[Check]]:
    why_not = contender.why_not_on(audits)
    if why_not is not None:
        do = "fit a router on answers of the model that is served"
        return None, [Check("match", "bad", why_not, do=do)]
    fresh = audits.take(contender.unseen(audits))
    checks = [Check("match", "ok", "router and labels are of one model and one way of asking")]
    checks.append(check_fresh(fresh, audits))
    if len(fresh):
        empty = untelling_kinds(fresh)
        fresh = fresh.take(~np.isin(fresh.groups, list(empty)))
    silent = why_untelling(fresh.scores, scored_by(fresh)) if len(fresh) else None
    if silent is not None:
        checks.append(Check("scores", "warning", silent, do="m3-train collect --metric"))
    if not len(fresh) or silent is not None:
        return None, checks
    checks += [
        check_features(router, told, fresh),
        check_calibration(router, fresh),
        check_accuracy(router, fresh),
        check_certificate(router, fresh),
    ]
    return fresh, checks


def _of_registry(registry: Place, state: State, audits: OracleData | None) -> list[Check]:
    """Return what is on trial or restricted, for how long, and how often these audits judged."""
    checks = []
    if state.restriction is not None:
        since = _since(state, "restriction")
        checks.append(
            Check(
                "restriction", "warning",
                f"the router in force is restricted{_days(since)}: {state.restriction.why}",
                do="promote a router that is fit for the traffic, or m3-train doctor --lift",
            )
        )  # fmt: skip
    if state.trial is not None:
        since = _since(state, "trial")
        stale = since is not None and since > timedelta(days=STALE_DAYS)
        checks.append(
            Check(
                "trial", "warning" if stale else "ok",
                f"{state.trial.router} is a {state.trial.kind}{_days(since)}",
                do="promote it, or end the trial" if stale else "",
            )
        )  # fmt: skip
    if audits is not None:
        tried = len(judged_on(registry, audits.data_hash))
        chance = 1.0 - (1.0 - DELTA) ** tried
        many = tried > MANY_ATTEMPTS
        checks.append(
            Check(
                "attempts", "warning" if many else "ok",
                f"{tried} candidates were judged on these audits"
                + (f": that a worse one passes has a chance of up to {chance:.0%}" if many else ""),
                tried, "wait for new audits before you try the next" if many else "",
            )
        )  # fmt: skip
    return checks


def _since(state: State, what: str) -> timedelta | None:
    """Return how long the trial or restriction has stood, by the clock of who wrote it."""
    now, began = getattr(state.entries[-1], what), None
    for entry in reversed(state.entries):
        if getattr(entry, what) != now:
            break
        began = entry.time_utc
    try:
        return datetime.now(UTC) - datetime.fromisoformat(str(began))
    except (ValueError, TypeError):
        return None


def _days(since: timedelta | None) -> str:
    return "" if since is None or since.days < 1 else f" for {since.days} days"
