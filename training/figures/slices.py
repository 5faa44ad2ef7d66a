"""The evaluation's figures again for each kind of question: where a router wins and where it fails.

Knows outcomes, lines and groups; does not know routers or how a report looks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.figures import comparison as cmp
from training.figures.curves import RESOURCES, Line
from training.figures.equal_accuracy import HALF_POINT, SHARES
from training.figures.headroom import oracles
from training.figures.metrics import Array, non_monotone_share, unsolvable_share


def slices(
    groups: NDArray[np.str_],
    ours: cmp.Outcome,
    probabilities: Array,
    lines: Iterable[Line],
    on: cmp.Questions,
    repeats: Array | None,
    *,
    begin: Callable[[str], None] = lambda group: None,
) -> list[dict[str, Any]]:
    """Return one object per group: accuracies, harm, regret, calibration, oracles, tokens.

    Args:
        groups: (n,) "dataset/kind".
        ours: the router's outcome.
        probabilities: (n, A) the router's.
        lines: every policy at every price on all n questions; the router's is named "router".
        on: all n questions.
        repeats: (n, R, A) scores of other wordings, or None.
        begin: called with each group as it begins.
    """
    rows = []
    for group in sorted(set(groups.tolist())):
        begin(group)
        mask = groups == group
        part = on.only(mask)
        here, there = ours.only(mask), [line.only(mask, part) for line in lines]
        finest = float(part.scores[:, -1].mean())
        wanted = {name: share * finest for name, share in SHARES.items()}
        wanted[HALF_POINT] = finest - 0.005
        rows.append(
            {
                "slice": group,
                "n_questions": int(mask.sum()),
                "n_pictures": len(np.unique(part.pictures)),
                "accuracy_per_scale": part.over_scales.scores.mean(axis=0).tolist(),
                "accuracy_per_action": dict(
                    zip(on.actions.names, part.scores.mean(axis=0).tolist(), strict=True)
                ),
                "router_accuracy": float(here.score.mean()),
                "router_visual_tokens": float(here.spent(part.tokens).mean()),
                "difference_from_finest": cmp.difference_from_finest(here, part).as_dict(),
                **cmp.details(here, part),
                "calibration": cmp.calibration_of(probabilities[mask], here, part),
                "oracle": oracles(part, None if repeats is None else repeats[mask]),
                "unsolvable_share": unsolvable_share(part.scores),
                "non_monotone_share": non_monotone_share(part.scores, part.tokens),
                "curve": next(line.points() for line in there if line.name == "router"),
                "at_equal_accuracy": {
                    level: {
                        "accuracy": accuracy,
                        "policies": {
                            line.name: {
                                resource: line.at(resource, accuracy)
                                for resource in RESOURCES
                                if line.known(resource)
                            }
                            for line in there
                        },
                    }
                    for level, accuracy in wanted.items()
                },
            }
        )
    return rows
