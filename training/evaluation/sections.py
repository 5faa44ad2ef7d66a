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
    "privileged_metadata",
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


def fixed_scales(judged: Judged) -> Section:
    """Return what always taking one scale does."""
    on, scales = judged.exam.on, judged.exam.data.scales
    points = [cmp.fixed(k, on) for k in range(len(scales))]
    return {
        "fixed": [
            {
                "scale": scale,
                **point.summary(on),
                "difference_from_finest": cmp.difference_from_finest(point, on).as_dict(),
            }
            for scale, point in zip(scales, points, strict=True)
        ]
    }


def the_router(judged: Judged) -> Section:
    """Return the router as it ships, its two looks apart where it has them, and its curve."""
    on, ours = judged.exam.on, judged.ours
    shipped = ours.outcome
    return {
        "router": {
            **shipped.summary(on),
            "finest_only": ours.router.policy.finest_only,
            "difference_from_finest": cmp.difference_from_finest(shipped, on).as_dict(),
            "share_of_finest_tokens": float(shipped.spent(on.tokens).mean() / on.tokens[-1]),
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
    train, test, on = judged.exam.train, judged.exam.test, judged.exam.on
    keys = {
        "dataset": (datasets_of(train.groups), datasets_of(test.groups)),
        "kind": (train.groups, test.groups),
    }
    found = {}
    for name, (learnt, asked) in keys.items() if len(train) else ():
        choices = cheapest_within(learnt, train.scores)
        picks = picks_of(choices, asked)
        outcome = cmp.Outcome(name, None, picks, picked(on.scores, picks))
        found[name] = {
            **_against(judged.ours.outcome, outcome, on),
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
    on = judged.exam.on
    return {
        "uniform_random": {
            "accuracy": float(on.scores.mean()),
            "visual_tokens": float(on.tokens.mean()),
            "cost": float(on.costs.mean()),
        },
        "oracle": oracles(on, judged.exam.test.repeats),
        "gap_recovered": gaps(judged.ours.outcome, on, judged.lines),
        "unsolvable_share": unsolvable_share(on.scores),
        "non_monotone_share": non_monotone_share(on.scores),
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
    data, ours = judged.exam.data, judged.ours.outcome
    per_hardware = {}
    for name, seconds in data.seconds.items():
        ms = 1e3 * np.array(seconds)
        spent = float(ours.spent(ms, 1e3 * data.encode.seconds.get(name, 0.0)).mean())
        per_hardware[name] = {
            "per_scale": ms.tolist(),
            "router": spent,
            "router_share_of_finest": spent / float(ms[-1]),
        }
    how = "analytic roofline of m3model.cost.request_seconds, batch 64; not measured"
    found = {"how": how, "hardware": HARDWARE, "per_hardware": per_hardware}
    return {"gpu_ms": found if data.seconds else None}


SECTIONS: tuple[Callable[[Judged], Section], ...] = (
    about, fixed_scales, the_router, tokens_needed, equal_accuracy, baselines, static_policies,
    limits, calibration, bands, gpu_time,
)  # fmt: skip
