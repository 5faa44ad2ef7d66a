"""Which foci are worth having: they are taken away one by one, the least missed first.

Nothing is fitted again: what is said of an action stands without the others, unless it starts from
one of them. Knows splits and predicted values; does not know how a predictor works.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from _predictors.splits import SHARES, TARGET, Part, Values, tokens_for

Row = dict[str, Any]


def eliminated(made: Sequence[Values], part: Part, names: Sequence[str]) -> Iterator[Row]:
    """Yield which focus goes next and the tokens that each share needs without it, until only
    scales are left.

    Args:
        made: values of one kind, one for each seed; figures are means over them.
        part: the calibration questions that the values are of.
        names: of the actions; a focus is what is not called by a number.
    """
    left = list(range(len(names)))
    while foci := [k for k in left if not names[k].isdecimal()]:
        tried = {k: _needed(made, part, [j for j in left if j != k]) for k in foci}
        gone = min(tried, key=lambda k: tried[k][f"tokens_at_{TARGET:g}"])
        left.remove(gone)
        yield {"without": names[gone], **tried[gone]}


def _needed(made: Sequence[Values], part: Part, actions: list[int]) -> dict[str, float]:
    """Return the mean tokens at each share with some of the actions; the anchor's where a share is
    never reached, since always reading that does."""
    kept = part.actions(actions)
    found = {}
    for share in SHARES:
        needed = [tokens_for(one.calibration[:, actions], kept, share) for one in made]
        most = float(kept.tokens[:, -1].mean())
        found[f"tokens_at_{share:g}"] = float(
            np.mean([most if tokens is None else tokens for tokens in needed])
        )
    return found
