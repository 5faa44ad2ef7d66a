"""Fits a router on oracle data: predictor, calibration and price, test pictures untouched.

Knows oracle data and routers; does not know how the data came about or where the router goes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from router.policy import CalibratedPrice, calibrate_price, frontier, token_costs
from router.predictor.calibration import fit_calibration
from router.predictor.chain import ComplexityPredictor
from router.router import Router
from router.second_look import SecondLook
from training.errors import NotEnoughData, TrainingError
from training.figures.metrics import Array, brier, calibration_error
from training.fitting.calibration_parts import calibration_parts
from training.fitting.second_look import fit_gates, price_second_look
from training.oracle.data import OracleData

Cost = Literal["tokens", "flops"]
MIN_TRAIN_PICTURES, MIN_TRAIN_QUESTIONS, MIN_CALIBRATION_PICTURES = 10, 30, 4
GOOD_PICTURES = 500  # below this the router is noticeably worse (label-efficiency study)


@dataclass(frozen=True)
class FitResult:
    """A router and what is known about it from the calibration pictures."""

    router: Router
    metrics: dict[str, Any]
    advice: list[str]


def fit(
    data: OracleData,
    *,
    target: float = 0.995,
    cost: Cost = "tokens",
    labels: Labels = "auto",
    second_look: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> FitResult:
    """Return a router fitted on the data.

    Args:
        data: all splits; the test pictures are not touched.
        target: share of the finest scale's accuracy that the price keeps on calibration pictures.
        cost: what a scale costs: its visual tokens, or the model's operations for a request.
        labels: what the predictor learns, see ``training.evaluation.baselines.labels_of``.
        second_look: also fit when to look finer after an answer, for the same target.
        say: called with each step's name.

    Raises:
        NotEnoughData: too few training or calibration pictures; says how many are needed.
        TrainingError: an impossible target, or a second look at the price of operations.
    """
    if not 0.0 < target <= 1.0:
        raise TrainingError(f"--target must be above 0 and at most 1, got {target:g}")
    if second_look and cost == "flops":
        # These operations hold the encode, which a second look does not pay again.
        raise TrainingError("--second-look is priced in visual tokens: leave out --cost flops")
    train, calibration = data.split("train"), data.split("calibration")
    _check_size(data, train, calibration)
    fitting, calibration, rule = calibration_parts(data)
    costs, unit = costs_of(data, cost)
    say(f"predictor ({len(train)} questions)")
    predictor = fit_predictor((train.features, fitting.features), train, fitting, labels)
    say(f"price ({len(calibration)} questions)")
    values = np.asarray(predictor.predict_proba(calibration.features), float)
    pictures = calibration.picture_ids.tolist()
    price = calibrate_price(values, calibration.scores, costs, pictures, target=target)
    metrics = _metrics(data, train, calibration, values, price, costs)
    metadata = {
        "created_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "model_hash": data.model_hash,
        "data_hash": data.data_hash,
        "sources": list(data.sources),
        "target": target,
        "labels": labels,
        "calibrated_on": rule,
        **metrics,
    }
    policy, advice = price.policy(costs, unit), []
    look = None
    if second_look:
        say("second look")
        look, found = second_look_of(predictor, fitting, calibration, price, costs, target)
        metadata["second_look"] = found
        if look is None:
            advice.append("no second look costs less than the single one here: none is stored")
    router = Router(predictor, data.schema, policy, metadata=metadata, second_look=look)
    router = Router(
        predictor, data.schema, policy, metadata=metadata, card_text=card(router), second_look=look
    )
    if data.n_pictures < GOOD_PICTURES:
        advice.append(
            f"{data.n_pictures} pictures are few: expect a clearly better router from "
            f"{GOOD_PICTURES} on"
        )
    if not price.feasible:
        advice.append(
            f"no price kept {target:.1%} of the finest accuracy on the calibration pictures: this "
            "router always takes the finest scale; give more data or a lower --target"
        )
    return FitResult(router, metrics, advice)


def second_look_of(
    predictor: ComplexityPredictor,
    fitting: OracleData,
    pricing: OracleData,
    single: CalibratedPrice,
    costs: tuple[float, ...],
    target: float,
) -> tuple[SecondLook | None, dict[str, Any]]:
    """Return a second look that costs less than the single one, or None, and how they compare."""
    values = [
        np.asarray(predictor.predict_proba(part.features), float) for part in (fitting, pricing)
    ]
    gates = fit_gates(values[0], fitting.scores, fitting.confidence, pricing.scales)
    priced = price_second_look(
        gates, values[1], pricing.scores, pricing.confidence, pricing.pictures, costs,
        target=target,
    )  # fmt: skip
    worth = priced.feasible and priced.cost < single.cost
    facts = {**priced.facts(), "target": target, "single_look_cost": single.cost, "kept": worth}
    return replace(priced.look, facts=facts) if worth else None, facts


def costs_of(data: OracleData, cost: Cost) -> tuple[tuple[float, ...], str]:
    """Return the cost of each scale relative to the finest, and the unit's name."""
    if cost == "tokens":
        return token_costs(data.scales), "visual tokens, finest = 1"
    if data.flops is None:
        raise TrainingError(
            "these oracle data do not hold the model's operations; use --cost tokens"
        )
    return tuple((data.flops / data.flops[-1]).tolist()), "operations of a request, finest = 1"


def _check_size(data: OracleData, train: OracleData, calibration: OracleData) -> None:
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


def _metrics(
    data: OracleData,
    train: OracleData,
    calibration: OracleData,
    values: Array,
    price: CalibratedPrice,
    costs: tuple[float, ...],
) -> dict[str, Any]:
    line = frontier(values, calibration.scores, costs, scales=data.scales)
    at = int(np.abs(line.price - price.price).argmin())
    tokens = float(line.visual_tokens[at]) if price.feasible else float(data.scales[-1])
    return {
        "counts": {
            "train": {"pictures": train.n_pictures, "questions": len(train)},
            "calibration": {"pictures": calibration.n_pictures, "questions": len(calibration)},
        },
        "on_calibration": {
            "finest_accuracy": price.finest_accuracy,
            "accuracy": price.accuracy,
            "cost": price.cost,
            "visual_tokens": tokens,
            "price_feasible": price.feasible,
            "per_scale": [
                {
                    "scale": scale,
                    "accuracy": float(calibration.scores[:, k].mean()),
                    "ece": calibration_error(values[:, k], calibration.scores[:, k]),
                    "brier": brier(values[:, k], calibration.scores[:, k]),
                }
                for k, scale in enumerate(data.scales)
            ],
        },
    }


def card(router: Router) -> str:
    """Return the router's README: what it is, what it was fitted on, how it did, how to use it."""
    facts, here = router.metadata, router.metadata["on_calibration"]
    counts = facts["counts"]
    priced = counts["calibration"]
    rows = "\n".join(
        f"| {row['scale']} | {cost:.4f} | {row['accuracy']:.3f} | {row['ece']:.3f} |"
        for row, cost in zip(here["per_scale"], router.policy.costs, strict=True)
    )
    return f"""---
library_name: m3-router
tags: [m3-router, lightgbm, adaptive-visual-tokens]
---
# A visual-token router

Chooses how many visual tokens a question about a picture gets ({
        "/".join(map(str, router.scales))
    }), from {len(router.schema.names)} features of the one encode. One LightGBM booster
per scale predicts whether that scale answers rightly; the choice is argmax of that minus price ×
cost.

- Fitted on {counts["train"]["questions"]} questions about {counts["train"]["pictures"]} pictures
  ({", ".join(facts["sources"])}); probabilities calibrated on {facts["calibrated_on"]}, priced
  on {priced["questions"]} questions about {priced["pictures"]} of them. Test pictures were not
  touched: `m3-train evaluate`.
- Model `{facts["model_hash"]}`, feature schema `{router.schema.hash}`, data `{facts["data_hash"]}`,
  {facts["created_utc"]}. It is only valid for this model.
- Price {router.price:.5g} (cost: {router.policy.cost_unit}), chosen to keep {facts["target"]:.1%}
  of the finest scale's accuracy: {here["accuracy"]:.3f} of {here["finest_accuracy"]:.3f} at
  {here["visual_tokens"]:.1f} of {router.scales[-1]} visual tokens on the calibration pictures
  (optimistic, because chosen there).
- Second look: {_second_look_words(router)}.

| scale | cost | accuracy (calibration) | calibration error |
| --- | --- | --- | --- |
{rows}

```python
from router import Router
decision = Router.from_pretrained("this/folder").route(features)
```
"""


def _second_look_words(router: Router) -> str:
    if router.second_look is None:
        return "none"
    facts = router.second_look.facts
    return (
        f"starts at price {router.second_look.start_price:.5g}, escalates at price\n  "
        f"{router.second_look.price:.5g}: accuracy {facts['accuracy']:.3f} at cost "
        f"{facts['cost']:.4f}, both looks\n  counted, where the single look costs "
        f"{facts['single_look_cost']:.4f} (also optimistic)"
    )


Labels = Literal["auto", "soft", "hard"]


def labels_of(data: OracleData, kind: Labels = "auto") -> Array:
    """Return the (n, K) targets a predictor learns, in [0, 1].

    ``soft`` is P(reference answer), ``hard`` the score. ``auto`` takes the soft label where the
    question has a reference; without one the likelihood is that of the finest answer, which says
    little about being right, so the score (agreement) is taken.
    """
    if kind == "hard":
        return np.clip(data.scores, 0.0, 1.0)
    soft = np.clip(data.soft, 0.0, 1.0)
    if kind == "soft":
        return soft
    return np.where(data.has_reference[:, None], soft, np.clip(data.scores, 0.0, 1.0))


def fit_predictor(
    features: tuple[NDArray[np.float32], NDArray[np.float32]],
    train: OracleData,
    calibration: OracleData,
    labels: Labels = "auto",
) -> ComplexityPredictor:
    """Return a predictor fitted on the training questions, calibrated to the calibration scores.

    The likelihood of an answer is smoother to learn than whether greedy decoding hits it, but lower
    than its probability of being right: so the raw score is mapped to scores it was not fitted on.

    Args:
        features: (n, F) of the training and (m, F) of the calibration questions.
    """
    predictor = ComplexityPredictor(
        calibration="none", chained=True, learning_rate=0.15, n_estimators=200
    )
    predictor.fit(features[0], labels_of(train, labels), groups=train.picture_ids)
    raw = predictor.raw_scores(features[1])
    predictor.calibrations_ = [
        before if before.kind == "constant" else fit_calibration("platt", raw[:, k], scores)
        for k, (before, scores) in enumerate(
            zip(predictor.calibrations_, calibration.scores.T, strict=True)
        )
    ]
    return predictor
