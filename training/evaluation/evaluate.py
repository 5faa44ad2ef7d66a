"""Evaluates a router on the test pictures of oracle data, beside everything it has to beat.

Baselines are fitted on the training pictures and priced on the calibration pictures of the same
data; every figure is of test pictures, which no router can have been fitted on. Repeats of a
question serve the luck-corrected oracle only. Knows policies and arrays; does not know how a report
looks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from router.router import Router
from training.errors import NotEnoughData
from training.evaluation.baselines import (
    TOLERANCE,
    Baseline,
    baselines,
    cheapest_within,
    dataset_values,
    datasets_of,
    has_masks,
    picks_of,
)
from training.figures import comparison as cmp
from training.figures.curves import RESOURCES, fixed_line, line_of
from training.figures.equal_accuracy import at_equal_accuracy, headroom_recovered, token_ratios
from training.figures.headroom import gaps, oracles
from training.figures.metrics import non_monotone_share, picked, unsolvable_share
from training.figures.slices import slices
from training.fitting.second_look import look_line, two_looks
from training.oracle.data import OracleData, check_fits, scored_by

MIN_TEST_PICTURES = 2
REPORT_VERSION = 2
HARDWARE = "NVIDIA H100 SXM"  # of the figures in GPU milliseconds; the others stand beside it
NEEDED = (
    "type_table", "question_only", "image_only", "fixed_mixture", "dataset_policy", "privileged",
    "privileged_metadata",
)  # fmt: skip


def evaluate(
    router: Router,
    data: OracleData,
    *,
    target: float = 0.995,
    resamples: int = 2000,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Return the report (its keys are documented in docs/report.md).

    Args:
        router: taken at its own price.
        data: all splits; the test pictures are judged, the others serve the baselines.
        target: share of the finest accuracy that prices the baselines.
        resamples: bootstrap resamples for the intervals.

    Raises:
        MixedData: the router was made for other features or scales.
        NotEnoughData: too few test pictures.
    """
    check_fits(router, data)
    train, test = data.split("train"), data.split("test")
    if test.n_pictures < MIN_TEST_PICTURES:
        raise NotEnoughData(
            f"only {test.n_pictures} test pictures (of {data.n_pictures}); collect about "
            f"{MIN_TEST_PICTURES * 10} pictures or more"
        )
    on = questions_of(test, np.array(router.policy.costs), resamples)
    fitted_for = router.metadata.get("model_hash", data.model_hash)
    if fitted_for != data.model_hash:
        say(f"the router was fitted for model {fitted_for}, these data are of {data.model_hash}")
    say("router")
    probabilities = np.asarray(router.predictor.predict_proba(test.features), float)
    values = {"router": np.asarray(router.predict_values(test.features), float)}
    look, told = router.second_look, (values["router"], test.confidence)
    one = cmp.run_policy("router", values["router"], router.policy, on)
    ours = one if look is None else two_looks("router", look, *told, on)
    fixed = [cmp.fixed(k, on) for k in range(len(data.scales))]
    accuracy = float(ours.score.mean())

    rivals = _rivals(data, test, on, target, say)
    values |= {name: baseline.test for name, (baseline, _) in rivals.items()}
    if len(train):
        values["dataset_policy"] = dataset_values(train, test)
    lines = {name: line_of(name, v, on) for name, v in values.items()}
    if look is not None:
        lines["router"] = look_line("router", look, *told, on)
    lines["fixed_mixture"] = fixed_line(on)
    needed: dict[str, float | None] = dict.fromkeys(NEEDED)
    needed |= {name: line.at("visual_tokens", accuracy) for name, line in lines.items()}
    needed["router_on_its_hull"] = needed.pop("router")
    say("intervals")
    against = {name: lines[name] for name in NEEDED if name in lines}
    report: dict[str, Any] = {
        "report_version": REPORT_VERSION,
        "n_questions": len(test),
        "n_pictures": test.n_pictures,
        "finest_accuracy": float(on.scores[:, -1].mean()),
        "scales": list(data.scales),
        "cost_unit": router.policy.cost_unit,
        "router_version": router.version,
        "model_hash": data.model_hash,
        "router_model_hash": fitted_for,
        "feature_schema": data.feature_schema,
        "data_hash": data.data_hash,
        "sources": list(data.sources),
        "scored_by": scored_by(test),
        "target": target,
        "fixed": [
            {
                "scale": scale,
                **point.summary(on),
                "difference_from_finest": cmp.difference_from_finest(point, on).as_dict(),
            }
            for scale, point in zip(data.scales, fixed, strict=True)
        ],
        "router": {
            **ours.summary(on),
            "finest_only": router.policy.finest_only,
            "difference_from_finest": cmp.difference_from_finest(ours, on).as_dict(),
            "share_of_finest_tokens": float(ours.spent(on.tokens).mean() / on.tokens[-1]),
            **cmp.details(ours, on),
        },
        "second_look": None
        if look is None
        else {
            "start_price": look.start_price,
            "price": look.price,
            "looked_again": float((ours.picks != ours.first).mean()),
            "single_look": {
                **one.summary(on),
                "difference_from_finest": cmp.difference_from_finest(one, on).as_dict(),
            },
            "minus_single_look": cmp.paired(ours, one, on),
        },
        "curve": lines["router"].points(),
        "visual_tokens_at_router_accuracy": needed,
        "visual_tokens_at": {
            f"{share:g}_of_finest": {
                name: line.at("visual_tokens", share * float(on.scores[:, -1].mean()))
                for name, line in lines.items()
            }
            for share in (0.99, 0.98, 0.95)
        },
        "at_equal_accuracy": at_equal_accuracy(lines, on, ours),
        "token_ratio_at_equal_accuracy": token_ratios(against, ours, on),
        "headroom_recovered": headroom_recovered(lines["type_table"], lines["privileged"], ours, on)
        if {"type_table", "privileged"} <= lines.keys()
        else None,
        "privileged_knows": _told(data) if "privileged" in lines else None,
        "baselines": {
            name: {
                **outcome.summary(on),
                "difference_from_finest": cmp.difference_from_finest(outcome, on).as_dict(),
                "router_minus_this": cmp.paired(ours, outcome, on),
                **cmp.details(outcome, on),
                "curve": lines[name].points(),
            }
            for name, (_, outcome) in rivals.items()
        },
        "static_policies": _static(train, test, ours, on),
        "uniform_random": {
            "accuracy": float(on.scores.mean()),
            "visual_tokens": float(on.tokens.mean()),
            "cost": float(on.costs.mean()),
        },
        "oracle": oracles(on, test.repeats),
        "gap_recovered": gaps(ours, on, lines),
        "calibration": cmp.calibration_of(probabilities, ours, on),
        "unsolvable_share": unsolvable_share(on.scores),
        "non_monotone_share": non_monotone_share(on.scores),
        "bands": {
            resource: {
                name: line.band(resource) for name, line in lines.items() if line.known(resource)
            }
            for resource in RESOURCES
        },
        "gpu_ms": _times(data, ours),
    }
    say("slices")
    report["slices"] = slices(test.groups, ours, probabilities, lines.values(), on, test.repeats)
    return report


def questions_of(data: OracleData, costs: np.ndarray, resamples: int = 2000) -> cmp.Questions:
    """Return the questions as comparisons need them."""
    seconds = data.seconds.get(HARDWARE)
    gpu_ms = None if seconds is None else 1e3 * np.array(seconds, dtype=float)
    return cmp.Questions(
        data.scores, data.pictures, data.tokens, costs, data.flops, gpu_ms, resamples,
        encode_flops=data.encode.flops, encode_ms=1e3 * data.encode.seconds.get(HARDWARE, 0.0),
    )  # fmt: skip


def _rivals(
    data: OracleData, test: OracleData, on: cmp.Questions, target: float, say: Callable[[str], None]
) -> dict[str, tuple[Baseline, cmp.Outcome]]:
    train, calibration = data.split("train"), data.split("calibration")
    if len(train) == 0 or len(calibration) == 0:
        return {}
    say("baselines")
    found = {}
    for baseline in baselines(train, calibration, test):
        policy = cmp.price_on(
            baseline.calibration,
            calibration.scores,
            on.costs,
            calibration.picture_ids.tolist(),
            target,
        )
        found[baseline.name] = (
            baseline, cmp.run_policy(baseline.name, baseline.test, policy, on),
        )  # fmt: skip
    return found


def _told(data: OracleData) -> str:
    known = "type, size, clutter and share of the picture asked about"
    return f"{known}, and the cells of its true mask" if has_masks(data) else known


def _static(
    train: OracleData, test: OracleData, ours: cmp.Outcome, on: cmp.Questions
) -> dict[str, Any]:
    """Return what one scale per dataset, and per dataset and kind, does: chosen in training."""
    if len(train) == 0:
        return {}
    found = {}
    for name, keys, asked in (
        ("dataset", datasets_of(train.groups), datasets_of(test.groups)),
        ("kind", train.groups, test.groups),
    ):
        choices = cheapest_within(keys, train.scores)
        picks = picks_of(choices, asked)
        outcome = cmp.Outcome(name, None, picks, picked(on.scores, picks))
        found[name] = {
            **outcome.summary(on),
            "tolerance": TOLERANCE,
            "scale_of": {key: test.scales[choice] for key, choice in choices.items() if key},
            "difference_from_finest": cmp.difference_from_finest(outcome, on).as_dict(),
            "router_minus_this": cmp.paired(ours, outcome, on),
        }
    return found


def _times(data: OracleData, ours: cmp.Outcome) -> dict[str, Any] | None:
    """Return the analytic GPU milliseconds of a request; nothing here was timed."""
    if not data.seconds:
        return None
    per_scale = {name: 1e3 * np.array(seconds) for name, seconds in data.seconds.items()}
    spent = {
        name: float(ours.spent(ms, 1e3 * data.encode.seconds.get(name, 0.0)).mean())
        for name, ms in per_scale.items()
    }
    return {
        "how": "analytic roofline of m3model.cost.request_seconds, batch 64; not measured",
        "hardware": HARDWARE,
        "per_hardware": {
            name: {
                "per_scale": ms.tolist(),
                "router": spent[name],
                "router_share_of_finest": spent[name] / float(ms[-1]),
            }
            for name, ms in per_scale.items()
        },
    }
