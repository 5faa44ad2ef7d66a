"""An evaluation's facts: the router and its rivals on test pictures, each at every price.

Baselines are fitted on the training pictures and priced on the calibration pictures of the same
data; every figure is of test pictures, which no router can have been fitted on. Repeats of a
question serve the luck-corrected oracle only. Knows policies and arrays; does not know what a
report says about them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from router.router import Router
from training.errors import NotEnoughData
from training.evaluation.baselines import Baseline, Parts, baselines, dataset_values, names_of
from training.figures import comparison as cmp
from training.figures.curves import RESOURCES, Line, fixed_line, line_of
from training.figures.metrics import Array
from training.fitting.second_look import look_line, two_looks
from training.oracle.data import OracleData, check_fits
from training.progress import Steps

MIN_TEST_PICTURES = 2
HARDWARE = "NVIDIA H100 SXM"  # of the figures in GPU milliseconds; the others stand beside it


@dataclass(frozen=True)
class Exam:
    """The questions that judge, those the rivals learn from, and how the rivals are priced."""

    data: OracleData  # all splits
    train: OracleData
    calibration: OracleData
    test: OracleData
    on: cmp.Questions  # the test questions as comparisons need them
    target: float  # share of the finest accuracy that prices the rivals

    @property
    def parts(self) -> Parts:
        """Return the questions that teach the rivals, those that price them, and the test."""
        return self.train, self.calibration, self.test

    @property
    def finest_accuracy(self) -> float:
        """Return the share of test questions that the finest scale answers rightly."""
        return float(self.on.scores[:, -1].mean())

    @cached_property
    def rivals(self) -> list[str]:
        """Return the names of the baselines that these data can teach."""
        if len(self.train) == 0 or len(self.calibration) == 0:
            return []
        return names_of(self.parts)

    @property
    def policies(self) -> list[str]:
        """Return the names of all that has a line: the router, its rivals and what needs no fit."""
        static = ["dataset_policy"] if len(self.train) else []
        return ["router", *self.rivals, *static, "fixed_mixture"]


@dataclass(frozen=True)
class Examined:
    """The router on the n test questions."""

    router: Router
    p_suffices: Array  # (n, K)
    values: Array  # (n, K): what its policy weighs against cost
    single: cmp.Outcome  # with one look
    outcome: cmp.Outcome  # as it ships

    @property
    def accuracy(self) -> float:
        """Return the share of questions it answers rightly as it ships."""
        return float(self.outcome.score.mean())


@dataclass(frozen=True)
class Rival:
    """A baseline, and what it did to the test questions at its price."""

    baseline: Baseline
    outcome: cmp.Outcome


@dataclass(frozen=True)
class Judged:
    """All that a report is written from."""

    exam: Exam
    ours: Examined
    rivals: dict[str, Rival]
    lines: dict[str, Line]  # of `Exam.policies`, in that order


def exam_of(router: Router, data: OracleData, target: float, resamples: int) -> Exam:
    """Return the exam that these data give a router, at the router's costs.

    Raises:
        MixedData: the router was made for other features or scales.
        NotEnoughData: too few test pictures.
    """
    check_fits(router, data)
    test = data.split("test")
    if test.n_pictures < MIN_TEST_PICTURES:
        raise NotEnoughData(
            f"only {test.n_pictures} test pictures (of {data.n_pictures}); collect about "
            f"{MIN_TEST_PICTURES * 10} pictures or more"
        )
    on = questions_of(test, np.array(router.policy.costs), resamples)
    return Exam(data, data.split("train"), data.split("calibration"), test, on, target)


def questions_of(data: OracleData, costs: np.ndarray, resamples: int = 2000) -> cmp.Questions:
    """Return the questions as comparisons need them."""
    seconds = data.seconds.get(HARDWARE)
    gpu_ms = None if seconds is None else 1e3 * np.array(seconds, dtype=float)
    return cmp.Questions(
        data.scores, data.pictures, data.tokens, costs, data.flops, gpu_ms, resamples,
        encode_flops=data.encode.flops, encode_ms=1e3 * data.encode.seconds.get(HARDWARE, 0.0),
    )  # fmt: skip


def examined(router: Router, exam: Exam) -> Examined:
    """Return what the router does at its own price, with its second look if it has one."""
    test, look = exam.test, router.second_look
    p_suffices = np.asarray(router.predictor.predict_proba(test.features), float)
    values = np.asarray(router.predict_values(test.features), float)
    single = cmp.run_policy("router", values, router.policy, exam.on)
    outcome = single
    if look is not None:
        outcome = two_looks("router", look, values, test.confidence, exam.on)
    return Examined(router, p_suffices, values, single, outcome)


def rivals_in(exam: Exam, steps: Steps) -> dict[str, Rival]:
    """Return the baselines by name, each at the price that keeps the target; a step a booster."""
    made = baselines(exam.rivals, exam.parts, steps)
    return {baseline.name: Rival(baseline, _priced(baseline, exam)) for baseline in made}


def _priced(baseline: Baseline, exam: Exam) -> cmp.Outcome:
    held, on = exam.calibration, exam.on
    policy = cmp.price_on(
        baseline.calibration, held.scores, on.costs, held.picture_ids.tolist(), exam.target
    )
    return cmp.run_policy(baseline.name, baseline.test, policy, on)


def lines_of(exam: Exam, ours: Examined, rivals: dict[str, Rival], steps: Steps) -> dict[str, Line]:
    """Return every policy at every price, its resamples drawn; a step a policy and resource."""
    lines = {}
    for name in exam.policies:
        steps.begin(f"{name}: every price")
        line = lines[name] = _line(name, exam, ours, rivals)
        for resource in RESOURCES:
            if line.known(resource):
                steps.begin(f"{name}: intervals of {resource}")
                line.hulls(resource)
    return lines


def _line(name: str, exam: Exam, ours: Examined, rivals: dict[str, Rival]) -> Line:
    look = ours.router.second_look
    if name == "router" and look is not None:
        return look_line(name, look, ours.values, exam.test.confidence, exam.on)
    if name == "router":
        return line_of(name, ours.values, exam.on)
    if name == "fixed_mixture":
        return fixed_line(exam.on)
    if name == "dataset_policy":
        return line_of(name, dataset_values(exam.train, exam.test), exam.on)
    return line_of(name, rivals[name].baseline.test, exam.on)
