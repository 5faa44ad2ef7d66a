"""Replays audited questions under several routers: exact counterfactuals, side by side.

All scales of a question were run on one set of weights, so what a router would have done is looked
up, not estimated. Knows routers and oracle data; does not know the service.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from router.router import Router
from training import comparison as cmp
from training.errors import NotEnoughData
from training.evaluate import check_fits, questions_of
from training.oracle_data import OracleData


def replay(
    routers: Sequence[tuple[str, Router]], data: OracleData, *, resamples: int = 2000
) -> list[dict[str, Any]]:
    """Return one row per router, each against the first: accuracy, tokens, harm and differences.

    Args:
        routers: (name, router) pairs, each at its own price.
        data: the questions to replay. Those of training pictures flatter a router fitted on them:
            give the test split.

    Raises:
        MixedData: a router was made for other features or scales.
        NotEnoughData: no question.
    """
    if len(data) == 0:
        raise NotEnoughData("no test question to replay; collect more pictures")
    on = questions_of(data, np.array(routers[0][1].policy.costs))
    outcomes = []
    for name, router in routers:
        check_fits(router, data)
        values = np.asarray(router.predict_values(data.features), float)
        outcomes.append(cmp.run_policy(name, values, router.policy, on))
    rows = []
    for outcome, (_, router) in zip(outcomes, routers, strict=True):
        rows.append(
            {
                "name": outcome.name,
                "version": router.version,
                **outcome.summary(on),
                **cmp.details(outcome, on),
                "difference_from_finest": cmp.difference_from_finest(
                    outcome, on, resamples
                ).as_dict(),
                "minus_first": cmp.paired(outcome, outcomes[0], on, resamples),
            }
        )
    return rows


def gate(rows: Sequence[dict[str, Any]], tolerance: float = 0.005) -> str | None:
    """Return why the second router of a replay must not replace the first, or None if it may.

    It may when it is not dearer and not worse: the interval of the paired accuracy difference must
    not lie below zero as a whole, nor reach more than ``tolerance`` + its own noise below it.
    """
    current, candidate = rows[0], rows[1]
    accuracy = candidate["minus_first"]["accuracy"]
    if accuracy["high"] < 0:
        return (
            f"it answers worse: {100 * accuracy['mean']:+.2f} points "
            f"({100 * accuracy['low']:+.2f} to {100 * accuracy['high']:+.2f})"
        )
    dearer = candidate["visual_tokens"] > current["visual_tokens"] * (1 + 1e-9)
    better = accuracy["low"] > 0
    if dearer and not better:
        return (
            f"it is dearer ({candidate['visual_tokens']:.1f} visual tokens against "
            f"{current['visual_tokens']:.1f}) and not plainly better"
        )
    if accuracy["mean"] < -tolerance:
        return f"it loses {-100 * accuracy['mean']:.2f} points, more than {100 * tolerance:g}"
    return None
