"""What fresh audits tell of a router: have its features moved, are its probabilities true, does it
keep its target, does its certificate hold.

Fresh are questions about pictures that shaped nothing in it. Knows routers and oracle data; knows
neither logs nor registries.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from router.certificate.proof import (
    Loss,
    betting_order,
    log_capital,
    mean_by_picture,
    picture_losses,
)
from router.drift.population import Population, effective_units
from router.drift.stability import LEAST, stability
from router.policy import row_costs
from router.predictor.matrix import in_memory
from router.router import Router
from training.drift.checks import Check
from training.figures.metrics import Array
from training.oracle.data import OracleData, check_fits
from training.promotion.gate import TARGET
from training.promotion.replay import played
from training.promotion.weighing import DELTA, EPSILON, bounded, least_pictures

CALIBRATION_BINS, IN_A_BIN = 10, 20  # at most so many, of at least so many questions
MISCALIBRATED = 0.05  # expected calibration error, less what chance gives
NAMED = 5
RETRAIN = "m3-train retrain"


def check_fresh(fresh: OracleData, audits: OracleData) -> Check:
    """Return whether there are enough fresh pictures to show anything."""
    n, least = fresh.n_pictures, least_pictures()
    says = f"{n} of {audits.n_pictures} audited pictures are fresh to the router"
    if n < least:
        return Check(
            "fresh", "warning", f"{says}; {least - n} more are missing to show anything", n,
            "m3-train collect --from-log; a higher --audit-rate",
        )  # fmt: skip
    return Check("fresh", "ok", says, n)


def check_features(router: Router, told: Population | None, fresh: OracleData) -> Check:
    """Return whether the features lie where they lay when the router was fitted."""
    if told is None:
        return Check(
            "features", "warning", "what the router was fitted on is not told (no population.json)",
            do="routers fitted from now on tell it",
        )  # fmt: skip
    worth = effective_units(np.unique(fresh.units, return_counts=True)[1])
    if worth < LEAST:
        return Check("features", "ok", f"{worth:.0f} independent questions are too few to tell")
    found = stability(told, told.counts(in_memory(fresh.features)), worth)
    most = float(found.index.max())
    if not found.moved.any():
        says = f"no feature has moved beyond chance (stability index at most {most:.2f})"
        return Check("features", "ok", says, most)
    names = router.schema.names
    worst = ", ".join(f"{names[k]} {found.index[k]:.2f}" for k in found.worst(NAMED))
    return Check(
        "features", "warning",
        f"{int(found.moved.sum())} of {len(names)} features have moved from what the router was "
        f"fitted on: {worst}",
        most, f"{RETRAIN}; if nothing changed in the traffic, look how clients send pictures",
    )  # fmt: skip


def check_calibration(router: Router, fresh: OracleData) -> Check:
    """Return whether probabilities are true: expected calibration error by action."""
    on = check_fits(router, fresh)
    if on.n_pictures < LEAST:
        return Check("calibration", "ok", f"{on.n_pictures} fresh pictures are too few to tell")
    values = np.asarray(router.predict_values(on.features), dtype=np.float64)
    errors = [
        (name, *calibration(values[:, k], on.scores[:, k], on.pictures))
        for k, name in enumerate(router.space.names)
    ]
    name, error, low, high = max(errors, key=lambda each: each[2])
    says = f"calibration error {error:.3f} beyond chance ({low:.3f} to {high:.3f}) of action {name}"
    if low >= MISCALIBRATED:
        named = ", ".join(each[0] for each in errors if each[2] >= MISCALIBRATED)
        return Check(
            "calibration", "warning", f"the probabilities of {named} are not true: {says}", error,
            f"{RETRAIN}; prices rest on them",
        )  # fmt: skip
    return Check("calibration", "ok", f"at most {says}", error)


def calibration(
    predicted: Array, outcome: Array, units: NDArray[np.int64]
) -> tuple[float, float, float]:
    """Return the expected calibration error beyond what chance gives, and an interval.

    Bins of equal mass; the gap of each has a standard error over units, since questions about one
    picture hang together. Of true probabilities the absolute gap is on average sqrt(2 / pi) of it,
    which is taken off; the ends lie two standard errors of the sum away.
    """
    bins = min(CALIBRATION_BINS, max(len(units) // IN_A_BIN, 1))
    parts = np.array_split(np.argsort(predicted, kind="stable"), bins)
    error = chance = variance = 0.0
    for part in parts:
        gaps = predicted[part] - outcome[part]
        weight = len(part) / len(units)
        residuals = np.bincount(np.unique(units[part], return_inverse=True)[1], gaps - gaps.mean())
        spread = float((residuals**2).sum()) * len(residuals) / max(len(residuals) - 1, 1)
        standard = math.sqrt(spread) / len(part)
        error += weight * abs(float(gaps.mean()))
        chance += weight * standard * math.sqrt(2 / math.pi)
        variance += (weight * standard) ** 2
    beyond, ends = max(error - chance, 0.0), 2 * math.sqrt(variance)
    return beyond, max(error - chance - ends, 0.0), error - chance + ends


def kept_share(router: Router) -> float:
    """Return the share of the finest scale's accuracy that the router was priced to keep."""
    return float(router.metadata.get("target", TARGET))


def check_accuracy(router: Router, fresh: OracleData) -> Check:
    """Return whether the router keeps the share of the finest accuracy that it was priced for."""
    outcome = played(router, fresh, "router")
    finest, units = fresh.scores[:, -1], betting_order(fresh.units)
    found = router.held.certificate
    by_certificate = found is not None and "price_set_by" in router.metadata
    share = 1.0 if by_certificate else kept_share(router)
    less = found.bound if found is not None and by_certificate else 0.0
    gain = bounded(mean_by_picture(np.minimum(outcome.score - share * finest + less, 1.0), units))
    tokens = float(outcome.spent(fresh.visual_tokens).mean())
    says = (
        f"accuracy {outcome.score.mean():.3f} at {tokens:.1f} visual tokens, the finest scale "
        f"{finest.mean():.3f} at {fresh.visual_tokens[:, -1].mean():.1f}; above what it has to "
        f"keep by {100 * gain.mean:+.2f} points ({100 * gain.low:+.2f} to {100 * gain.high:+.2f})"
    )
    if gain.high < 0.0:
        return Check(
            "accuracy", "bad", f"router {router.version} loses too many answers: {says}",
            gain.mean, f"doctor --apply holds it to a safer price; {RETRAIN}",
        )  # fmt: skip
    if gain.mean < -EPSILON:
        return Check(
            "accuracy", "warning", f"it may lose too many answers, which is not shown yet: {says}",
            gain.mean, "collect more audits",
        )  # fmt: skip
    return Check("accuracy", "ok", says, gain.mean)


def check_certificate(router: Router, fresh: OracleData) -> Check:
    """Return whether fresh audits contradict what is certified."""
    found = router.held.certificate
    if found is None:
        return Check("certificate", "ok", "the router holds no certificate: nothing is promised")
    rungs = [rung for rung in found.ladder if rung.price is not None]
    if not rungs:
        return Check("certificate", "ok", "only the finest scale is certified, which loses nothing")
    prices = np.array([rung.price for rung in rungs], dtype=np.float64)
    losses = losses_at(router, fresh, prices, found.loss)
    delta = DELTA / len(rungs)  # any of them would be told
    broken = [
        (rung, float(seen.mean()))
        for rung, seen in zip(rungs, losses, strict=True)
        if exceeds(seen, rung.bound, delta, found.loss)
    ]
    if broken:
        rung, seen = broken[0]
        return Check(
            "certificate", "bad",
            f"the certificate of router {router.version} does not hold: {found.loss} of at most "
            f"{rung.bound:g} was promised, fresh audits show {seen:.4f}",
            seen, f"doctor --apply stops what rests on it; m3-train certify or {RETRAIN}",
        )  # fmt: skip
    seen = float(losses[-1].mean())
    return Check(
        "certificate", "ok",
        f"fresh audits do not contradict {found.loss} of at most {found.bounds} (the dearest: "
        f"{seen:.4f} seen)", seen,
    )  # fmt: skip


def losses_at(router: Router, fresh: OracleData, prices: Array, loss: Loss) -> Array:
    """Return (G, P) what each picture loses at each price, one look, in the order of the bets."""
    on = check_fits(router, fresh)
    values = np.asarray(router.predict_values(on.features), dtype=np.float64)
    costs = row_costs(on.visual_tokens, router.scales, router.policy.costs)
    units = betting_order(fresh.units)
    return picture_losses(values, on.scores, costs, units, prices, loss)[1:]


def exceeds(losses: Array, bound: float, delta: float, loss: Loss) -> bool:
    """Return whether losses (P,), in the order of the bets, show a mean above the bound; wrong with
    chance ``delta`` at most where it keeps the bound.

    The bets of certificates the other way round: that what is kept is less than promised.
    """
    span = 1.0 if loss == "harm" else 2.0  # a drop may be negative, and bets take no more than 1
    kept, level = (1.0 - losses) / span, (1.0 - bound) / span
    return bool(log_capital(kept, level, delta) >= -math.log(delta))
