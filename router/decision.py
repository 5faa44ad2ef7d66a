"""What was decided for one request and why, and which of a caller's wishes bind the decision.

Knows scales, caps and words; knows nothing of features, LightGBM or HTTP. Everything here is pure.
Precedence: routing.scale > model id m3-<scale> > image detail > cap and policy. A pin that does
not fit the cap is refused, never clamped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from router.errors import BudgetTooSmall, NotCertified, UnknownDetail, UnknownScale
from router.explanation import Explanation
from router.second_look import OpenLook


class Reason(StrEnum):
    """Why a request got its scale."""

    predicted = "predicted"
    """The policy chose freely."""
    pinned = "pinned"
    """The caller named the scale (``routing.scale`` or the model id)."""
    detail = "detail"
    """The caller's image detail names it."""
    budget_cap = "budget_cap"
    """The policy wanted another scale; the cap on visual tokens did not allow it."""
    no_image = "no_image"
    """The request carries no picture: scale 0, no visual tokens."""
    degraded = "degraded"
    """The service was overloaded: the raised price took another scale, or no second look."""
    fallback = "fallback"
    """Routing failed: the finest scale that the caller's constraints allow."""


@dataclass(frozen=True)
class Constraints:
    """What binds one request's decision.

    Attributes:
        pinned: the scale the caller fixed, or None when the policy chooses.
        max_visual_tokens: cap on the visual tokens of the whole request (all pictures), or None.
        reason: ``pinned`` or ``detail`` with a pin, ``no_image`` without a picture, else
            ``predicted``.
        explain: whether the decision should carry its explanation, which takes milliseconds.
        max_harm: bound on the share of right answers lost against the finest scale, or None.
        second_look: whether the answer's confidence may later ask for a finer scale.
        price_floor: least price the policy decides at, without a second look; 0: its own price.
    """

    pinned: int | None = None
    max_visual_tokens: int | None = None
    reason: Reason = Reason.predicted
    explain: bool = False
    max_harm: float | None = None
    second_look: bool = False
    price_floor: float = 0.0

    def __post_init__(self) -> None:
        if self.pinned is not None and self.reason is Reason.predicted:
            object.__setattr__(self, "reason", Reason.pinned)


@dataclass(frozen=True)
class AppliedBound:
    """The bound on harm under which a request was decided.

    Attributes:
        max_harm: the certified bound, at most the one asked for; 0 where the finest was taken.
        delta: probability that the certificate is wrong about it.
        price: at which was decided; None where the finest was taken whatever it costs.
    """

    max_harm: float
    delta: float
    price: float | None


NOTHING_LOST = AppliedBound(0.0, 0.0, None)


@dataclass(frozen=True)
class RoutingDecision:
    """The scale of one request, and what it rests on.

    Attributes:
        scale: visual tokens per picture (0 without a picture).
        visual_tokens: visual tokens of the whole request: pictures x scale.
        reason: why.
        p_suffices: scale -> calibrated P(scale suffices), the mean over pictures; None where
            nothing was predicted (pinned without features, no picture, fallback).
        values: scale -> the quality that the policy weighs against cost; None as above.
        price: quality that one unit of cost had to buy (the router's dial); None without a router.
        router_version: short content hash of the router; "" without a router.
        latency_ms: wall time of the decision itself, features not counted.
        certified: the bound it was decided under; None where none was asked for.
        explanation: why, where that was asked for and something was predicted.
        open_look: decides after the answer whether to look finer; None where nothing may follow.
    """

    scale: int
    visual_tokens: int
    reason: Reason
    p_suffices: dict[int, float] | None = None
    values: dict[int, float] | None = None
    price: float | None = None
    router_version: str = ""
    latency_ms: float = 0.0
    certified: AppliedBound | None = None
    explanation: Explanation | None = None
    open_look: OpenLook | None = None


def default_detail_map(scales: Sequence[int]) -> dict[str, int]:
    """Return the scale of each image detail: low 9, high 144, original the finest.

    A checkpoint without 9 takes its coarsest for low; without 144 its second finest for high.
    """
    coarsest, finest = scales[0], scales[-1]
    second_finest = scales[-2] if len(scales) > 1 else finest
    return {
        "low": 9 if 9 in scales else coarsest,
        "high": 144 if 144 in scales else second_finest,
        "original": finest,
    }


def resolve_constraints(
    *,
    scales: Sequence[int],
    model_scale: int | None = None,
    detail: str | None = None,
    routing_scale: int | None = None,
    max_visual_tokens: int | None = None,
    n_pictures: int = 1,
    detail_map: Mapping[str, int] | None = None,
    explain: bool = False,
    max_harm: float | None = None,
) -> Constraints:
    """Return the one set of constraints that a request's wishes add up to.

    Of several pins the highest in the precedence wins; the others must still be valid, because
    a wish is honoured or refused, never ignored.

    Args:
        scales: the checkpoint's scales, ascending.
        model_scale: the scale in a pinned model id (m3-144), None for m3-auto.
        detail: low, high, original, or auto / None (the policy chooses).
        routing_scale: ``routing.scale`` of the request.
        max_visual_tokens: cap on the visual tokens of all pictures together.
        n_pictures: pictures in the request.
        detail_map: scale of each detail where it differs from `default_detail_map`.
        explain: passed on.
        max_harm: bound on lost answers; whether it can be kept is for the router to say.

    Raises:
        UnknownScale: a named scale is not in ``scales``.
        UnknownDetail: ``detail`` is not a known word.
        BudgetTooSmall: the pinned scale, or the coarsest one, does not fit the cap.
        NotCertified: ``max_harm`` with a pin below the finest scale, or with several pictures.
    """
    details = {**default_detail_map(scales), **(detail_map or {})}
    for scale in (routing_scale, model_scale, *details.values()):
        # bool is an int in Python, and True == 1 would pass for the scale of one token.
        if scale is not None and (isinstance(scale, bool) or scale not in scales):
            raise UnknownScale(scale, scales)
    if detail not in (None, "auto") and detail not in details:
        raise UnknownDetail(detail, sorted(details))

    pinned, reason = None, Reason.predicted
    if routing_scale is not None:
        pinned, reason = routing_scale, Reason.pinned
    elif model_scale is not None:
        pinned, reason = model_scale, Reason.pinned
    elif detail is not None and detail != "auto":
        pinned, reason = details[detail], Reason.detail

    if pinned is not None:
        pinned_fits(pinned, max_visual_tokens, n_pictures)
    else:
        affordable(scales, max_visual_tokens, n_pictures)
    if n_pictures == 0:
        pinned, reason = None, Reason.no_image
    if max_harm is not None and pinned != scales[-1]:
        if pinned is not None:
            raise NotCertified(
                f"max_harm={max_harm:g} cannot be kept at the pinned scale {pinned}; leave out one "
                f"of the two, or pin {scales[-1]}",
                "not_certified",
            )
        if n_pictures > 1:
            raise NotCertified(
                f"max_harm is certified for requests with one picture, this one has {n_pictures}; "
                f"leave it out, or pin the finest scale {scales[-1]}",
                "not_certified",
            )
    return Constraints(pinned, max_visual_tokens, reason, explain, max_harm)


def affordable(scales: Sequence[int], max_visual_tokens: int | None, n_pictures: int) -> list[bool]:
    """Return for each scale whether it fits the cap with every picture of the request at it.

    Raises:
        BudgetTooSmall: none fits.
    """
    if max_visual_tokens is None:
        return [True] * len(scales)
    fits = [scale * n_pictures <= max_visual_tokens for scale in scales]
    if not any(fits):
        what = f"{_pictures(n_pictures)} at the coarsest scale {scales[0]}"
        raise BudgetTooSmall(max_visual_tokens, scales[0] * n_pictures, what)
    return fits


def pinned_fits(scale: int, max_visual_tokens: int | None, n_pictures: int) -> None:
    """Return nothing if the pinned scale keeps the cap.

    Raises:
        BudgetTooSmall: it does not.
    """
    if max_visual_tokens is not None and scale * n_pictures > max_visual_tokens:
        what = f"{_pictures(n_pictures)} at the pinned scale {scale}"
        raise BudgetTooSmall(max_visual_tokens, scale * n_pictures, what)


def within_bound(
    decision: RoutingDecision, constraints: Constraints, scales: Sequence[int]
) -> RoutingDecision:
    """Return the decision, marked with the bound it keeps where the request asked for one.

    The finest scale, and a request without a picture, keep every bound by themselves.

    Raises:
        NotCertified: nothing shows that the bound is kept.
    """
    if constraints.max_harm is None or decision.certified is not None:
        return decision
    if decision.scale not in (0, scales[-1]):
        raise NotCertified(
            f"max_harm={constraints.max_harm:g} needs the finest scale {scales[-1]} here, which "
            "the other wishes do not allow; raise max_visual_tokens or leave out max_harm",
            "not_certified",
        )
    return replace(decision, certified=NOTHING_LOST)


def pinned_decision(
    scale: int, reason: Reason, *, n_pictures: int = 1, router_version: str = ""
) -> RoutingDecision:
    """Return the decision for a scale that the caller fixed; needs no router and no features."""
    return RoutingDecision(
        scale=scale,
        visual_tokens=scale * n_pictures,
        reason=reason,
        router_version=router_version,
    )


def no_image_decision(router_version: str = "") -> RoutingDecision:
    """Return the decision for a request without a picture."""
    return pinned_decision(0, Reason.no_image, n_pictures=0, router_version=router_version)


def finest_fallback(
    scales: Sequence[int],
    constraints: Constraints | None = None,
    *,
    n_pictures: int = 1,
    router_version: str = "",
    latency_ms: float = 0.0,
) -> RoutingDecision:
    """Return the finest scale the constraints allow, for a request whose routing failed.

    A dead router must cost tokens, not answers. A pin is still kept.

    Raises:
        BudgetTooSmall: not even the coarsest scale fits the cap.
    """
    limits = constraints or Constraints()
    if limits.pinned is None:
        fits = affordable(scales, limits.max_visual_tokens, n_pictures)
        scale = max(scale for scale, ok in zip(scales, fits, strict=True) if ok)
    else:
        pinned_fits(limits.pinned, limits.max_visual_tokens, n_pictures)
        scale = limits.pinned
    return RoutingDecision(
        scale=scale,
        visual_tokens=scale * n_pictures,
        reason=Reason.fallback,
        router_version=router_version,
        latency_ms=latency_ms,
    )


def _pictures(n_pictures: int) -> str:
    return "one picture" if n_pictures == 1 else f"{n_pictures} pictures"
