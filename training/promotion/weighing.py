"""The gate: whether what was played on fresh questions lets a candidate router go live.

It must be shown that the candidate is not worse, by more than `EPSILON`, than the router in force,
than a pinned reference, and than the floor that the finest scale sets; and that it is cheaper, or
holds a stronger certificate, or is better by more than `EPSILON`. What is not shown is refused.

How it is shown. Each comparison is a mean over pictures of the paired difference of a picture's
questions, bounded by the bets of router.certificate.proof: pictures in the order of a hash, stakes
from earlier pictures alone. A candidate that is worse in truth than any one of the three goes live
with probability `DELTA` at most, whatever the other two say and however the scores are spread.
Two routers that lose half a point each pass the router in force one after the other; the reference
and the floor do not move with it, so together they cannot lose much more than `EPSILON`.

Knows outcomes, bets and words; knows nothing of routers, files or the registry.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.certificate.proof import log_capital, mean_by_picture, upper_bound
from training.figures.metrics import Array

EPSILON = 0.01  # of accuracy: a router that loses more is worse
DELTA = 0.02  # most chance that what a comparison shows is not so
# At which a router that answers as well and takes a tenth fewer tokens passes four times in five,
# where 4 % of the answers differ; benchmarks/_loop/gates.py, docs/retrain.md.
GATE_PICTURES = 7000


@dataclass(frozen=True)
class Played:
    """What one policy did to the n fresh questions."""

    version: str  # "" for always the finest
    score: Array  # (n,) in [0, 1]
    tokens: Array  # (n,) visual tokens, both looks counted


@dataclass(frozen=True)
class Floor:
    """The least accuracy: ``share`` of the finest scale's, less a certified loss."""

    share: float
    less: float = 0.0


@dataclass(frozen=True)
class Evidence:
    """All that a verdict rests on.

    Attributes:
        incumbent: what is live. Where that is always the finest scale, the floor alone says how
            much may be lost against it, as every router is priced to lose what its target allows.
        units: (n,) integers 0..P-1, the picture (or group of them) of each question, numbered in
            an order that does not depend on what was answered: the order of the bets.
        finest: (n,) scores of the finest scale.
        most_tokens: no question can take more.
        stronger: in words, what the candidate's certificate promises more; None if nothing.
    """

    units: NDArray[np.int64]
    candidate: Played
    incumbent: Played
    reference: Played | None
    finest: Array
    floor: Floor
    most_tokens: float
    stronger: str | None = None


@dataclass(frozen=True)
class Bound:
    """A mean over pictures, and ends that each hold with probability 1 - `DELTA`."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Check:
    """One comparison: the gain's lower end must be above ``needs``.

    Attributes:
        name: "incumbent", "reference", "floor" or "tokens".
        gain: of the candidate, in accuracy; of tokens, those it saves.
        missing: about how many more fresh pictures would show it; 0 where it is shown, None where
            no number of them would.
    """

    name: str
    gain: Bound
    needs: float
    passed: bool
    missing: int | None


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate may go live, why or why not, and the figures.

    Attributes:
        why: sentences; all reasons against it, or what speaks for it.
        missing: fresh pictures that are missing, None where more of them would not help.
        facts: what else a report tells (JSON).
        notes: what a person must be told whatever the verdict.
    """

    passed: bool
    why: tuple[str, ...]
    checks: tuple[Check, ...] = ()
    pictures: int = 0
    questions: int = 0
    missing: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """Return the verdict in one line."""
        return "; ".join(self.why)

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON."""
        return {
            "passed": self.passed,
            "why": list(self.why),
            "notes": list(self.notes),
            "pictures": self.pictures,
            "questions": self.questions,
            "missing": self.missing,
            "checks": [asdict(check) for check in self.checks],
            "epsilon": EPSILON,
            "delta": DELTA,
            "least_pictures": least_pictures(),
            "documented_pictures": GATE_PICTURES,
            **self.facts,
        }


def refused(why: str, **more: Any) -> Verdict:
    """Return the verdict on what cannot be judged."""
    return Verdict(False, (why,), **more)


def too_few(pictures: int, questions: int) -> Verdict | None:
    """Return the verdict where no answers to so few pictures could let a router through."""
    missing = least_pictures() - pictures
    if missing <= 0:
        return None
    return refused(
        f"{pictures} fresh audited pictures cannot show anything: {missing} more are missing to "
        f"the {least_pictures()} below which no router passes (it takes about {GATE_PICTURES:,} "
        "where 4 % of the answers differ)",
        pictures=pictures, questions=questions, missing=missing,
    )  # fmt: skip


def weigh(evidence: Evidence) -> Verdict:
    """Return the verdict on a candidate, from what it and the others did to the same questions."""
    units = evidence.units
    pictures = int(units.max()) + 1 if len(units) else 0
    few = too_few(pictures, len(units))
    if few is not None:
        return few
    checks = _checks(evidence)
    against = [_why_not(check) for check in checks if check.name != "tokens" and not check.passed]
    cheaper, first = checks[-1], checks[0]
    better = first.name == "incumbent" and first.gain.low > EPSILON
    if not (cheaper.passed or better or evidence.stronger):
        against.append(_why_not(cheaper))
    missing = [check.missing for check in checks if not check.passed]
    hopeless = None in missing
    return Verdict(
        passed=not against,
        why=tuple(against) if against else _why(evidence, checks, better),
        checks=checks,
        pictures=pictures,
        questions=len(units),
        missing=0 if not against else None if hopeless else max(m or 0 for m in missing),
    )


def _checks(evidence: Evidence) -> tuple[Check, ...]:
    ours, units = evidence.candidate, evidence.units
    floor = evidence.floor.share * evidence.finest - evidence.floor.less
    rivals = {"floor": floor}
    if evidence.incumbent.version:
        rivals = {"incumbent": evidence.incumbent.score, **rivals}
    if evidence.reference is not None:
        rivals["reference"] = evidence.reference.score
    saved = (evidence.incumbent.tokens - ours.tokens) / evidence.most_tokens
    return (
        *(
            # Above a floor with a certified loss a gain may exceed 1; bets take no more than that.
            _check(name, np.minimum(ours.score - score, 1.0), units, -EPSILON)
            for name, score in rivals.items()
        ),
        _check("tokens", saved, units, 0.0, evidence.most_tokens),
    )


def _check(
    name: str, gains: Array, units: NDArray[np.int64], needs: float, unit: float = 1.0
) -> Check:
    """Return what the gains (n,) of questions, in [-1, 1], show; told in ``unit``."""
    gain = bounded(mean_by_picture(gains, units))
    passed = gain.low > needs
    told = Bound(unit * gain.mean, unit * gain.low, unit * gain.high)
    return Check(
        name, told, unit * needs, passed, 0 if passed else _missing(gain, needs, units.max() + 1)
    )


def bounded(gains: Array) -> Bound:
    """Return the mean of gains (P,) in [-1, 1] with ends that each are wrong with `DELTA` at most.

    Args:
        gains: in an order that does not depend on them.
    """
    return Bound(
        float(gains.mean()),
        1.0 - 2.0 * upper_bound((1.0 - gains) / 2.0, DELTA),
        2.0 * upper_bound((1.0 + gains) / 2.0, DELTA) - 1.0,
    )


@cache
def least_pictures() -> int:
    """Return the fewest pictures on which a router that answers as well everywhere can pass."""
    low, high = 0, 10_000
    while high - low > 1:
        middle = (low + high) // 2
        # Of no differences at all: losses of one half at a level `EPSILON` / 2 above them.
        wealth = log_capital(np.full(middle, 0.5), 0.5 + EPSILON / 2, DELTA)
        low, high = (low, middle) if wealth >= -math.log(DELTA) else (middle, high)
    return high


def _missing(gain: Bound, needs: float, pictures: int) -> int | None:
    """Return about how many more pictures bring the lower end above ``needs``: the distance of
    the end from the mean shrinks with the root of their number."""
    if gain.mean <= needs:
        return None
    wanted = pictures * ((gain.mean - gain.low) / (gain.mean - needs)) ** 2
    return max(1, math.ceil(wanted - pictures))


_AGAINST = {
    "incumbent": "than the router in force",
    "reference": "than the reference router",
    "floor": "than the floor that the finest scale sets",
}


def _why_not(check: Check) -> str:
    if check.name == "tokens":
        said = (
            "it is not shown to be cheaper (it saves "
            f"{check.gain.mean:+.1f} visual tokens a question, {check.gain.low:+.1f} to "
            f"{check.gain.high:+.1f}), better or more strongly certified than the router in force"
        )
    else:
        said = (
            f"it is not shown to answer at most {100 * EPSILON:g} point worse "
            f"{_AGAINST[check.name]} ({_points(check.gain)})"
        )
    if check.missing is None:
        return f"{said}, and more pictures would not show it"
    return f"{said}: about {check.missing:,} more fresh audited pictures are missing"


def _why(evidence: Evidence, checks: tuple[Check, ...], better: bool) -> tuple[str, ...]:
    saved, gain = checks[-1], checks[0].gain
    kept = "the router in force" if checks[0].name == "incumbent" else "the finest scale's floor"
    for_it = [f"it answers as well as {kept} ({_points(gain)})"]
    if saved.passed:
        before = evidence.incumbent.tokens.mean()
        for_it.append(
            f"it saves {saved.gain.mean:.1f} of {before:.1f} visual tokens a question "
            f"({saved.gain.low:.1f} to {saved.gain.high:.1f})"
        )
    if better:
        for_it[0] = f"it answers better than the router in force ({_points(gain)})"
    if evidence.stronger:
        for_it.append(evidence.stronger)
    return tuple(for_it)


def _points(gain: Bound) -> str:
    mean, low, high = (100 * end for end in (gain.mean, gain.low, gain.high))
    return f"{mean:+.2f} points, {low:+.2f} to {high:+.2f}"
