"""What focus was asked to reach, and what held-out pictures say: value, bound, met or missed.

Knows a router, its oracle data and what was asked; knows nothing of how a report looks elsewhere.
Ratios at equal accuracy: the router at its shipped prices over what a rival needs for the same
accuracy, the rival's settings mixed on test pictures. Those settings are read off the test pictures
too, as everywhere in the report, which favours the rival; found on calibration pictures they give
the ratio in the note. Where a rival never is as accurate it is charged what its best takes, which
understates the gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from _focus.settings import (
    TOKENS,
    Chooser,
    Resource,
    Setting,
    Table,
    cheapest_keeping,
    operations,
    shipped,
    uniform_look,
)
from _operating_paths import Draws, Walk, interval_of

from router.policy import choose_many
from router.router import Router
from training.errors import TrainingError
from training.evaluation.baselines import look_up, type_table
from training.figures.metrics import Array, harm_and_rescue, picked
from training.fitting.certify import certify
from training.oracle.data import OracleData

CHEAPER = 0.985  # of the finest accuracy: what prices the second operating point
HARM, DELTA = 0.02, 0.05
Side = Literal["at least", "at most"]


@dataclass(frozen=True)
class Check:
    """One number that was asked for.

    Attributes:
        what: in words.
        value: what counts; None where it could not be measured.
        side, bound: what it had to be.
        interval: 95 % by picture around the value, or around what the value is an end of.
        note: what else a reader must know.
    """

    what: str
    value: float | None
    side: Side
    bound: float
    interval: dict[str, float] | None = None
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        if self.value is None:
            return False
        return self.value >= self.bound if self.side == "at least" else self.value <= self.bound


@dataclass(frozen=True)
class Target:
    """One line of the list: all its checks must be met."""

    name: str
    checks: tuple[Check, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON, met or not."""
        checks = [{**asdict(check), "met": check.met} for check in self.checks]
        return {"name": self.name, "met": all(c.met for c in self.checks), "checks": checks}


@dataclass(frozen=True)
class Judge:
    """A router on held-out data: calibration pictures choose settings, test pictures judge."""

    router: Router
    data: OracleData
    resamples: int = 2000

    @cached_property
    def calibration(self) -> Table:
        """Return the calibration questions with the router's values."""
        return self._table(self.data.split("calibration"))

    @cached_property
    def test(self) -> Table:
        """Return the test questions with the router's values."""
        return self._table(self.data.split("test"))

    @cached_property
    def draws(self) -> Draws:
        """Return the resamples of test pictures that every interval uses."""
        return Draws.of(self.test.pictures, self.resamples)

    def _table(self, part: OracleData) -> Table:
        values = np.asarray(self.router.predict_values(part.features), float)
        return Table.of(part, values, self.router.policy.costs)

    def against_finest(self, score: Array) -> dict[str, float] | None:
        """Return the paired difference from always the anchor of scores (n,), in points."""
        means = self.draws.means((score - self.test.scores[:, -1])[None])[:, 0]
        return interval_of(100 * means)

    def share(self, chooser: Chooser, setting: Setting) -> tuple[Array, dict[str, float] | None]:
        """Return (n,) the scores at a setting, and its share of the anchor's tokens."""
        first, last = chooser.picks(self.test, setting)
        spent = TOKENS.spent(self.test, first, last) / self.test.tokens[:, -1]
        return picked(self.test.scores, last), interval_of(self.draws.means(spent[None])[:, 0])

    def beside(
        self,
        rival: str,
        chooser: Chooser,
        tables: tuple[Table, Table],
        bound: float,
        resource: Resource = TOKENS,
    ) -> Target:
        """Return the router's share of what a rival needs for the router's accuracy.

        Args:
            rival: in words.
            chooser, tables: the rival, with its values on calibration and on test questions.
            bound: that was asked for.
            resource: that is shared.
        """
        settings = chooser.settings(tables[0])
        calibration, test = (chooser.runs(table, settings, resource) for table in tables)
        found = self._ratio(Walk.along(test, test, self.draws), resource)
        before = self._ratio(Walk.along(calibration, test, self.draws), resource)
        note = "" if before is None else "{mean:.3f} by settings of calibration".format(**before)
        check = Check("ratio at equal accuracy", _at(found), "at most", bound, found, note)
        return Target(f"beside {rival}", (check,))

    def _ratio(self, walk: Walk, resource: Resource) -> dict[str, float] | None:
        chooser, setting = shipped(self.router)
        first, last = chooser.picks(self.test, setting)
        rows = np.stack([picked(self.test.scores, last), resource.spent(self.test, first, last)])
        accuracy, spent = self.draws.means(rows).T
        needed = walk.at_accuracy(accuracy)
        dearest = walk.cost[np.arange(len(needed)), walk.accuracy.argmax(axis=1)]
        return interval_of(spent / np.where(np.isnan(needed), dearest, needed))

    def tables(self) -> tuple[Table, Table]:
        """Return calibration and test questions with the values of the question-type table."""
        known = type_table(self.data.split("train"))
        first, second = (
            Table.of(part, look_up(known, part), self.router.policy.costs)
            for part in (self.data.split("calibration"), self.data.split("test"))
        )
        return first, second


def targets(judge: Judge) -> list[Target]:
    """Return the list, each target judged once on the test pictures."""
    space = judge.router.space
    scales = space.uniform
    uniform = judge.calibration.only(scales), judge.test.only(scales)
    table = judge.tables()
    table_uniform = table[0].only(scales), table[1].only(scales)
    look = judge.router.second_look
    one, both = Chooser(), Chooser(None if look is None else uniform_look(look, space))
    beside = judge.beside
    return [
        _shipped(judge),
        _cheaper(judge),
        beside("the type table over uniform scales", one, table_uniform, 0.35),
        beside("our router over uniform scales, one look", one, uniform, 0.5),
        beside("our router over uniform scales, two looks", both, uniform, 0.6),
        beside("the type table over the same actions", one, table, 0.85),
        beside("the uniform router in operations at 7B", both, uniform, 0.7, operations("7b")),
        _certificate(judge),
        _densest(judge),
    ]


def _shipped(judge: Judge) -> Target:
    score, share = judge.share(*shipped(judge.router))
    points = judge.against_finest(score)
    low = _at(points, "low")
    return Target(
        "as it ships",
        (
            Check("points against the finest, lower bound", low, "at least", -0.5, points),
            Check("share of the finest's tokens", _at(share), "at most", 0.12, share),
        ),
    )


def _cheaper(judge: Judge) -> Target:
    chooser, _ = shipped(judge.router)
    table = judge.calibration
    settings = chooser.settings(table)
    runs = chooser.runs(table, settings, TOKENS)
    chosen = cheapest_keeping(runs, table.scores[:, -1], table.pictures, CHEAPER)
    note = f"priced for {CHEAPER:.1%} of the finest accuracy"
    if chosen == len(settings):
        none = Check("points against the finest", None, "at least", -1.5, None, f"no price: {note}")
        return Target("cheaper", (none,))
    score, share = judge.share(chooser, settings[chosen])
    points = judge.against_finest(score)
    return Target(
        "cheaper",
        (
            Check("points against the finest", _at(points), "at least", -1.5, points, note),
            Check("share of the finest's tokens", _at(share), "at most", 0.06, share),
        ),
    )


def _certificate(judge: Judge) -> Target:
    name = f"certificate: harm of at most {HARM:g}, delta {DELTA:g}"
    what = "share of the finest's tokens"
    try:
        made = certify(judge.router, judge.data, loss="harm", bound=HARM, delta=DELTA)
    except TrainingError as error:
        return Target(name, (Check(what, None, "at most", 0.2, None, str(error)),))
    price = next(rung.price for rung in made.ladder if rung.bound == HARM)
    if price is None:
        note = "no price was shown to keep it"
        return Target(name, (Check(what, 1.0, "at most", 0.2, None, note),))
    _, share = judge.share(Chooser(), (price, None))
    picks = choose_many(judge.test.values, judge.test.costs, price)
    harm, _ = harm_and_rescue(judge.test.scores, picks)
    note = f"harm on the test questions {harm:.4f}, certified on {made.pictures} pictures"
    return Target(name, (Check(what, _at(share), "at most", 0.2, share, note),))


def _densest(judge: Judge) -> Target:
    space, test = judge.router.space, judge.test
    foci = [i for i, action in enumerate(space.actions) if not action.is_uniform]
    name = "the densest focus alone, no router"
    if not foci:
        none = Check("points against the finest", None, "at least", -0.5, None, "it has no focus")
        return Target(name, (none,))
    densest = max(foci, key=lambda index: float(test.tokens[:, index].mean()))
    points = judge.against_finest(test.scores[:, densest])
    shares = (test.tokens[:, densest] / test.tokens[:, -1])[None]
    share = interval_of(judge.draws.means(shares)[:, 0])
    note = space.names[densest]
    return Target(
        name,
        (
            Check("points against the finest", _at(points), "at least", -0.5, points, note),
            Check("share of the finest's tokens", _at(share), "at most", 0.25, share),
        ),
    )


def show_targets(found: Sequence[dict[str, Any]]) -> None:
    """Print the targets of `Target.as_dict`."""
    print("asked and found, on the test pictures:")
    for target in found:
        print(f"  {target['name']}")
        for check in target["checks"]:
            told = f"{check['what']}: {_told(check)}, asked {check['side']} {check['bound']:g}"
            note = f"; {check['note']}" if check["note"] else ""
            print(f"    {'met   ' if check['met'] else 'MISSED'}  {told}{note}")


def _told(check: dict[str, Any]) -> str:
    if check["value"] is None:
        return "not measured"
    found = check["interval"]
    if found is None:
        return f"{check['value']:.3f}"
    mean, low, high = (f"{found[key]:.3f}" for key in ("mean", "low", "high"))
    return f"{check['value']:.3f} (mean {mean}, {low} to {high})"


def _at(found: dict[str, float] | None, end: str = "mean") -> float | None:
    return None if found is None else found[end]
