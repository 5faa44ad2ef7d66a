"""Replays audited questions under several policies: exact counterfactuals, side by side.

All actions on a question were run on one set of weights, so what a policy would have done is looked
up, not estimated. What a log says was served is decided again from its records. Knows routers,
oracle data and logs; does not know the service.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from router.log import NewerLog, read_log
from router.places import Place
from router.policy import Policy, token_costs
from router.records import DecisionRecord, OracleRecord, from_table
from router.records.rows import Record
from router.router import Router
from training.errors import BadRecord, NotEnoughData, TrainingError
from training.evaluation.exam import questions_of
from training.evaluation.served import ServedAgain, seen_in, served_again
from training.figures import comparison as cmp
from training.figures.metrics import picked
from training.fitting.second_look import two_looks
from training.oracle.data import OracleData, check_fits, oracle_table
from training.progress import Progress, Steps, unseen


@dataclass(frozen=True)
class PolicySpec:
    """A policy named in words: always one scale, or the first router at another price."""

    text: str
    scale: int | None = None  # None with no price: the finest
    price: float | None = None


def parse_policy(text: str) -> PolicySpec:
    """Return the policy that ``finest``, ``fixed:36`` or ``price:0.02`` names.

    Raises:
        TrainingError: anything else.
    """
    kind, _, number = text.partition(":")
    try:
        if text == "finest":
            return PolicySpec(text)
        if kind == "fixed":
            return PolicySpec(text, scale=int(number))
        if kind == "price":
            price = float(number)
            if not 0 <= price < math.inf:
                raise TrainingError(
                    f"policy {text!r}: a price is a number from 0 on, the accuracy that one unit "
                    "of cost must be worth"
                )
            return PolicySpec(text, price=price)
    except TrainingError:
        raise
    except ValueError:
        pass
    raise TrainingError(f"unknown policy {text!r}: use finest, fixed:SCALE or price:NUMBER")


def replay(
    routers: Sequence[tuple[str, Router]],
    data: OracleData,
    *,
    policies: Sequence[PolicySpec] = (),
    resamples: int = 2000,
    progress: Progress = unseen,
) -> list[dict[str, Any]]:
    """Return one row per router and policy, each against the first: accuracy, tokens, harm and
    paired differences. A router with a second look pays both looks. A router decides among its own
    actions, which may be fewer than those of the data, and by its own costs; what all of them are
    said to cost is told in those of the first router (visual tokens without one).

    Args:
        routers: (name, router) pairs, each at its own price.
        data: the questions to replay. Those of training pictures flatter a router fitted on them:
            give the test split.
        policies: further policies; a price is tried on the first router.
        progress: called at every step.

    Raises:
        MixedData: a router was made for other features, scales or actions.
        NotEnoughData: no question.
        TrainingError: nothing to replay, a scale the data lack, or a price without a router.
    """
    _check(routers, data, policies)
    costs = routers[0][1].policy.costs if routers else token_costs(data.scales)
    on = questions_of(data, np.array(costs), resamples)
    steps = Steps(progress, 2 * len(routers) + len(policies))
    replayed = []
    for name, router in routers:
        steps.begin(f"{name}: decisions")
        replayed.append(_Replayed(router, data))
    done = [
        (each.router.version, each.as_it_stands(name))
        for (name, _), each in zip(routers, replayed, strict=True)
    ]
    for spec in policies:
        if spec.price is None:
            done.append(("", _fixed(spec, data)))
        else:
            first = replayed[0]
            done.append((first.router.version, first.at(spec.text, Policy(costs, spec.price))))
    rows = []
    for version, outcome in done:
        steps.begin(f"{outcome.name}: intervals")
        rows.append(_row(version, outcome, done[0][1], on))
    steps.finish()
    return rows


def played(router: Router, data: OracleData, name: str) -> cmp.Outcome:
    """Return what a router does to the questions of data that hold its actions, as they number
    them, with its second look and at its own costs.

    Raises:
        MixedData: the router was made for other features, scales or actions.
    """
    return _Replayed(router, data).as_it_stands(name)


def logged_again(
    routers: Sequence[tuple[str, Router]], log: Place, oracle: Sequence[Path]
) -> tuple[dict[str, ServedAgain], list[str]]:
    """Return how each router (by its name) decides again what it decided for a log, and which
    files of the log cannot be read.

    Args:
        log: of a service's log.
        oracle: folders with the questions of that log.

    Raises:
        BadRecord: records of a newer version.
        TrainingError, FileNotFoundError: no oracle data, or no log.
    """
    table, found = oracle_table(oracle)[0], {}
    try:
        logged = read_log(log)
        for name, router in routers:
            seen = seen_in(_records(table, OracleRecord), router)
            found[name] = served_again(router, _records(logged.decisions, DecisionRecord), seen)
    except (NewerLog, ValueError) as error:
        raise BadRecord(f"the log {log} cannot be decided again: {error}") from error
    return found, [str(skipped) for skipped in logged.notes.skipped]


def _records(table: Any, kind: type[Record]) -> Iterator[Record]:
    """Yield a table's rows as records, a thousand in memory at a time."""
    for start in range(0, len(table), 1000):
        yield from from_table(table.slice(start, 1000), kind)


def _check(
    routers: Sequence[tuple[str, Router]], data: OracleData, policies: Sequence[PolicySpec]
) -> None:
    if not routers and not policies:
        raise TrainingError("nothing to replay: give --router DIR or --policy NAME")
    if len(data) == 0:
        raise NotEnoughData("no test question to replay; collect more pictures or use --split all")
    for _, router in routers:
        check_fits(router, data)
    for spec in policies:
        if spec.price is not None and not routers:
            raise TrainingError(
                f"the policy {spec.text} needs --router DIR, whose price it changes"
            )
        if spec.scale is not None and spec.scale not in data.scales:
            raise TrainingError(
                f"policy {spec.text}: the data have the scales {', '.join(map(str, data.scales))}"
            )


def _row(
    version: str, outcome: cmp.Outcome, first: cmp.Outcome, on: cmp.Questions
) -> dict[str, Any]:
    return {
        "name": outcome.name,
        "version": version,
        **outcome.summary(on),
        **cmp.details(outcome, on),
        "difference_from_finest": cmp.difference_from_finest(outcome, on).as_dict(),
        "minus_first": cmp.paired(outcome, first, on),
    }


class _Replayed:
    """A router before the questions of the data, under its own actions and at its own costs."""

    def __init__(self, router: Router, data: OracleData) -> None:
        self.router = router
        self._part = check_fits(router, data)
        self._columns = data.columns(router.space)
        self._on = questions_of(self._part, router.policy.costs)  # those that it decides by
        self._values = np.asarray(router.predict_values(data.features), float)

    def as_it_stands(self, name: str) -> cmp.Outcome:
        """Return what it does: with its second look, if it has one."""
        look = self.router.second_look
        if look is None:
            return self.at(name, self.router.policy)
        confidence = self._part.confidence
        return self._among_all(two_looks(name, look, self._values, confidence, self._on))

    def at(self, name: str, policy: Policy) -> cmp.Outcome:
        """Return what its predictions do under a policy, with one look."""
        return self._among_all(cmp.run_policy(name, self._values, policy, self._on))

    def _among_all(self, outcome: cmp.Outcome) -> cmp.Outcome:
        """Return the outcome with the actions numbered as the data number them."""
        first = None if outcome.first is None else self._columns[outcome.first]
        return replace(outcome, picks=self._columns[outcome.picks], first=first)


def _fixed(spec: PolicySpec, data: OracleData) -> cmp.Outcome:
    index = data.space.index(str(data.scales[-1] if spec.scale is None else spec.scale))
    picks = np.full(len(data), index)
    return cmp.Outcome(spec.text, None, picks, picked(data.scores, picks))
