"""Evaluates a router on the test pictures of oracle data, beside everything it has to beat.

Baselines are fitted on the training pictures and priced on the calibration pictures of the same
data; every figure is of test pictures, which no router can have been fitted on. Knows policies and
arrays; does not know how a report looks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from router.router import Router
from training import comparison as cmp
from training.baselines import Baseline, baselines
from training.errors import MixedData, NotEnoughData
from training.headroom import gaps, oracles
from training.metrics import non_monotone_share, unsolvable_share
from training.oracle_data import OracleData

MIN_TEST_PICTURES = 2
REPORT_VERSION = 1


def evaluate(
    router: Router,
    data: OracleData,
    *,
    target: float = 0.995,
    resamples: int = 2000,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Return the report (its keys are documented in training.report).

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
    test = data.split("test")
    if test.n_pictures < MIN_TEST_PICTURES:
        raise NotEnoughData(
            f"only {test.n_pictures} test pictures (of {data.n_pictures}); collect about "
            f"{MIN_TEST_PICTURES * 10} pictures or more"
        )
    on = questions_of(test, np.array(router.policy.costs))
    fitted_for = router.metadata.get("model_hash", data.model_hash)
    if fitted_for != data.model_hash:
        say(f"the router was fitted for model {fitted_for}, these data are of {data.model_hash}")
    say("router")
    probabilities = np.asarray(router.predictor.predict_proba(test.features), float)
    values = np.asarray(router.predict_values(test.features), float)
    ours = cmp.run_policy("router", values, router.policy, on)
    fixed = [cmp.fixed(k, on) for k in range(len(data.scales))]
    curve = cmp.curve_of(values, on)
    accuracy = float(ours.score.mean())
    fixed_points = [point.summary(on) for point in fixed]

    rivals = _rivals(data, test, on, target, say)
    curves = {name: cmp.curve_of(baseline.test, on) for name, (baseline, _) in rivals.items()}
    needed: dict[str, float | None] = dict.fromkeys(
        ("type_table", "question_only", "image_only", "fixed_mixture", "privileged")
    )
    needed |= {name: cmp.tokens_for(line, accuracy) for name, line in curves.items()}
    needed["fixed_mixture"] = cmp.tokens_for(fixed_points, accuracy)
    needed["router_on_its_hull"] = cmp.tokens_for(curve, accuracy)
    say("intervals")
    difference = cmp.difference_from_finest(ours, on, resamples)
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
            {"scale": scale, **point}
            for scale, point in zip(data.scales, fixed_points, strict=True)
        ],
        "router": {
            **ours.summary(on),
            "finest_only": router.policy.finest_only,
            "difference_from_finest": difference.as_dict(),
            "share_of_finest_tokens": float(on.tokens[ours.picks].mean() / on.tokens[-1]),
            **cmp.details(ours, on),
        },
        "curve": curve,
        "visual_tokens_at_router_accuracy": needed,
        "visual_tokens_at": {
            f"{share:g}_of_finest": _at_share(share, on, curve, fixed_points, curves)
            for share in (0.99, 0.98, 0.95)
        },
        "baselines": {
            name: {
                **outcome.summary(on),
                "difference_from_finest": cmp.difference_from_finest(
                    outcome, on, resamples
                ).as_dict(),
                "router_minus_this": cmp.paired(ours, outcome, on, resamples),
                **cmp.details(outcome, on),
                "curve": curves[name],
            }
            for name, (_, outcome) in rivals.items()
        },
        "uniform_random": {
            "accuracy": float(on.scores.mean()),
            "visual_tokens": float(on.tokens.mean()),
            "cost": float(on.costs.mean()),
        },
        "oracle": oracles(test, on),
        "gap_recovered": gaps(ours, on, fixed_points, curves),
        "calibration": cmp.calibration_of(probabilities, ours, on),
        "unsolvable_share": unsolvable_share(on.scores),
        "non_monotone_share": non_monotone_share(on.scores),
        "slices": _slices(test, ours, on, resamples),
        "gpu_ms": None,
    }
    return report


def check_fits(router: Router, data: OracleData) -> None:
    """Raise MixedData when the router was made for other features or scales than the data's."""
    if router.schema.hash != data.feature_schema or tuple(router.scales) != data.scales:
        raise MixedData(
            f"the router was fitted on features {router.schema.hash} at scales "
            f"{'/'.join(map(str, router.scales))}, the data hold {data.feature_schema} at "
            f"{'/'.join(map(str, data.scales))}: fit a router on these data"
        )


def scored_by(data: OracleData) -> str:
    """Return in words what right means in these data."""
    if data.has_reference.all():
        return "exact match"
    if not data.has_reference.any():
        return "agreement with the finest"
    return "exact match where a reference is known, else agreement with the finest"


def questions_of(data: OracleData, costs: np.ndarray) -> cmp.Questions:
    """Return the questions as comparisons need them."""
    return cmp.Questions(data.scores, data.pictures, data.tokens, costs, data.flops)


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


def _at_share(
    share: float,
    on: cmp.Questions,
    curve: list[dict[str, float]],
    fixed_points: list[dict[str, Any]],
    curves: dict[str, list[dict[str, float]]],
) -> dict[str, float | None]:
    """Return the tokens each policy's test curve needs for a share of the finest accuracy."""
    wanted = share * float(on.scores[:, -1].mean())
    lines = {"router": curve, "fixed_mixture": fixed_points, **curves}
    return {name: cmp.tokens_for(line, wanted) for name, line in lines.items()}


def _slices(
    test: OracleData, ours: cmp.Outcome, on: cmp.Questions, resamples: int
) -> list[dict[str, Any]]:
    rows = []
    for group in sorted(set(test.groups.tolist())):
        mask = test.groups == group
        part = cmp.Questions(
            on.scores[mask],
            np.unique(on.pictures[mask], return_inverse=True)[1].astype(np.int64),
            on.tokens, on.costs, on.flops,
        )  # fmt: skip
        here = cmp.Outcome(group, ours.price, ours.picks[mask], ours.score[mask])
        rows.append(
            {
                "slice": group,
                "n_questions": int(mask.sum()),
                "accuracy_per_scale": part.scores.mean(axis=0).tolist(),
                "router_accuracy": float(here.score.mean()),
                "router_visual_tokens": float(on.tokens[here.picks].mean()),
                "difference_from_finest": cmp.difference_from_finest(
                    here, part, min(resamples, 500)
                ).as_dict(),
                "unsolvable_share": unsolvable_share(part.scores),
                "non_monotone_share": non_monotone_share(part.scores),
            }
        )
    return rows


def values_at(router: Router, data: OracleData) -> cmp.Outcome:
    """Return what the router does to every question of the data, at its own price."""
    values = np.asarray(router.predict_values(data.features), float)
    on = questions_of(data, np.array(router.policy.costs))
    return cmp.run_policy(router.version, values, router.policy, on)
