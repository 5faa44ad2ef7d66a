"""The whole turn of learning in one call: log → oracle → router → report → promotion.

Composes the other tools; knows only their order and where each one's result lies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from router.registry import current_router_path
from router.router import Router
from training.errors import GateClosed, MixedData
from training.evaluation.evaluate import evaluate
from training.evaluation.report import write_report
from training.fitting.fit import Cost, fit
from training.oracle.collection import collect
from training.oracle.data import OracleData, check_fits, read_manifest, read_oracle, space_of
from training.progress import Progress, unseen
from training.promotion.registry import promote
from training.promotion.replay import gate, replay
from training.sources.log import log_source

MIN_GATE_PICTURES = 20  # with fewer test pictures a comparison says nothing either way


@dataclass(frozen=True)
class RetrainJob:
    """Where the log, the model, the results and the registry lie, and how to fit."""

    log: Path
    model: Path
    out: Path
    registry: Path
    more_oracle: Sequence[Path] = ()
    target: float = 0.995
    cost: Cost = "tokens"
    second_look: bool = False
    workers: int | None = None
    force: bool = False


@dataclass(frozen=True)
class RetrainResult:
    """The promoted folder and the report on the router in it."""

    promoted: Path
    version: str
    report: dict[str, Any]


def retrain(
    job: RetrainJob,
    *,
    progress: Progress = unseen,
    say: Callable[[str], None] = lambda line: None,
) -> RetrainResult:
    """Collect from the log, fit, evaluate, promote; return what is now in force.

    Results stay in ``job.out``: ``oracle/``, ``router/`` and ``report/``. ``progress`` counts each
    part of the work by itself, from nothing; ``say`` gets what a person must be told.

    Raises:
        GateClosed: the candidate is not better than the router in force (and not ``force``).
        TrainingError: any step's own refusal.
    """
    source = log_source(job.log)
    for note in source.notes():
        say(f"left out: {note}")
    # What is labelled now must go with what was collected before.
    space = space_of(read_manifest(job.more_oracle[0])) if job.more_oracle else None
    collect(
        source, job.model, job.out / "oracle", workers=job.workers, space=space,
        progress=lambda done, total: progress(done, total, "labelling pictures"),
    )  # fmt: skip
    data = read_oracle([job.out / "oracle", *job.more_oracle])
    fitted = fit(
        data, target=job.target, cost=job.cost, second_look=job.second_look,
        progress=progress,
    )  # fmt: skip
    for line in fitted.advice:
        say(line)
    folder = fitted.router.save_pretrained(job.out / "router")
    report = evaluate(fitted.router, data, target=job.target, say=say, progress=progress)
    write_report(report, job.out / "report")
    if not job.force:
        closed = why_not(fitted.router, job.registry, data.split("test"), progress, say)
        if closed is not None:
            raise GateClosed(f"not promoted: {closed} (--force promotes all the same)")
    promoted = promote(folder, job.registry)
    return RetrainResult(promoted, fitted.router.version, report)


def why_not(
    candidate: Router,
    registry: Path,
    test: OracleData,
    progress: Progress = unseen,
    say: Callable[[str], None] = lambda line: None,
) -> str | None:
    """Return why the candidate must not replace the registry's router, or None if it may.

    Without a router in force, with one made for other features or actions, or with too few test
    pictures to tell, nothing speaks against it; that the one in force was not compared is said.
    """
    current = current_router_path(registry)
    if current is None or test.n_pictures < MIN_GATE_PICTURES:
        return None
    before = Router.from_pretrained(current)
    try:
        check_fits(before, test)
    except MixedData as error:
        say(f"not compared with the router in force: {error}")
        return None
    pairs = [("current", before), ("candidate", candidate)]
    return gate(replay(pairs, test, progress=progress))
