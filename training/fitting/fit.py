"""Fits a router on oracle data: predictor, calibration and price, test pictures untouched.

Knows oracle data and routers; does not know how the data came about or where the router goes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from router.policy import CalibratedPrice, calibrate_price, choose_many, row_costs, token_costs
from router.predictor.chain import ComplexityPredictor
from router.router import Router
from router.second_look import SecondLook
from training.errors import NotEnoughData, TrainingError
from training.figures.metrics import Array, brier, calibration_error, picked
from training.fitting.calibration_parts import MIN_PART_PICTURES, SHARED, calibration_parts
from training.fitting.card import fitted_card
from training.fitting.predictor import Grow, Labels, fit_predictor
from training.fitting.references import left_out, of_one_kind, speaking
from training.fitting.second_look import STARTS, fit_gates, other_half_gates, price_second_look
from training.fitting.telling import check_telling, warnings
from training.oracle.columns.names import numbered
from training.oracle.data import OracleData
from training.progress import Progress, Steps, unseen

Cost = Literal["tokens", "flops"]
OPERATIONS = "operations of a request, finest = 1"  # the unit of costs in FLOPs
MIN_TRAIN_PICTURES, MIN_TRAIN_QUESTIONS, MIN_CALIBRATION_PICTURES = 10, 30, 4
GOOD_PICTURES = 500  # below this the router is noticeably worse (label-efficiency study)
LESSER = (0.995, 0.99, 0.98, 0.95)  # shares that one look keeps where only two keep the target
# Audits that price alone. At one question a picture and 4 % of answers that differ from the
# finest's, half a standard error, which a price must keep, is then one point of accuracy.
PRICING_AUDITS = 100


@dataclass(frozen=True)
class FitResult:
    """A router and what is known about it from the calibration pictures."""

    router: Router
    metrics: dict[str, Any]
    advice: list[str]


@dataclass(frozen=True)
class Parts:
    """Which questions serve for what, and what a scale costs; the test pictures serve nothing.

    Those that fit probabilities all have a reference or all have none, and so have those that
    price. What other numbers of tokens cost lies on the line between the scales.
    """

    data: OracleData  # all splits, for what is said about them
    train: OracleData
    fitting: OracleData  # calibration pictures that fit probabilities
    pricing: OracleData  # calibration pictures that choose prices
    rule: str  # how those two were told apart
    costs: tuple[float, ...]  # (K,) of the uniform scales
    unit: str
    audits: int | None = None  # audited pictures that can price; None: not told from the others
    apart: str | None = None  # which calibration questions do not price, in words

    def costs_of(self, part: OracleData) -> Array:
        """Return (n, A) what each action costs the questions of a part."""
        return row_costs(part.visual_tokens, part.scales, self.costs)


@dataclass(frozen=True)
class Priced:
    """What the price was chosen from, the price, and the second look where one was asked for."""

    values: Array  # (n, A) predicted on the pricing questions
    price: CalibratedPrice
    look: SecondLook | None  # None also where it costs no less than the single look
    look_facts: dict[str, Any] | None  # None where none was asked for


def fit(
    data: OracleData,
    *,
    target: float = 0.995,
    cost: Cost = "tokens",
    labels: Labels = "auto",
    second_look: bool = False,
    audits: OracleData | None = None,
    progress: Progress = unseen,
    grow: Grow | None = None,
) -> FitResult:
    """Return a router fitted on the data.

    Args:
        data: all splits; the test pictures are not touched.
        target: share of the finest scale's accuracy that the price keeps on calibration pictures.
        cost: what a scale costs: its visual tokens, or the model's operations for a request.
        labels: what the predictor learns, see ``training.fitting.predictor.labels_of``.
        second_look: also fit when to look finer after an answer, for the same target.
        audits: those of the data that are a sample of the traffic. They alone choose the price
            where there are `PRICING_AUDITS` for it; advice says where there are not.
        progress: called at every step.
        grow: fits the boosters elsewhere, see `fit_predictor`.

    Raises:
        NotEnoughData: too few training or calibration pictures; says how many are needed.
        ScoresSayNothing: next to no answer is right, or no action differs from another.
        TrainingError: an impossible target, or a second look at the price of operations.
    """
    check_wishes(target, cost, second_look)
    parts = parts_of(data, cost, audits)
    check_telling(parts.train)
    steps = Steps(progress, steps_of(len(data.space), second_look) + 1)
    predictor, priced = learnt(parts, target, labels, second_look, steps, grow)
    steps.begin("figures and card")
    metrics = _metrics(parts, priced)
    facts = _facts(parts, target, labels, metrics, priced)
    router = _router(predictor, parts, priced, facts)
    steps.finish()
    return FitResult(router, metrics, _advice(parts, target, priced))


def check_wishes(target: float, cost: Cost, second_look: bool) -> None:
    """Refuse what cannot be fitted, whatever the data.

    Raises:
        TrainingError: an impossible target, or a second look at the price of operations.
    """
    if not 0.0 < target <= 1.0:
        raise TrainingError(f"--target must be above 0 and at most 1, got {target:g}")
    if second_look and cost == "flops":
        # These operations hold the encode, which a second look does not pay again.
        raise TrainingError("--second-look is priced in visual tokens: leave out --cost flops")


def parts_of(data: OracleData, cost: Cost, audits: OracleData | None = None) -> Parts:
    """Return the parts of the data that fit a router; ``audits`` as in `fit`.

    Raises:
        NotEnoughData: too few training or calibration pictures.
        TrainingError: costs that the data do not hold.
    """
    train, calibration = data.split("train"), data.split("calibration")
    enough = (
        train.n_pictures >= MIN_TRAIN_PICTURES
        and len(train) >= MIN_TRAIN_QUESTIONS
        and calibration.n_pictures >= MIN_CALIBRATION_PICTURES
    )
    if not enough:
        raise NotEnoughData(
            f"too little data: {data.n_pictures} pictures give {train.n_pictures} to train on with "
            f"{len(train)} questions and {calibration.n_pictures} for calibration; at least "
            f"{MIN_TRAIN_PICTURES} with {MIN_TRAIN_QUESTIONS} questions and "
            f"{MIN_CALIBRATION_PICTURES} are needed (about {4 * MIN_TRAIN_PICTURES} pictures in "
            f"all, better {GOOD_PICTURES})"
        )
    fitting, calibrating, rule = calibration_parts(data)
    referenced = speaking(train, fitting)
    pricing, found = _pricing(calibrating, referenced, audits)
    return Parts(
        data, train, of_one_kind(fitting, referenced), pricing, rule, *costs_of(data, cost), found,
        left_out(calibrating, of_one_kind(calibrating, pricing.one_kind)),
    )  # fmt: skip


def _pricing(
    calibrating: OracleData, referenced: bool | None, audits: OracleData | None
) -> tuple[OracleData, int | None]:
    """Return the questions that choose prices, all with a reference or all without, and how many
    audited pictures could do so; None where audits are not told from the others."""
    everyone = of_one_kind(calibrating, referenced)
    if audits is None:
        return everyone, None
    known = np.isin(numbered(calibrating.units)[0], numbered(audits.units)[0])
    ours = calibrating.take(known[calibrating.pictures])
    kinds = [ours.take(ours.has_reference), ours.take(~ours.has_reference)]
    enough = [kind for kind in kinds if kind.n_pictures >= PRICING_AUDITS]
    found = enough[0] if enough else max(kinds, key=lambda kind: kind.n_pictures)
    return (found if enough else everyone), found.n_pictures


def costs_of(data: OracleData, cost: Cost) -> tuple[tuple[float, ...], str]:
    """Return the cost of each scale relative to the finest, and the unit's name."""
    if cost == "tokens":
        return token_costs(data.scales), "visual tokens, finest = 1"
    if data.flops is None:
        raise TrainingError(
            "these oracle data do not hold the model's operations; use --cost tokens"
        )
    return tuple((data.flops / data.flops[-1]).tolist()), OPERATIONS


def steps_of(n_actions: int, second_look: bool) -> int:
    """Return how many steps `learnt` takes."""
    return n_actions + 1 + second_look * STARTS


def learnt(
    parts: Parts, target: float, labels: Labels, second_look: bool, steps: Steps,
    grow: Grow | None = None,
) -> tuple[ComplexityPredictor, Priced]:  # fmt: skip
    """Return the predictor and the prices that these parts teach; `steps_of` are taken."""
    predictor = _predictor(parts, labels, steps, grow)
    return predictor, _priced(predictor, parts, target, second_look, steps)


def _predictor(
    parts: Parts, labels: Labels, steps: Steps, grow: Grow | None
) -> ComplexityPredictor:
    train, fitting = parts.train, parts.fitting
    asked = f"predictor ({len(train)} questions)"
    return fit_predictor(
        (train.features, fitting.features), train, fitting, labels,
        progress=lambda done, total, now: steps.begin(f"{asked}: {now}"), grow=grow,
    )  # fmt: skip


def _priced(
    predictor: ComplexityPredictor, parts: Parts, target: float, second_look: bool, steps: Steps
) -> Priced:
    pricing = parts.pricing
    steps.begin(f"price ({len(pricing)} questions)")
    values = np.asarray(predictor.predict_proba(pricing.features), float)
    pictures, costs = pricing.pictures, parts.costs_of(pricing)
    price = calibrate_price(values, pricing.scores, costs, pictures, target=target)
    if not second_look:
        return Priced(values, price, None, None)
    look, facts = _second_look(predictor, parts, values, price, target, steps)
    if look is None or price.feasible:
        return Priced(values, price, look, facts)
    # Who is asked once (several answers, no second look wanted, load) shall not pay the finest.
    for share in (share for share in LESSER if share < target):
        lesser = calibrate_price(values, pricing.scores, costs, pictures, target=share)
        if lesser.feasible:
            facts = {**facts, "single_look_target": share, "single_look_cost": lesser.cost}
            return Priced(values, lesser, replace(look, facts=facts), facts)
    return Priced(values, price, look, facts)


def _second_look(
    predictor: ComplexityPredictor,
    parts: Parts,
    values: Array,
    single: CalibratedPrice,
    target: float,
    steps: Steps,
) -> tuple[SecondLook | None, dict[str, Any]]:
    """Return a second look that costs less than the single one, or None, and how they compare."""
    fitting, pricing = parts.fitting, parts.pricing
    before = np.asarray(predictor.predict_proba(fitting.features), float)
    names = pricing.space.names
    gates = fit_gates(before, fitting.scores, fitting.confidence, names)
    halves = []
    if parts.rule == SHARED:  # the same rows: none is priced by gates that it fitted
        halves = other_half_gates(
            values, pricing.scores, pricing.confidence, pricing.pictures, names
        )
    priced = price_second_look(
        gates, values, pricing.scores, pricing.confidence, pricing.pictures,
        parts.costs_of(pricing), target=target, steps=steps, halves=halves,
    )  # fmt: skip
    worth = priced.feasible and priced.cost < single.cost
    facts = {**priced.facts(), "target": target, "single_look_cost": single.cost, "kept": worth}
    return replace(priced.look, facts=facts) if worth else None, facts


def _metrics(parts: Parts, priced: Priced) -> dict[str, Any]:
    train, pricing = parts.train, parts.pricing
    values, price, costs = priced.values, priced.price, parts.costs_of(pricing)
    picks = choose_many(values, costs, price.price)
    if not price.feasible:
        picks = np.full(len(pricing), len(pricing.space) - 1)
    return {
        "counts": {
            "train": {"pictures": train.n_pictures, "questions": len(train)},
            "calibration": {"pictures": pricing.n_pictures, "questions": len(pricing)},
        },
        "on_calibration": {
            "finest_accuracy": price.finest_accuracy,
            "accuracy": price.accuracy,
            "cost": price.cost,
            "visual_tokens": float(picked(pricing.visual_tokens, picks).mean()),
            "price_feasible": price.feasible,
            "per_scale": [
                {
                    "scale": action.key,
                    "visual_tokens": float(pricing.visual_tokens[:, k].mean()),
                    "cost": float(costs[:, k].mean()),
                    "accuracy": float(pricing.scores[:, k].mean()),
                    "ece": calibration_error(values[:, k], pricing.scores[:, k]),
                    "brier": brier(values[:, k], pricing.scores[:, k]),
                }
                for k, action in enumerate(pricing.space.actions)
            ],
        },
    }


def _facts(
    parts: Parts, target: float, labels: Labels, metrics: dict[str, Any], priced: Priced
) -> dict[str, Any]:
    """Return what the router keeps about itself in its config.json."""
    look, recipe = priced.look_facts, parts.data.label_recipe
    return {
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "model_hash": parts.data.model_hash,
        **({} if recipe is None else {"label_recipe": recipe}),
        "data_hash": parts.data.data_hash,
        "sources": list(parts.data.sources),
        "target": target,
        "labels": labels,
        "calibrated_on": parts.rule,
        "scripts": list(parts.data.scripts),
        **({"priced_on_audits": parts.audits} if _audits_price(parts) else {}),
        **({} if parts.apart is None else {"priced_apart": parts.apart}),
        **metrics,
        **({} if look is None else {"second_look": look}),
    }


def _router(
    predictor: ComplexityPredictor, parts: Parts, priced: Priced, facts: dict[str, Any]
) -> Router:
    router = Router(
        predictor, parts.data.schema, priced.price.policy(parts.costs, parts.unit),
        metadata=facts, second_look=priced.look, space=parts.data.space,
    )  # fmt: skip
    router.card_text = fitted_card(router)
    return router


def _audits_price(parts: Parts) -> bool:
    return parts.audits is not None and parts.audits >= PRICING_AUDITS


def _advice(parts: Parts, target: float, priced: Priced) -> list[str]:
    pictures, advice = parts.data.n_pictures, warnings(parts.train)
    if parts.audits is not None and parts.audits < min(PRICING_AUDITS, parts.pricing.n_pictures):
        advice.append(
            f"only {parts.audits} audited pictures can choose the price (they do alone from "
            f"{PRICING_AUDITS} on): it was chosen on all {parts.pricing.n_pictures} of these data"
        )
    if parts.apart is not None:
        advice.append(f"price: {parts.apart}")
    if parts.rule == SHARED:
        advice.append(
            f"the same {parts.pricing.n_pictures} calibration pictures fit probabilities and "
            f"choose the price (below {MIN_PART_PICTURES} in a part), which flatters both; such a "
            "router cannot be certified"
        )
    if priced.look is None and priced.look_facts is not None:
        advice.append("no second look costs less than the single one here: none is stored")
    if pictures < GOOD_PICTURES:
        advice.append(
            f"{pictures} pictures are few: expect a clearly better router from {GOOD_PICTURES} on"
        )
    lesser = (priced.look_facts or {}).get("single_look_target")
    if lesser is not None:
        advice.append(
            f"only two looks kept {target:.1%} of the finest accuracy on the calibration pictures: "
            f"one look alone is priced for {lesser:.1%}"
        )
    if not priced.price.feasible:
        advice.append(
            f"no price kept {target:.1%} of the finest accuracy on the calibration pictures: this "
            "router always takes the finest scale; give more data or a lower --target"
        )
    return advice
