"""Puts policies side by side on test questions: operating points, curves and paired differences.

A policy is a name, predicted values and a price; what it would have done is exact, because the
oracle holds the outcome of every action. Knows arrays and action spaces; does not know routers,
files or reports.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.actions import ActionSpace, uniform_space
from router.policy import Policy, choose_many, row_costs
from training.figures.metrics import (
    Array,
    Picks,
    brier,
    calibration_error,
    harm_and_rescue,
    paid,
    picked,
    priced_regret,
    regret,
)
from training.figures.resampling import Interval, Resampler

TAKEN = ("tokens", "costs", "flops", "gpu_ms")  # what an action takes of a question


@dataclass(frozen=True)
class Questions:
    """Test questions as a comparison needs them: n questions, A actions, the anchor last.

    What an action takes may be given as (A,) where it is the same for every question.
    ``resamples`` are those of every interval; ``gpu_ms`` is analytic (m3model.cost), not measured.
    Of ``flops`` and ``gpu_ms`` a second look at the same picture does not pay the encode again.
    """

    scores: Array  # (n, A)
    pictures: NDArray[np.int64]  # (n,)
    tokens: Array  # (n, A)
    costs: Array  # (n, A)
    flops: Array | None  # (n, A)
    gpu_ms: Array | None = None  # (n, A)
    resamples: int = 2000
    encode_flops: float = 0.0
    encode_ms: float = 0.0
    space: ActionSpace | None = None  # None: scales alone, which their tokens name

    def __post_init__(self) -> None:
        for name in TAKEN:
            table = getattr(self, name)
            if table is not None:
                object.__setattr__(self, name, np.broadcast_to(table, self.scores.shape))

    @cached_property
    def actions(self) -> ActionSpace:
        """Return the actions that the columns stand for."""
        return uniform_space(self.tokens[0].astype(int)) if self.space is None else self.space

    @cached_property
    def over_scales(self) -> Questions:
        """Return the same questions under the uniform scales alone."""
        if self.actions.is_uniform:
            return self
        columns = np.array(self.actions.uniform)
        return self._of(
            self.pictures, uniform_space(self.actions.scales), lambda table: table[:, columns]
        )

    @cached_property
    def resampler(self) -> Resampler:
        """Return the draws that every interval over these questions uses."""
        return Resampler(self.pictures, self.resamples)

    def only(self, mask: NDArray[np.bool_]) -> Questions:
        """Return some of the questions."""
        return self._of(self.pictures[mask], self.space, lambda table: table[mask])

    def _of(
        self, pictures: NDArray[np.int64], space: ActionSpace | None, part: Callable[[Array], Array]
    ) -> Questions:
        """Return the questions with a part of every table."""
        return replace(
            self, scores=part(self.scores), pictures=pictures, tokens=part(self.tokens),
            costs=part(self.costs), flops=None if self.flops is None else part(self.flops),
            gpu_ms=None if self.gpu_ms is None else part(self.gpu_ms), space=space,
        )  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a policy did: the action of each answer that counts, and the score it earned.

    ``first`` is that of the first answer where there may have been two; both looks are paid.
    """

    name: str
    price: float | None
    picks: Picks
    score: Array
    first: Picks | None = None

    def spent(self, per_action: Array, shared: float = 0.0) -> Array:
        """Return (n,) what the questions took of a resource; see `metrics.paid`."""
        return paid(per_action, self.picks, self.first, shared)

    def among_all(self, on: Questions) -> Outcome:
        """Return what was done to ``on.over_scales`` as done to ``on``."""
        columns = np.array(on.actions.uniform, dtype=np.intp)
        first = None if self.first is None else columns[self.first]
        return replace(self, picks=columns[self.picks], first=first)

    def only(self, mask: NDArray[np.bool_]) -> Outcome:
        """Return what it did to some of the questions."""
        first = None if self.first is None else self.first[mask]
        return replace(self, picks=self.picks[mask], score=self.score[mask], first=first)

    def summary(self, on: Questions) -> dict[str, Any]:
        """Return accuracy, mean visual tokens, cost, FLOPs and analytic GPU milliseconds."""
        return {
            "price": self.price,
            "accuracy": float(self.score.mean()),
            "visual_tokens": float(self.spent(on.tokens).mean()),
            "cost": float(self.spent(on.costs).mean()),
            "flops": None
            if on.flops is None
            else float(self.spent(on.flops, on.encode_flops).mean()),
            "gpu_ms": None
            if on.gpu_ms is None
            else float(self.spent(on.gpu_ms, on.encode_ms).mean()),
        }


def run_policy(name: str, values: Array, policy: Policy, on: Questions) -> Outcome:
    """Return what the policy does to the questions, given its predicted values (n, A)."""
    if policy.finest_only:
        picks = np.full(len(values), on.scores.shape[1] - 1)
    else:
        costs = row_costs(on.tokens, on.actions.scales, policy.costs)
        picks = choose_many(values, costs, policy.price)
    return Outcome(name, policy.price, picks, picked(on.scores, picks))


def fixed(index: int, on: Questions) -> Outcome:
    """Return what always taking one action, by its index, does."""
    picks = np.full(len(on.scores), index)
    return Outcome(f"fixed_{on.actions.names[index]}", None, picks, on.scores[:, index])


def paired(first: Outcome, second: Outcome, on: Questions) -> dict[str, Any]:
    """Return the differences first − second in accuracy and tokens, with intervals by picture."""
    accuracy = on.resampler.interval(first.score - second.score)
    ours, theirs = first.spent(on.tokens), second.spent(on.tokens)
    return {
        "accuracy": accuracy.as_dict(),
        "visual_tokens": on.resampler.interval(ours - theirs).as_dict(),
        "token_ratio": float(ours.mean() / theirs.mean()),
    }


def difference_from_finest(outcome: Outcome, on: Questions) -> Interval:
    """Return accuracy minus that of the finest scale, paired, with an interval by picture."""
    return on.resampler.interval(outcome.score - on.scores[:, -1])


def resampled_point(outcome: Outcome, on: Questions) -> tuple[Array, Array]:
    """Return (R,) tokens and (R,) accuracy of an operating point."""
    both = np.stack([outcome.spent(on.tokens), outcome.score], axis=1)
    tokens, accuracy = on.resampler.means(both).T
    return tokens, accuracy


def details(outcome: Outcome, on: Questions) -> dict[str, Any]:
    """Return harm beside what could be harmed, rescue, regret and how often each action answers."""
    harm, rescue = harm_and_rescue(on.scores, outcome.picks)
    shares = np.bincount(outcome.picks, minlength=len(on.actions)) / len(outcome.picks)
    return {
        "harm": harm,
        "finest_right": float((on.scores[:, -1] >= 0.5).mean()),  # no harm can exceed it
        "rescue": rescue,
        "regret": regret(on.scores, outcome.picks, on.tokens, outcome.spent(on.tokens)),
        "priced_regret": None
        if outcome.price is None or outcome.first is not None
        else priced_regret(on.scores, outcome.picks, on.costs, outcome.price),
        "share_of_scale": dict(zip(on.actions.names, shares.tolist(), strict=True)),
    }


def calibration_of(probabilities: Array, outcome: Outcome, on: Questions) -> dict[str, Any]:
    """Return ECE and Brier per action and of the chosen one, and the operating-point error.

    Of the chosen one (of the first answer) the error is larger: an action is chosen where its
    probability came out high.
    """
    picks = outcome.picks if outcome.first is None else outcome.first
    chosen, score = picked(probabilities, picks), picked(on.scores, picks)
    return {
        "per_scale": [
            {
                "scale": action.key,
                "ece": calibration_error(probabilities[:, k], on.scores[:, k]),
                "brier": brier(probabilities[:, k], on.scores[:, k]),
            }
            for k, action in enumerate(on.actions.actions)
        ],
        "chosen": {
            "ece": calibration_error(chosen, score),
            "brier": brier(chosen, score),
        },
        "operating_point_error": float(abs(chosen.mean() - score.mean())),
    }
