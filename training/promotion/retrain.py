"""The whole turn of learning in one call: log → oracle → router → report → gate → promotion.

Composes the other tools; knows their order, where each one's result lies, and what a new router
takes over from the one that it is to replace.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3model.config import hash_model
from router.certificate.proof import Loss
from router.places import Place
from router.registry import current_router_path
from router.router import Router
from training.drift.attempts import counted
from training.drift.population import write_population
from training.errors import GateClosed, TrainingError
from training.evaluation.evaluate import evaluate
from training.evaluation.exam import MIN_TEST_PICTURES
from training.evaluation.report import write_report
from training.fitting.calibration_parts import certifying
from training.fitting.certified import certified_router
from training.fitting.certify import certify
from training.fitting.fit import OPERATIONS, PRICING_AUDITS, Cost, check_wishes, fit
from training.fitting.predictor import Labels
from training.oracle.collection import collect
from training.oracle.data import OracleData, read_oracle
from training.oracle.manifest import read_manifest, space_of
from training.progress import Progress, unseen
from training.promotion.gate import TARGET, Contender, judge, live, pinned
from training.promotion.seen import read_seen, write_seen
from training.promotion.verdict_report import closed, said_of, write_verdict
from training.promotion.weighing import Verdict
from training.registry.changes import promote
from training.registry.names import START
from training.sources.log import log_source

Say = Callable[[str], None]


@dataclass(frozen=True)
class RetrainJob:
    """Where the log, the model, the results and the registry lie, and what is wished for.

    Attributes:
        more_oracle: further data to fit on; they neither price nor judge where audits suffice.
        target, cost, second_look, max_harm: as `fit` and `certify`; None: as the router in force.
        router: the service's `--router`, which is in force where nothing was promoted.
        reference: the router that no promotion moves; None: the shipped one where it fits.
        who: for the journal.
        skip_bad: count pictures and labels that cannot be read instead of stopping.
    """

    log: Place
    model: Path
    out: Path
    registry: Place
    more_oracle: Sequence[Path] = ()
    target: float | None = None
    cost: Cost | None = None
    second_look: bool | None = None
    max_harm: float | None = None
    router: Path | None = None
    reference: Path | None = None
    workers: int | None = None
    force: bool = False
    who: str = ""
    skip_bad: bool = False


@dataclass(frozen=True)
class RetrainResult:
    """The promoted folder, the report on the router in it, and the gate's verdict."""

    promoted: Place
    version: str
    report: dict[str, Any]
    verdict: Verdict


@dataclass(frozen=True)
class Promise:
    """A certificate to prove anew, and whether it sets the price."""

    loss: Loss
    bound: float
    delta: float = 0.05
    sets_price: bool = False


@dataclass(frozen=True)
class Wishes:
    """How the new router is to be fitted, priced and certified."""

    target: float = TARGET
    cost: Cost = "tokens"
    second_look: bool = False
    labels: Labels = "auto"
    promise: Promise | None = None

    @property
    def sentence(self) -> str:
        """Return the wishes for people."""
        promise, look = self.promise, "with" if self.second_look else "without"
        certified = "" if promise is None else f", {promise.loss} of at most {promise.bound:g}"
        return (
            f"target {self.target:g}, costs in {self.cost}, {look} a second look"
            f"{certified or ', no certificate'}"
        )


def wishes_of(job: RetrainJob, parent: Router | None) -> Wishes:
    """Return what is wished for: what the job says, else what the router in force was made with."""
    before = Wishes() if parent is None else inherited(parent)
    cost = job.cost or before.cost
    # A second look is priced in tokens alone: who asks for other costs does without.
    look = before.second_look and cost == "tokens" if job.second_look is None else job.second_look
    promise = before.promise
    if job.max_harm is not None:
        sets_price = promise is not None and promise.sets_price
        promise = Promise("harm", job.max_harm, sets_price=sets_price)
    target = before.target if job.target is None else job.target
    return Wishes(target, cost, look, before.labels, promise)


def inherited(parent: Router) -> Wishes:
    """Return what a router was made with, as far as it tells."""
    facts, found = parent.metadata, parent.held.certificate
    cost: Cost = "flops" if parent.policy.cost_unit == OPERATIONS else "tokens"
    promise = None
    if found is not None:
        promise = Promise(found.loss, found.bound, found.delta, "price_set_by" in facts)
    return Wishes(
        float(facts.get("target", TARGET)),
        cost,
        # One that was asked for and cost no less is asked for again.
        cost == "tokens" and (parent.second_look is not None or "second_look" in facts),
        facts.get("labels", "auto"),
        promise,
    )


def retrain(
    job: RetrainJob, *, progress: Progress = unseen, say: Say = lambda line: None
) -> RetrainResult:
    """Collect from the log, fit, evaluate, judge, promote; return what is now in force.

    Results stay in ``job.out``: ``oracle/``, ``router/`` and ``report/``, with the gate's verdict.
    ``progress`` counts each part of the work by itself, from nothing; ``say`` gets what a person
    must be told.

    Raises:
        GateClosed: the candidate is not shown to be fit to replace what is live (and not
            ``force``).
        NotInForce: something else came into force meanwhile.
        TrainingError: any step's own refusal.
    """
    source = log_source(job.log)
    for note in source.notes():
        say(f"left out: {note}")
    if job.max_harm is not None and not 0.0 < job.max_harm < 1.0:
        raise TrainingError(f"--max-harm must be between 0 and 1, got {job.max_harm:g}")
    current = current_router_path(job.registry)
    incumbent = live(job.registry, job.router, hash_model(job.model))
    wishes = wishes_of(job, incumbent.router)
    check_wishes(wishes.target, wishes.cost, wishes.second_look)
    say(f"to replace {incumbent.name}: {wishes.sentence}")
    # What is labelled now must go with what was collected before.
    space = space_of(read_manifest(job.more_oracle[0])) if job.more_oracle else None
    labels = collect(
        source, job.model, job.out / "oracle", workers=job.workers, space=space,
        skip_bad=job.skip_bad,
        progress=lambda done, total: progress(done, total, "labelling pictures"),
    )  # fmt: skip
    for note in labels.notes():
        say(note)
    say(f"{labels.labelled_now} of {labels.pictures} pictures labelled now")
    audits = read_oracle([job.out / "oracle"])
    data = read_oracle([job.out / "oracle", *job.more_oracle]) if job.more_oracle else audits
    router = _fitted(wishes, data, audits, progress, say)
    folder = router.save_pretrained(job.out / "router")
    write_seen(folder, data)
    write_population(folder, router, data)
    enough = audits.split("test").n_pictures >= MIN_TEST_PICTURES
    judged_on = audits if enough else data
    report = evaluate(router, judged_on, target=wishes.target, say=say, progress=progress)
    reference = pinned(job.reference, audits)
    verdict = judge(Contender("the candidate", router, read_seen(folder)), incumbent, reference,
                    audits)  # fmt: skip
    verdict = counted(verdict, job.registry, job.who)
    _write(report, verdict, job)
    for note in verdict.notes:
        say(note)
    if not verdict.passed and not job.force:
        raise GateClosed(closed(verdict, job.out / "report"))
    promoted = promote(
        folder, job.registry, expect=START if current is None else current.name, who=job.who,
        why=said_of(verdict), report=job.out / "report", force=job.force,
    )  # fmt: skip
    return RetrainResult(promoted, router.version, report, verdict)


def _fitted(
    wishes: Wishes, data: OracleData, audits: OracleData, progress: Progress, say: Say
) -> Router:
    """Return the candidate, with the certificate that is wished for where it can be proved."""
    made = fit(
        data, target=wishes.target, cost=wishes.cost, labels=wishes.labels,
        second_look=wishes.second_look, audits=audits, progress=progress,
    )  # fmt: skip
    for line in made.advice:
        say(line)
    promise, on = wishes.promise, audits
    if promise is None:
        return made.router
    if certifying(audits).n_pictures < PRICING_AUDITS and data is not audits:
        say(f"fewer than {PRICING_AUDITS} audited pictures can certify: all these data do")
        on = data
    try:
        found = certify(
            made.router, on, loss=promise.loss, bound=promise.bound, delta=promise.delta,
            progress=progress,
        )  # fmt: skip
    except TrainingError as error:
        say(f"not certified, so requests with routing.max_harm will be refused: {error}")
        return made.router
    return certified_router(made.router, found, keep_price=not promise.sets_price)


def _write(report: dict[str, Any], verdict: Verdict, job: RetrainJob) -> None:
    forced = job.force and not verdict.passed
    report["gate"] = {**verdict.as_dict(), "forced": forced}
    write_report(report, job.out / "report")
    write_verdict(verdict, job.out / "report", forced=forced)
