"""The sections of report.json, each a function of what was judged; docs/report.md has their keys.

Knows what a report holds; does not know how routers, rivals and lines came about, nor how a report
looks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from training.evaluation.baselines import (
    TOLERANCE,
    cheapest_within,
    datasets_of,
    has_masks,
    picks_of,
)
from training.evaluation.exam import HARDWARE, Exam, Judged
from training.figures import comparison as cmp
from training.figures.curves import RESOURCES
from training.figures.equal_accuracy import at_equal_accuracy, token_ratios
from training.figures.headroom import gaps, headroom_recovered, oracles
from training.figures.metrics import non_monotone_share, picked, unsolvable_share
from training.oracle.data import scored_by

REPORT_VERSION = 2
NEEDED = (
    "type_table", "question_only", "image_only", "fixed_mixture", "dataset_policy", "privileged",
    "privileged_metadata", "uniform_router", "type_table_same_actions",
)  # fmt: skip

Section = dict[str, Any]


def about(judged: Judged) -> Section:
    """Return what was judged, on what, and what right means."""
    exam, router = judged.exam, judged.ours.router
    data = exam.data
    return {
        "report_version": REPORT_VERSION,
        "n_questions": len(exam.test),
        "n_pictures": exam.test.n_pictures,
        "finest_accuracy": exam.finest_accuracy,
        "scales": list(data.scales),
        "cost_unit": router.policy.cost_unit,
        "router_version": router.version,
        "model_hash": data.model_hash,
        "router_model_hash": router.metadata.get("model_hash", data.model_hash),
        "feature_schema": data.feature_schema,
        "data_hash": data.data_hash,
        "sources": list(data.sources),
        "scored_by": scored_by(exam.test),
        "target": exam.target,
    }


def fixed_actions(judged: Judged) -> Section:
    """Return what always taking one scale does, and what always taking one action does."""
    space = judged.exam.data.space
    points = [_always(k, judged.exam.on) for k in range(len(space))]
    return {
        "fixed": [{"scale": space.actions[k].coarse, **points[k]} for k in space.uniform],
        "actions": [
            {"action": action.key, **point}
            for action, point in zip(space.actions, points, strict=True)
        ],
    }


def _always(index: int, on: cmp.Questions) -> Section:
    point = cmp.fixed(index, on)
    difference = cmp.difference_from_finest(point, on)
    return {**point.summary(on), "difference_from_finest": difference.as_dict()}


def the_router(judged: Judged) -> Section:
    """Return the router as it ships, its two looks apart where it has them, and its curve."""
    on, ours = judged.exam.on, judged.ours
    shipped, finest_tokens = ours.outcome, float(on.tokens[:, -1].mean())
    return {
        "router": {
            **shipped.summary(on),
            "finest_only": ours.router.policy.finest_only,
            "difference_from_finest": cmp.difference_from_finest(shipped, on).as_dict(),
            "share_of_finest_tokens": float(shipped.spent(on.tokens).mean()) / finest_tokens,
            **cmp.details(shipped, on),
        },
        "second_look": _second_look(judged),
        "curve": judged.lines["router"].points(),
    }


def _second_look(judged: Judged) -> Section | None:
    on, ours = judged.exam.on, judged.ours
    look = ours.router.second_look
    if look is None:
        return None
    return {
        "start_price": look.start_price,
        "price": look.price,
        "looked_again": float((ours.outcome.picks != ours.outcome.first).mean()),
        "single_look": {
            **ours.single.summary(on),
            "difference_from_finest": cmp.difference_from_finest(ours.single, on).as_dict(),
        },
        "minus_single_look": cmp.paired(ours.outcome, ours.single, on),
    }


def tokens_needed(judged: Judged) -> Section:
    """Return the tokens that each policy's hull needs for given accuracies."""
    lines, finest = judged.lines, judged.exam.finest_accuracy

    def at(accuracy: float) -> dict[str, float | None]:
        return {name: line.at("visual_tokens", accuracy) for name, line in lines.items()}

    needed = dict.fromkeys(NEEDED) | at(judged.ours.accuracy)
    needed["router_on_its_hull"] = needed.pop("router")
    return {
        "visual_tokens_at_router_accuracy": needed,
        "visual_tokens_at": {
            f"{share:g}_of_finest": at(share * finest) for share in (0.99, 0.98, 0.95)
        },
    }


def equal_accuracy(judged: Judged) -> Section:
    """Return what equal accuracy takes of every resource, and the router's share of it."""
    lines, on, ours = judged.lines, judged.exam.on, judged.ours.outcome
    against = {name: lines[name] for name in NEEDED if name in lines}
    told = "privileged" in lines
    return {
        "at_equal_accuracy": at_equal_accuracy(lines, on, ours),
        "token_ratio_at_equal_accuracy": token_ratios(against, ours, on),
        "headroom_recovered": headroom_recovered(lines["type_table"], lines["privileged"], ours, on)
        if told
        else None,
        "privileged_knows": _privileged_knows(judged.exam) if told else None,
    }


def _privileged_knows(exam: Exam) -> str:
    known = "type, size, clutter and share of the picture asked about"
    return f"{known}, and the cells of its true mask" if has_masks(exam.data) else known


def baselines(judged: Judged) -> Section:
    """Return each fitted baseline at its price, and the router against it."""
    on, ours = judged.exam.on, judged.ours.outcome
    return {
        "baselines": {
            name: {
                **_against(ours, rival.outcome, on),
                **cmp.details(rival.outcome, on),
                "curve": judged.lines[name].points(),
            }
            for name, rival in judged.rivals.items()
        }
    }


def static_policies(judged: Judged) -> Section:
    """Return what one scale per dataset, and per dataset and kind, does: chosen in training."""
    train, test, on = judged.exam.train, judged.exam.test, judged.exam.on.over_scales
    scales = list(train.space.uniform)
    keys = {
        "dataset": (datasets_of(train.groups), datasets_of(test.groups)),
        "kind": (train.groups, test.groups),
    }
    found = {}
    for name, (learnt, asked) in keys.items() if len(train) else ():
        choices = cheapest_within(learnt, train.scores[:, scales])
        picks = picks_of(choices, asked)
        outcome = cmp.Outcome(name, None, picks, picked(on.scores, picks))
        outcome = outcome.among_all(judged.exam.on)
        found[name] = {
            **_against(judged.ours.outcome, outcome, judged.exam.on),
            "tolerance": TOLERANCE,
            "scale_of": {key: test.scales[choice] for key, choice in choices.items() if key},
        }
    return {"static_policies": found}


def _against(ours: cmp.Outcome, other: cmp.Outcome, on: cmp.Questions) -> Section:
    return {
        **other.summary(on),
        "difference_from_finest": cmp.difference_from_finest(other, on).as_dict(),
        "router_minus_this": cmp.paired(ours, other, on),
    }


def limits(judged: Judged) -> Section:
    """Return what chance does, what an oracle would, and how much of that the router recovers."""
    on, repeats = judged.exam.on, judged.exam.test.repeats
    few, columns = on.over_scales, list(on.actions.uniform)
    return {
        "uniform_random": {
            "accuracy": float(few.scores.mean()),
            "visual_tokens": float(few.tokens.mean()),
            "cost": float(few.costs.mean()),
        },
        "oracle": oracles(on, repeats),
        "oracle_over_scales": None
        if on.actions.is_uniform
        else oracles(few, None if repeats is None else repeats[..., columns]),
        "gap_recovered": gaps(judged.ours.outcome, on, judged.lines),
        "unsolvable_share": unsolvable_share(on.scores),
        "non_monotone_share": non_monotone_share(on.scores, on.tokens),
    }


def calibration(judged: Judged) -> Section:
    """Return how far the router's probabilities are from what came out."""
    ours = judged.ours
    return {"calibration": cmp.calibration_of(ours.p_suffices, ours.outcome, judged.exam.on)}


def bands(judged: Judged) -> Section:
    """Return every policy's hull with its band, by resource: what the plots show."""
    return {
        "bands": {
            resource: {
                name: line.band(resource)
                for name, line in judged.lines.items()
                if line.known(resource)
            }
            for resource in RESOURCES
        }
    }


def gpu_time(judged: Judged) -> Section:
    """Return the analytic GPU milliseconds of a request; nothing here was timed."""
    data, ours = judged.exam.test, judged.ours.outcome
    per_hardware = {}
    for name, seconds in data.seconds.items():
        ms = 1e3 * np.array(seconds)
        encode_ms = 1e3 * data.encode.seconds.get(name, 0.0)
        spent = float(ours.spent(data.per_action(ms), encode_ms).mean())
        per_hardware[name] = {
            "per_scale": ms.tolist(),
            "router": spent,
            "router_share_of_finest": spent / float(ms[-1]),
        }
    how = "analytic roofline of m3model.cost.request_seconds, batch 64; not measured"
    found = {"how": how, "hardware": HARDWARE, "per_hardware": per_hardware}
    return {"gpu_ms": found if data.seconds else None}


SECTIONS: tuple[Callable[[Judged], Section], ...] = (
    about, fixed_actions, the_router, tokens_needed, equal_accuracy, baselines, static_policies,
    limits, calibration, bands, gpu_time,
)  # fmt: skip
