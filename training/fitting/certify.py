"""Certifies a router on pictures that nothing in it has seen, and says what that is worth.

Questions without a reference count too: an answer that differs from the finest's is taken as lost,
which is no less than what is lost, so the bound holds for all of them. Knows oracle data, routers
and what a certificate must tell; the statistics are router.certificate's.
"""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from m3model.engine.recipe import model_of
from router.certificate.promise import Certificate, Rung, SliceBound
from router.certificate.proof import (
    Array,
    Loss,
    Method,
    betting_order,
    certified_member,
    mean_by_picture,
    picture_losses,
    price_family,
    question_losses,
    upper_bound,
)
from router.policy import choose_many, row_costs
from router.router import Router
from training.errors import MixedData, NotEnoughData, TrainingError
from training.figures.metrics import picked
from training.fitting.calibration_parts import MIN_PART_PICTURES, SEPARATE, certifying
from training.fitting.telling import check_telling
from training.oracle.data import OracleData, check_fits, scored_by
from training.progress import Progress, Steps, unseen

LADDER = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1)
POPULATION = (
    "the mean over pictures of the mean over a picture's questions: a picture drawn like the "
    "calibration pictures of these data ({sources}), then one of its questions; requests with one "
    "picture; every question decided at one price"
)


def certify(
    router: Router,
    data: OracleData,
    *,
    loss: Loss,
    bound: float,
    delta: float = 0.05,
    progress: Progress = unseen,
) -> Certificate:
    """Return the certificate of the router for ``bound`` and the usual bounds.

    Args:
        data: oracle data of the router's model; only the pictures of `certifying` are used.
        loss: "harm" (finest right, chosen wrong) or "drop" (finest score minus chosen score).
        bound: mean loss that must not be exceeded.
        delta: allowed probability that the promise for one bound is wrong.
        progress: called at every step.

    Raises:
        TrainingError: a bound or delta outside (0, 1), or a router that saw the pictures.
        MixedData: the router was made for another model, other features or scales.
        NotEnoughData: fewer than a handful of pictures.
        ScoresSayNothing: next to no answer is right, or no action differs from another.
    """
    for name, value in ((f"--max-{loss}", bound), ("--delta", delta)):
        if not 0.0 < value < 1.0:
            raise TrainingError(f"{name} must be between 0 and 1, got {value:g}")
    on = _questions(router, data)
    method: Method = "betting"
    if loss == "harm" and len(on) == on.n_pictures:
        method = "clopper_pearson"
    levels, kinds = sorted({*LADDER, bound}), sorted(set(on.groups.tolist()))
    steps = Steps(progress, 1 + len(levels) + len(kinds))
    steps.begin(f"{loss} at every price ({len(on)} questions)")
    costs = row_costs(on.visual_tokens, router.scales, router.policy.costs)
    values = np.asarray(router.predict_values(on.features), dtype=np.float64)
    family = price_family(most_costs(router))
    losses = picture_losses(values, on.scores, costs, betting_order(on.units), family, loss)
    rungs = []
    for level in levels:
        steps.begin(f"{loss} of at most {level:g}")
        member = certified_member(losses, level, delta, method)
        if member or level == bound:
            price = float(family[member - 1]) if member else None
            spent = float(picked(on.visual_tokens, _picks(values, costs, price)).mean())
            rungs.append(Rung(level, price, spent, float(losses[member].mean())))
    asked = next(rung for rung in rungs if rung.bound == bound)
    picks = _picks(values, costs, asked.price)
    slices = tuple(_slice(kind, on, picks, loss, bound, delta, steps) for kind in kinds)
    steps.finish()
    return Certificate(
        loss=loss,
        bound=bound,
        delta=delta,
        method=method,
        population=POPULATION.format(sources=", ".join(on.sources)),
        scored_by=scored_by(on),
        pictures=on.n_pictures,
        questions=len(on),
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        router_version=router.version,
        predictor_hash=router.predictor_hash,
        model_hash=on.model_hash,
        feature_schema=on.feature_schema,
        data_hash=on.data_hash,
        prices=tuple(family.tolist()),
        ladder=tuple(rungs),
        slices=slices,
        finest_right=_finest_right(on),
    )


def most_costs(router: Router) -> list[float]:
    """Return (A,) what each action costs at most: it depends on no question, so on no outcome.

    At the family's safe end the finest scale is then taken whatever a focus finds to read.
    """
    most = np.array([action.most_tokens for action in router.space.actions], dtype=np.float64)
    return row_costs(most, router.scales, router.policy.costs).tolist()


def _questions(router: Router, data: OracleData) -> OracleData:
    data = check_fits(router, data)
    fitted_for = router.metadata.get("model_hash")
    if fitted_for != data.model_hash:
        raise MixedData(
            f"the router was fitted for model {fitted_for}, these data are of {data.model_hash}: "
            "collect data with the router's model, or fit a router on these"
        )
    by, here = router.metadata.get("label_recipe"), data.label_recipe
    if by is not None and here is not None and model_of(by) != model_of(here):
        raise MixedData(
            f"the router was fitted on answers of recipe {by}, these data hold those of {here}: "
            "another tokenizer, chat template, preprocessing or generation config"
        )
    if router.metadata.get("calibrated_on") != SEPARATE:
        raise TrainingError(
            "this router's probabilities were fitted on the pictures that would certify it; fit "
            f"it again (with at least {MIN_PART_PICTURES} pictures in each calibration part)"
        )
    on = certifying(data)
    if on.n_pictures < MIN_PART_PICTURES:
        raise NotEnoughData(
            f"only {on.n_pictures} of {data.n_pictures} pictures can certify (two thirds of the "
            "calibration split); collect some thousand pictures for a bound of 1 %"
        )
    check_telling(on)
    return on


def _finest_right(on: OracleData) -> float:
    """Return how often the finest is right, as far as references tell; without one it agrees."""
    right, known = on.right[:, -1], on.has_reference
    return float((right[known] if known.any() else right).mean())


def _picks(values: Array, costs: Array, price: float | None) -> np.ndarray:
    if price is None:
        return np.full(len(values), values.shape[1] - 1, dtype=np.intp)
    return choose_many(values, costs, price)


def _slice(
    kind: str, on: OracleData, picks: np.ndarray, loss: Loss, bound: float, delta: float,
    steps: Steps,
) -> SliceBound:  # fmt: skip
    """Return what is known of one kind of question by itself, at the certified price."""
    steps.begin(f"{kind} by itself")
    part, chosen = on.take(on.groups == kind), picks[on.groups == kind]
    # From the finest down, each tested at the full delta until one fails: as in the family.
    floors = on.scales[::-1]
    units = betting_order(part.units)
    raised = [
        mean_by_picture(question_losses(part.scores, _raised(part, chosen, floor), loss), units)
        for floor in floors
    ]
    member = certified_member(np.stack(raised), bound, delta)
    return SliceBound(
        name=kind,
        pictures=part.n_pictures,
        questions=len(part),
        loss=float(raised[-1].mean()),
        upper=upper_bound(raised[-1], delta),
        floor=floors[member],
        finest_right=_finest_right(part),
    )


def _raised(part: OracleData, chosen: np.ndarray, floor: int) -> np.ndarray:
    """Return (n,) the actions chosen, or the scale ``floor`` where they read fewer tokens."""
    at = part.space.index(str(floor))
    return np.where(picked(part.visual_tokens, chosen) < floor, at, chosen)
