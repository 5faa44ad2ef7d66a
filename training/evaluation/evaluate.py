"""Evaluates a router on the test pictures of oracle data, beside everything it has to beat.

Knows the order of the work; the facts are in exam, what a report holds in sections, how it looks in
report.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from router.router import Router
from training.evaluation.baselines import TABLES
from training.evaluation.exam import (
    Exam,
    Judged,
    exam_of,
    examined,
    lines_of,
    rival_steps,
    rivals_in,
)
from training.evaluation.sections import SECTIONS
from training.figures.curves import RESOURCES
from training.figures.slices import slices
from training.fitting.calibration_parts import SHARED
from training.fitting.references import left_out
from training.oracle.data import OracleData
from training.progress import Progress, Steps, unseen


def evaluate(
    router: Router,
    data: OracleData,
    *,
    target: float = 0.995,
    resamples: int = 2000,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress = unseen,
) -> dict[str, Any]:
    """Return the report (its keys are documented in docs/report.md).

    Args:
        router: taken at its own price.
        data: all splits; the test pictures are judged, the others serve the baselines.
        target: share of the finest accuracy that prices the baselines.
        resamples: bootstrap resamples for the intervals.
        say: called with a warning where the router was fitted for another model or its parts share
            pictures, and with which test questions do not count.
        progress: called at every step.

    Raises:
        MixedData: the router was made for other features, scales or actions.
        NotEnoughData: too few test pictures.
    """
    exam = exam_of(router, data, target, resamples)
    fitted_for = router.metadata.get("model_hash", data.model_hash)
    if fitted_for != data.model_hash:
        say(f"the router was fitted for model {fitted_for}, these data are of {data.model_hash}")
    if router.metadata.get("calibrated_on") == SHARED:
        say("the same calibration pictures fitted this router's probabilities, gates and price")
    apart = left_out(data.split("test"), exam.test)
    if apart is not None:
        say(f"test: {apart}")
    steps = Steps(progress, _steps_of(exam))
    ours = examined(router, exam)
    rivals = rivals_in(exam, steps)
    lines = lines_of(exam, ours, rivals, steps)
    report = _report(Judged(exam, ours, rivals, lines), steps)
    steps.finish()
    return report


def _report(judged: Judged, steps: Steps) -> dict[str, Any]:
    """Return the sections, and the same again for each kind of question."""
    report: dict[str, Any] = {}
    for section in SECTIONS:
        steps.begin(section.__name__.replace("_", " "))
        report |= section(judged)
    exam, ours = judged.exam, judged.ours
    report["slices"] = slices(
        exam.test.groups, ours.outcome, ours.p_suffices, judged.lines.values(), exam.on,
        exam.test.repeats, begin=steps.begin,
    )  # fmt: skip
    return report


def _steps_of(exam: Exam) -> int:
    """Return how many steps an evaluation takes: boosters, lines, sections and slices."""
    boosters = len(exam.data.space) * sum(name not in TABLES for name in exam.baselines)
    resources = sum(r != "gpu_ms" or exam.on.gpu_ms is not None for r in RESOURCES)
    lines = len(exam.policies) * (1 + resources)
    kinds = len(set(exam.test.groups.tolist()))
    return boosters + rival_steps(exam) + lines + len(SECTIONS) + kinds
