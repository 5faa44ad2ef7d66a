"""How a canary stands, by the log and by audits, and what follows from it.

Composes operations, accuracy and the registry's changes; knows their order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from router.places import Place
from router.registry import last_entry
from router.router import Router
from training.errors import TrainingError
from training.promotion.gate import at_the_gate
from training.promotion.verdict_report import said_of
from training.promotion.weighing import Verdict
from training.registry.changes import end_trial, on_trial, promote
from training.registry.names import START
from training.trials.accuracy import Standing, standing
from training.trials.operations import Finding, findings, traffic_of


@dataclass(frozen=True)
class Judgement:
    """What was found out about a canary.

    Attributes:
        tried: its folder in the registry.
        current: what was in force when it was judged, as ``--expect`` takes it.
        findings: of the log; none without one.
        requests: in the log, of the canary and of the live router meanwhile.
        knows_time: whether slow requests could be told from quick ones.
        verdict: of the gate; None without audits.
    """

    tried: str
    current: str
    findings: tuple[Finding, ...] = ()
    requests: tuple[int, int] = (0, 0)
    knows_time: bool = True
    verdict: Verdict | None = None

    @property
    def bad(self) -> list[str]:
        """Return what is shown to speak against it."""
        told = [each.sentence for each in self.findings if each.worse]
        if self.verdict is not None and standing(self.verdict) == "worse":
            told.append(self.verdict.sentence)
        return told

    @property
    def standing(self) -> Standing:
        """Return whether it is to be ended, may be promoted, or neither."""
        if self.bad:
            return "worse"
        return "open" if self.verdict is None else standing(self.verdict)


def judged(
    registry: Place,
    log: Place | None,
    oracle: Sequence[Path] = (),
    *,
    most_tokens: float,
    incumbent: Path | None = None,
    reference: Path | None = None,
) -> Judgement:
    """Return how the canary stands that is on trial.

    Args:
        registry: its place.
        log: of the service's decision log; None leaves operations unjudged.
        oracle: audits; none leave accuracy unjudged.
        most_tokens: times the live router's visual tokens, that are allowed.
        incumbent, reference: as for the gate.

    Raises:
        TrainingError: no canary is on trial, there is neither log nor audits, or they cannot be
            read.
    """
    tried, entry = on_trial(registry, "canary").router, last_entry(registry)
    if log is None and not oracle:
        raise TrainingError("nothing to judge it by: give --log-dir of the service, or --oracle")
    current = START if entry is None or entry.to is None else entry.to
    found: tuple[Finding, ...] = ()
    requests, knows_time = (0, 0), True
    if log is not None:
        router = Router.from_pretrained(registry / tried)
        traffic = traffic_of(log, router.version, router.scales[-1])
        found = findings(traffic, most_tokens)
        n_canary = int(traffic.canary.sum())
        requests = n_canary, len(traffic.canary) - n_canary
        knows_time = traffic.slow is not None
    verdict = None
    if oracle:
        verdict = at_the_gate(
            registry / tried, registry, oracle, incumbent=incumbent, reference=reference
        )
    return Judgement(tried, current, found, requests, knows_time, verdict)


def goes_on(registry: Place, tried: str) -> bool:
    """Return whether a router is on trial as a canary still."""
    entry = last_entry(registry)
    trial = None if entry is None else entry.trial
    return trial is not None and (trial.kind, trial.router) == ("canary", tried)


def act_on(judgement: Judgement, registry: Place, *, who: str, why: str = "") -> str:
    """Promote, or end and quarantine, what was judged, or let it go on; return what was done.

    Raises:
        NotInForce: something else came into force meanwhile.
        TrainingError: the trial has ended meanwhile.
    """
    tried = judgement.tried
    if not goes_on(registry, tried):
        raise TrainingError(f"the trial of {tried} has ended meanwhile")
    if judgement.standing == "worse":
        reasons = "; ".join(filter(None, (why, f"as a canary: {'; '.join(judgement.bad)}")))
        end_trial("canary", registry, bad=True, who=who, why=reasons)
        return f"ended and in quarantine: {tried}, {reasons}"
    if judgement.standing == "fit" and judgement.verdict is not None:
        reasons = "; ".join(filter(None, (why, said_of(judgement.verdict))))
        folder = promote(registry / tried, registry, expect=judgement.current, who=who, why=reasons)
        return f"{reasons}; in force: {folder}"
    return "neither shown fit nor shown worse: the trial goes on"
