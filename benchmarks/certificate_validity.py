"""How often is the promise broken? Certificates of several methods on many random calibrations.

The pictures of an oracle that no part of the router has seen are made the whole population, so the
true loss of every price is known exactly. Each repetition draws calibration pictures from it with
replacement (independent draws, as the theory wants), certifies, and looks the truth up. A promise
is broken where the truth at the chosen price exceeds the bound; a sound method does that in at most
delta of the repetitions (a binomial allowance is added for their finite number). Beside it the same
over random halves, calibrated on one and judged on the other: there the judging half is noisy too,
so even a kept promise looks broken now and then.

Negative control: the same certificates from calibration pictures drawn from another population
(those on which the policy loses least), which must and does break its promise.

    python benchmarks/certificate_validity.py [--json PATH] [--quick] [--oracle DIR] [--router DIR]
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _result import arguments, write
from numpy.typing import NDArray

from router.certificate.proof import (
    Loss,
    clopper_pearson,
    log_capital,
    mean_by_picture,
    price_family,
    question_losses,
)

Array = NDArray[np.float64]
DELTA = 0.1
BOUNDS = (0.01, 0.02, 0.05)
Z = 1.2815515655446004  # normal quantile of 1 - DELTA


@dataclass(frozen=True)
class World:
    """A population of P pictures and G members of the family, the safest first.

    ``losses`` (G, P) mean over a picture's questions, ``by_question`` (G, n) with the questions of
    a picture side by side, ``first`` (P,) where they begin and ``counts`` (P,) how many they are;
    ``tokens`` (G,) mean over questions.
    """

    losses: Array
    by_question: NDArray[np.float32]
    first: NDArray[np.int64]
    counts: NDArray[np.int64]
    tokens: Array

    @property
    def truth(self) -> Array:
        """Return (G,): the exact loss of each member."""
        truth: Array = self.losses.mean(axis=1)
        return truth


Certify = Callable[[World, NDArray[np.int64], float], NDArray[np.bool_]]


def plug_in(world: World, drawn: NDArray[np.int64], bound: float) -> NDArray[np.bool_]:
    """Return (G,): the mean that was seen is within the bound."""
    return np.asarray(world.losses[:, drawn].mean(axis=1) <= bound)


def risk_control(world: World, drawn: NDArray[np.int64], bound: float) -> NDArray[np.bool_]:
    """Return (G,): conformal risk control, which bounds the mean over repetitions only."""
    n = len(drawn)
    return np.asarray((world.losses[:, drawn].sum(axis=1) + 1.0) / (n + 1) <= bound)


def normal(world: World, drawn: NDArray[np.int64], bound: float) -> NDArray[np.bool_]:
    """Return (G,): a normal upper bound by picture; right only for many pictures."""
    seen = world.losses[:, drawn]
    error = seen.std(axis=1, ddof=1) / math.sqrt(len(drawn))
    return np.asarray(seen.mean(axis=1) + Z * error <= bound)


def betting(world: World, drawn: NDArray[np.int64], bound: float) -> NDArray[np.bool_]:
    """Return (G,): the shipped method."""
    return np.asarray(log_capital(world.losses[:, drawn], bound, DELTA) >= -math.log(DELTA))


def one_question(world: World, drawn: NDArray[np.int64], bound: float) -> NDArray[np.bool_]:
    """Return (G,): Clopper-Pearson on one question of each picture, drawn anew; valid for harm."""
    shares = np.random.default_rng(int(drawn[0])).random(len(drawn))
    asked = world.first[drawn] + (shares * world.counts[drawn]).astype(np.int64)
    return _allowed(world.by_question[:, asked].sum(axis=1), len(drawn), bound)


def all_questions(world: World, drawn: NDArray[np.int64], bound: float) -> NDArray[np.bool_]:
    """Return (G,): Clopper-Pearson as if questions about one picture were independent; invalid."""
    counts = world.counts[drawn]
    return _allowed((world.losses[:, drawn] * counts).sum(axis=1), int(counts.sum()), bound)


def _allowed(events: Array, n: int, bound: float) -> NDArray[np.bool_]:
    """Return whether each count of events keeps the Clopper-Pearson bound."""
    low, high = -1, n  # the greatest count whose upper bound is within the bound
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if clopper_pearson(middle, n, DELTA) <= bound else (low, middle)
    return np.asarray(np.round(events) <= low)


METHODS: dict[str, tuple[Certify, bool]] = {  # with fixed-sequence testing, or the cheapest of all
    "plug_in": (plug_in, False),
    "conformal_risk_control": (risk_control, False),
    "ltt_normal": (normal, True),
    "ltt_betting": (betting, True),
    "ltt_clopper_pearson_one_question": (one_question, True),
    "ltt_clopper_pearson_all_questions": (all_questions, True),
}


def chosen(accepted: NDArray[np.bool_], in_sequence: bool) -> int:
    """Return the member: the last before the first refusal, or the cheapest accepted one."""
    if in_sequence:
        refused = np.flatnonzero(~accepted[1:])
        return int(refused[0]) if len(refused) else len(accepted) - 1
    return int(np.flatnonzero(accepted).max(initial=0))


def binomial_allowance(repetitions: int) -> float:
    """Return the greatest share of broken promises that delta still explains (one in a hundred)."""
    total, k = 0.0, 0
    while True:
        log = math.lgamma(repetitions + 1) - math.lgamma(k + 1) - math.lgamma(repetitions - k + 1)
        total += math.exp(log + k * math.log(DELTA) + (repetitions - k) * math.log(1 - DELTA))
        if total >= 0.99:
            return k / repetitions
        k += 1


def repeat(
    world: World, loss: Loss, draws: list[tuple[NDArray[np.int64], Array]]
) -> dict[str, Any]:
    """Return, for each bound and method, how often it broke its promise and what it spent.

    Args:
        draws: of each repetition the calibration pictures and the (G,) losses it is judged by.
    """
    table: dict[str, Any] = {}
    for bound in BOUNDS:
        table[f"{bound:g}"] = {}
        for name, (certify, in_sequence) in METHODS.items():
            if "clopper" in name and loss == "drop":
                continue
            picked = [chosen(certify(world, drawn, bound), in_sequence) for drawn, _ in draws]
            judged = [truth[m] > bound for m, (_, truth) in zip(picked, draws, strict=True)]
            table[f"{bound:g}"][name] = {
                "broken": float(np.mean(judged)),
                "visual_tokens": float(world.tokens[picked].mean()),
                "infeasible": float(np.mean([m == 0 for m in picked])),
                "mean_loss": float(world.truth[picked].mean()),
            }
        within = np.flatnonzero(world.truth > bound)
        best = int(within[0]) - 1 if len(within) else len(world.truth) - 1
        table[f"{bound:g}"]["known_truth"] = {"visual_tokens": float(world.tokens[best])}
    return table


def worlds(oracle: list[Path], router: Path) -> tuple[dict[Loss, World], dict[str, Any]]:
    """Return the population under each loss: calibration and test pictures the router never saw."""
    from router import Router
    from router.policy import choose_many, row_costs
    from training.figures.metrics import picked
    from training.fitting.calibration_parts import certifying
    from training.fitting.certify import most_costs
    from training.oracle.data import check_fits, read_oracle

    shipped = Router.from_pretrained(router)
    data = check_fits(shipped, read_oracle(oracle))
    units = np.concatenate([certifying(data).units, data.split("test").units])
    held = data.take(np.isin(data.units, units))
    held = held.take(np.argsort(held.pictures, kind="stable"))
    values = np.asarray(shipped.predict_values(held.features), dtype=np.float64)
    costs = row_costs(held.visual_tokens, shipped.scales, shipped.policy.costs)
    prices = price_family(most_costs(shipped))
    finest = np.full(len(held), values.shape[1] - 1)
    picks = [finest] + [choose_many(values, costs, float(price)) for price in prices]
    tokens = np.array([picked(held.visual_tokens, each).mean() for each in picks])
    counts = np.bincount(held.pictures)
    first = np.cumsum(counts) - counts
    found: dict[Loss, World] = {}
    for loss in ("harm", "drop"):
        by_question = np.stack([question_losses(held.scores, each, loss) for each in picks])
        losses = np.stack([mean_by_picture(each, held.pictures) for each in by_question])
        found[loss] = World(losses, by_question.astype(np.float32), first, counts, tokens)
    facts = {
        "pictures": held.n_pictures, "questions": len(held), "router_version": shipped.version,
        "model_hash": held.model_hash, "data_hash": held.data_hash, "members": len(tokens),
        "router_certifiable": shipped.metadata.get("calibrated_on"),
    }  # fmt: skip
    return found, facts


def measure(oracle: list[Path], router: Path, repetitions: int, pictures: int) -> dict[str, Any]:
    """Return the whole table."""
    started = time.perf_counter()
    found, facts = worlds(oracle, router)
    rng = np.random.default_rng(0)
    tables: dict[str, Any] = {}
    for loss, world in found.items():
        n = len(world.counts)
        drawn = [rng.integers(0, n, pictures) for _ in range(repetitions)]
        halves = [np.array_split(rng.permutation(n), 2) for _ in range(repetitions)]
        # The control: only the four fifths of the pictures that lose least over the family.
        lucky = np.argsort(world.losses.mean(axis=0), kind="stable")[: 4 * n // 5]
        other = [lucky[rng.integers(0, len(lucky), pictures)] for _ in range(repetitions)]
        tables[loss] = {
            "exact": repeat(world, loss, [(each, world.truth) for each in drawn]),
            "halves": repeat(
                world, loss, [(a, world.losses[:, b].mean(axis=1)) for a, b in halves]
            ),
            "control_other_population": repeat(
                world, loss, [(each, world.truth) for each in other]
            ),
        }
    return {
        "benchmark": "certificate_validity",
        **facts,
        "delta": DELTA,
        "repetitions": repetitions,
        "calibration_pictures": pictures,
        "allowed_broken": binomial_allowance(repetitions),
        "seconds": time.perf_counter() - started,
        **tables,
    }


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    print(
        f"{result['repetitions']} repetitions, {result['calibration_pictures']} of "
        f"{result['pictures']} pictures; broken at most {result['delta']:g} "
        f"(with binomial allowance {result['allowed_broken']:.3f})"
    )
    for loss in ("harm", "drop"):
        for kind, by_bound in result[loss].items():
            print(f"\n{loss}, {kind}: broken / visual tokens")
            bounds = list(by_bound)
            print(f"{'':36}" + "".join(f"{'at most ' + bound:>18}" for bound in bounds))
            for name in by_bound[bounds[0]]:
                cells = [by_bound[bound][name] for bound in bounds]
                texts = [
                    f"{cell.get('broken', 0.0):.3f} / {cell['visual_tokens']:5.0f}"
                    for cell in cells
                ]
                print(f"{name:36}" + "".join(f"{text:>18}" for text in texts))
    print(f"\n{result['seconds']:.0f} s")


def main() -> None:
    """Measure, print, write."""
    from router import default_router_path

    parser = arguments(__doc__, quick="60 repetitions: shows that it runs")
    parser.add_argument("--oracle", type=Path, action="append", help="folders of m3-train collect")
    parser.add_argument("--router", type=Path, default=default_router_path())
    parser.add_argument("--repetitions", type=int)
    parser.add_argument("--pictures", type=int, default=1000, help="calibration pictures drawn")
    given = parser.parse_args()
    result = measure(
        given.oracle or [Path("runs/oracle")],
        given.router,
        given.repetitions or (60 if given.quick else 600),
        given.pictures,
    )
    show(result)
    write(result, given.json)


if __name__ == "__main__":
    main()
