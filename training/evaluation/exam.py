"""An evaluation's facts: the router and its rivals on test pictures, each at every price.

Rivals are fitted on the training pictures and priced on the calibration pictures of the same data;
every figure is of test pictures, which no router can have been fitted on. Repeats of a question
serve the luck-corrected oracle only. Knows policies and arrays; does not know what a report says
about them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from router.actions import uniform_space
from router.policy import calibrate_price, row_costs
from router.router import Router
from router.second_look import SecondLook
from training.errors import NotEnoughData
from training.evaluation.baselines import (
    Baseline,
    Parts,
    baselines,
    dataset_values,
    names_of,
)
from training.figures import comparison as cmp
from training.figures.curves import RESOURCES, Line, fixed_line, line_of
from training.figures.metrics import Array
from training.fitting import fit as fitting
from training.fitting.calibration_parts import calibration_parts
from training.fitting.predictor import Labels
from training.fitting.references import of_one_kind, speaking
from training.fitting.second_look import look_line, two_looks
from training.oracle.data import OracleData, check_fits
from training.progress import Steps

MIN_TEST_PICTURES = 2
HARDWARE = "NVIDIA H100 SXM"  # of the figures in GPU milliseconds; the others stand beside it
UNIFORM_ROUTER = "uniform_router"


@dataclass(frozen=True)
class Exam:
    """The questions that judge, those the rivals learn from, and how the rivals are priced."""

    data: OracleData  # all splits
    train: OracleData
    calibration: OracleData
    test: OracleData
    on: cmp.Questions  # the test questions as comparisons need them
    costs: tuple[float, ...]  # (K,) of the uniform scales
    target: float  # share of the finest accuracy that prices the rivals
    looks_twice: bool  # whether the router that is judged may
    labels: Labels  # what it has learnt

    @property
    def parts(self) -> Parts:
        """Return the questions that teach the rivals, those that price them, and the test."""
        return self.train, self.calibration, self.test

    @property
    def finest_accuracy(self) -> float:
        """Return the share of test questions that the finest scale answers rightly."""
        return float(self.on.scores[:, -1].mean())

    @cached_property
    def baselines(self) -> list[str]:
        """Return the names of the baselines that these data can teach."""
        if len(self.train) == 0 or len(self.calibration) == 0:
            return []
        return names_of(self.parts)

    @property
    def rivals(self) -> list[str]:
        """Return the names of all that is fitted here: where there are foci, also our own router
        without them."""
        foci = bool(self.baselines) and not self.data.space.is_uniform
        return [*self.baselines, UNIFORM_ROUTER] if foci else self.baselines

    @property
    def policies(self) -> list[str]:
        """Return the names of all that has a line: the router, its rivals and what needs no fit."""
        static = ["dataset_policy"] if len(self.train) else []
        return ["router", *self.rivals, *static, "fixed_mixture"]


@dataclass(frozen=True)
class Examined:
    """The router on the n test questions."""

    router: Router
    p_suffices: Array  # (n, A)
    values: Array  # (n, A): what its policy weighs against cost
    single: cmp.Outcome  # with one look
    outcome: cmp.Outcome  # as it ships

    @property
    def accuracy(self) -> float:
        """Return the share of questions it answers rightly as it ships."""
        return float(self.outcome.score.mean())


@dataclass(frozen=True)
class Rival:
    """What a rival did to the test questions at its price, and what it would do at others."""

    outcome: cmp.Outcome
    values: Array  # (n, A), or (n, K) over the uniform scales
    over_scales: bool
    look: SecondLook | None = None


@dataclass(frozen=True)
class Judged:
    """All that a report is written from."""

    exam: Exam
    ours: Examined
    rivals: dict[str, Rival]
    lines: dict[str, Line]  # of `Exam.policies`, in that order


def exam_of(router: Router, data: OracleData, target: float, resamples: int) -> Exam:
    """Return the exam that these data give a router, under its actions and at its costs.

    Raises:
        MixedData: the router was made for other features, scales or actions.
        NotEnoughData: too few test pictures.
    """
    data = check_fits(router, data)
    calibration, test = data.split("calibration"), data.split("test")
    referenced = speaking(calibration, test)
    calibration, test = of_one_kind(calibration, referenced), of_one_kind(test, referenced)
    if test.n_pictures < MIN_TEST_PICTURES:
        raise NotEnoughData(
            f"only {test.n_pictures} test pictures (of {data.n_pictures}); collect about "
            f"{MIN_TEST_PICTURES * 10} pictures or more"
        )
    costs = router.policy.costs
    on = questions_of(test, costs, resamples)
    return Exam(
        data, data.split("train"), calibration, test, on, costs, target,
        looks_twice=router.second_look is not None, labels=router.metadata.get("labels", "auto"),
    )  # fmt: skip


def questions_of(
    data: OracleData, costs: Sequence[float] | np.ndarray, resamples: int = 2000
) -> cmp.Questions:
    """Return the questions as comparisons need them; ``costs`` (K,) are of the uniform scales."""
    seconds = data.seconds.get(HARDWARE)
    gpu_ms = None if seconds is None else data.per_action(1e3 * np.array(seconds, dtype=float))
    return cmp.Questions(
        data.scores, data.pictures, data.visual_tokens,
        row_costs(data.visual_tokens, data.scales, tuple(costs)),
        None if data.flops is None else data.per_action(data.flops), gpu_ms, resamples,
        encode_flops=data.encode.flops, encode_ms=1e3 * data.encode.seconds.get(HARDWARE, 0.0),
        space=data.space,
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
    """Return the rivals by name, each at the price that keeps the target; a step a booster."""
    made = {each.name: _priced(each, exam) for each in baselines(exam.baselines, exam.parts, steps)}
    if UNIFORM_ROUTER in exam.rivals:
        made[UNIFORM_ROUTER] = _uniform_router(exam, steps)
    return made


def rival_steps(exam: Exam) -> int:
    """Return how many steps `uniform_router` takes where it is among the rivals."""
    if UNIFORM_ROUTER not in exam.rivals:
        return 0
    return fitting.steps_of(len(exam.data.scales), exam.looks_twice)


def _priced(baseline: Baseline, exam: Exam) -> Rival:
    held, on = exam.calibration, exam.on
    scores, tokens = held.scores, held.visual_tokens
    if baseline.over_scales:
        columns = list(held.space.uniform)
        scores, tokens, on = scores[:, columns], tokens[:, columns], on.over_scales
    found = calibrate_price(
        baseline.calibration, scores, row_costs(tokens, held.scales, exam.costs),
        held.pictures, target=exam.target,
    )  # fmt: skip
    outcome = cmp.run_policy(baseline.name, baseline.test, found.policy(exam.costs), on)
    if baseline.over_scales:
        outcome = outcome.among_all(exam.on)
    return Rival(outcome, baseline.test, baseline.over_scales)


def _uniform_router(exam: Exam, steps: Steps) -> Rival:
    """Return our own router over the uniform scales: same predictor, pictures, target and looks."""
    data = exam.data.only(uniform_space(exam.data.scales))
    train, (held, pricing, rule) = data.split("train"), calibration_parts(data)
    referenced = speaking(train, held)
    held, pricing = of_one_kind(held, referenced), of_one_kind(pricing, referenced)
    parts = fitting.Parts(data, train, held, pricing, rule, exam.costs, "")
    predictor, priced = fitting.learnt(parts, exam.target, exam.labels, exam.looks_twice, steps)
    test, on, look = exam.test.only(data.space), exam.on.over_scales, priced.look
    values = np.asarray(predictor.predict_proba(test.features), float)
    if look is None:
        outcome = cmp.run_policy(UNIFORM_ROUTER, values, priced.price.policy(exam.costs), on)
    else:
        outcome = two_looks(UNIFORM_ROUTER, look, values, test.confidence, on)
    return Rival(outcome.among_all(exam.on), values, True, look)


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
    on, confidence, columns = exam.on, exam.test.confidence, list(exam.test.space.uniform)
    if name == "fixed_mixture":
        return fixed_line(on)
    if name == "dataset_policy":
        values = dataset_values(exam.train, exam.test)[:, columns]
        return line_of(name, values, on.over_scales).among_all(on)
    if name == "router":
        return _priced_line(name, ours.values, ours.router.second_look, confidence, on)
    rival = rivals[name]
    if rival.over_scales:
        few = confidence[:, columns]
        return _priced_line(name, rival.values, rival.look, few, on.over_scales).among_all(on)
    return _priced_line(name, rival.values, rival.look, confidence, on)


def _priced_line(
    name: str, values: Array, look: SecondLook | None, confidence: Array, on: cmp.Questions
) -> Line:
    if look is None:
        return line_of(name, values, on)
    return look_line(name, look, values, confidence, on)
