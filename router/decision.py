"""What was decided for one request and why, and which of a caller's wishes bind the decision.

Knows scales, caps and words; knows nothing of features, LightGBM or HTTP. Everything here is pure.
Precedence: routing.scale > model id m3-<scale> > image detail > cap and policy. The first two pin
all pictures of a request, a detail its own picture. A pin that does not fit the cap is refused,
never clamped. A pin reads the whole picture at one scale, so it excludes a focus, as do several
pictures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import cast

from router.actions import Reading
from router.errors import (
    BudgetTooSmall,
    Contradiction,
    NotCertified,
    UnknownDetail,
    UnknownScale,
)
from router.explanation import Explanation
from router.policy.budget import Pins, even_shares
from router.second_look import OpenLook


class Reason(StrEnum):
    """Why a request's pictures are read as they are."""

    predicted = "predicted"
    """The policy chose freely, for every picture that has no detail of its own."""
    pinned = "pinned"
    """The caller named the scale (``routing.scale`` or the model id)."""
    detail = "detail"
    """The caller's image details name it, that of every picture."""
    budget_cap = "budget_cap"
    """The policy wanted some picture read otherwise; the cap on visual tokens forbade it."""
    no_image = "no_image"
    """The request carries no picture: scale 0, no visual tokens."""
    unfamiliar = "unfamiliar"
    """The question is in a script that the router was not fitted on, or in words the model cannot
    read: the finest scale that the caller's constraints allow."""
    degraded = "degraded"
    """The service was overloaded: the raised price took another action, or no second look."""
    restricted = "restricted"
    """The router is held to a safer price, or to the finest scale allowed, until it is certified
    anew or replaced."""
    fallback = "fallback"
    """Routing failed: the finest scale that the caller's constraints allow."""


@dataclass(frozen=True)
class Constraints:
    """What binds one request's decision.

    Attributes:
        pinned: the scale the caller fixed for all pictures, or None.
        max_visual_tokens: cap on the visual tokens of the whole request (all pictures), or None.
        reason: ``pinned`` or ``detail`` with a pin, ``no_image`` without a picture, else
            ``predicted``.
        explain: whether the decision should carry its explanation, which takes milliseconds.
        max_harm: bound on the share of right answers lost against the finest scale, or None.
        second_look: whether the answer's confidence may later ask for a finer scale.
        price_floor: least price the policy decides at, without a second look; 0: its own price.
        pins: for each of several pictures the scale that its detail fixes, None where the policy
            chooses; empty where ``pinned`` or nothing says it for all.
        focus: whether a picture may be read finely in some cells only.
        restricted: whether the router is held to less than it was promoted with: no second look,
            and nothing by a certificate.
        restricted_price: the price that it decides at then; None takes the finest scale.
    """

    pinned: int | None = None
    max_visual_tokens: int | None = None
    reason: Reason = Reason.predicted
    explain: bool = False
    max_harm: float | None = None
    second_look: bool = False
    price_floor: float = 0.0
    pins: tuple[int | None, ...] = ()
    focus: bool = True
    restricted: bool = False
    restricted_price: float | None = None

    def __post_init__(self) -> None:
        if self.reason is Reason.predicted and self.pinned is not None:
            object.__setattr__(self, "reason", Reason.pinned)
        elif self.reason is Reason.predicted and self.pins and None not in self.pins:
            object.__setattr__(self, "reason", Reason.detail)

    def pins_of(self, n_pictures: int) -> tuple[int | None, ...]:
        """Return for each picture the scale the caller fixed, None where the policy chooses.

        Raises:
            ValueError: the pins are those of another number of pictures.
        """
        if not self.pins:
            return (self.pinned,) * n_pictures
        if len(self.pins) != n_pictures:
            raise ValueError(f"{len(self.pins)} pins for {n_pictures} pictures")
        return self.pins

    def fixed(self, n_pictures: int) -> tuple[int, ...] | None:
        """Return the scale of each picture where the caller fixed all of them, else None."""
        pins = self.pins_of(n_pictures)
        return None if None in pins else cast("tuple[int, ...]", pins)


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
    """The scale of each picture of one request, and what that rests on.

    Attributes:
        scale: what the whole picture is read at (0 without one), of a focus the coarse level; of
            several pictures the finest.
        visual_tokens: visual tokens of the whole request: the sum over its pictures.
        reason: why.
        p_suffices: scale, or name of a focus -> calibrated P(it suffices), the mean over pictures;
            None where nothing was predicted (pinned without features, no picture, fallback). Of
            several pictures the explanation has each one's.
        values: the same keys -> the quality that the policy weighs against cost; None as above.
        price: quality that one unit of cost had to buy (the router's dial); None without a router.
        router_version: short content hash of the router; "" without a router.
        latency_ms: wall time of the decision itself, features not counted.
        certified: the bound it was decided under; None where none was asked for.
        explanation: why, where that was asked for and something was predicted.
        open_look: decides after the answer whether to look finer; None where nothing may follow.
        readings: what is read of each picture, in order; empty without a picture.
    """

    scale: int
    visual_tokens: int
    reason: Reason
    p_suffices: dict[int | str, float] | None = None
    values: dict[int | str, float] | None = None
    price: float | None = None
    router_version: str = ""
    latency_ms: float = 0.0
    certified: AppliedBound | None = None
    explanation: Explanation | None = None
    open_look: OpenLook | None = None
    readings: tuple[Reading, ...] = ()

    @property
    def scales(self) -> tuple[int, ...]:
        """What each whole picture is read at, in order; of a focus the coarse level."""
        return tuple(reading.scale for reading in self.readings)


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
    detail: str | Sequence[str | None] | None = None,
    routing_scale: int | None = None,
    max_visual_tokens: int | None = None,
    n_pictures: int = 1,
    detail_map: Mapping[str, int] | None = None,
    explain: bool = False,
    max_harm: float | None = None,
    focus: bool | None = None,
) -> Constraints:
    """Return the one set of constraints that a request's wishes add up to.

    Of several pins the highest in the precedence wins; the others must still be valid, because
    a wish is honoured or refused, never ignored.

    Args:
        scales: the checkpoint's scales, ascending.
        model_scale: the scale in a pinned model id (m3-144), None for m3-auto.
        detail: low, high, original, or auto / None (the policy chooses); one word for all
            pictures, or one for each.
        routing_scale: ``routing.scale`` of the request.
        max_visual_tokens: cap on the visual tokens of all pictures together.
        n_pictures: pictures in the request.
        detail_map: scale of each detail where it differs from `default_detail_map`.
        explain: passed on.
        max_harm: bound on lost answers; whether it can be kept is for the router to say.
        focus: whether fine tokens of some cells alone may be read; None allows it where it can be,
            True insists that nothing else of the request forbids it.

    Raises:
        UnknownScale: a named scale is not in ``scales``.
        UnknownDetail: ``detail`` is not a known word.
        BudgetTooSmall: the pinned scales, or the coarsest ones, do not fit the cap.
        NotCertified: ``max_harm`` with a pin below the finest scale, or with several pictures.
        Contradiction: ``focus`` True beside a pin or several pictures.
        ValueError: another number of details than of pictures.
    """
    details = {**default_detail_map(scales), **(detail_map or {})}
    for scale in (routing_scale, model_scale, *details.values()):
        # bool is an int in Python, and True == 1 would pass for the scale of one token.
        if scale is not None and (isinstance(scale, bool) or scale not in scales):
            raise UnknownScale(scale, scales)
    by_detail = _pins_of_details(detail, n_pictures, details)
    if focus:
        _may_focus(routing_scale, model_scale, by_detail, n_pictures)

    pinned: int | None = None
    pins: tuple[int | None, ...] = ()
    reason = Reason.predicted
    if routing_scale is not None or model_scale is not None:
        pinned = model_scale if routing_scale is None else routing_scale
        reason = Reason.pinned
    elif any(by_detail):
        pins = by_detail
        if len(set(pins)) == 1:
            pinned, pins, reason = pins[0], (), Reason.detail
    keeps_cap(pins or (pinned,) * n_pictures, scales, max_visual_tokens)
    if n_pictures == 0:
        pinned, reason = None, Reason.no_image
    found = Constraints(
        pinned, max_visual_tokens, reason, explain, max_harm, pins=pins, focus=focus is not False
    )
    if max_harm is not None:
        _may_be_bounded(max_harm, found, n_pictures, scales[-1])
    return found


def _pins_of_details(
    detail: str | Sequence[str | None] | None, n_pictures: int, known: Mapping[str, int]
) -> tuple[int | None, ...]:
    """Return for each picture the scale that its detail names, None for auto and for none."""
    of_all = detail is None or isinstance(detail, str)
    words = [detail] if detail is None or isinstance(detail, str) else list(detail)
    if not of_all and len(words) != n_pictures:
        raise ValueError(f"{len(words)} details for {n_pictures} pictures")
    pins: list[int | None] = []
    for word in words:
        if word not in (None, "auto", *known):
            raise UnknownDetail(word, sorted(known))
        pins.append(None if word is None or word == "auto" else known[word])
    return tuple(pins * n_pictures if of_all else pins)


def _may_focus(
    routing_scale: int | None,
    model_scale: int | None,
    by_detail: Pins,
    n_pictures: int,
) -> None:
    """Return nothing if a focus may be asked for beside the other wishes.

    Raises:
        Contradiction: it may not.
    """
    whole = "which reads the whole picture at one scale"
    against = None
    if routing_scale is not None:
        against = f"routing.scale {routing_scale}, {whole}"
    elif model_scale is not None:
        against = f"the model m3-{model_scale}, {whole}"
    elif any(by_detail):
        against = f"an image detail, {whole}"
    elif n_pictures > 1:
        against = f"{n_pictures} pictures, which are read at one scale each"
    if against is not None:
        raise Contradiction("focus", against)


def _may_be_bounded(max_harm: float, asked: Constraints, n_pictures: int, finest: int) -> None:
    """Return nothing if a bound on harm may be asked for beside the other wishes.

    Raises:
        NotCertified: it may not.
    """
    coarse = sorted({pin for pin in asked.pins_of(n_pictures) if pin not in (None, finest)})
    if coarse:
        named = ", ".join(map(str, coarse))
        raise NotCertified(
            f"max_harm={max_harm:g} cannot be kept at the pinned scale {named}; leave out one "
            f"of the two, or pin {finest}",
            "not_certified",
        )
    if n_pictures > 1 and asked.fixed(n_pictures) is None:
        raise NotCertified(
            f"max_harm is certified for requests with one picture, this one has {n_pictures}; "
            f"leave it out, or pin the finest scale {finest}",
            "not_certified",
        )


def keeps_cap(pins: Pins, scales: Sequence[int], max_visual_tokens: int | None) -> None:
    """Return nothing if the pictures can keep the cap: at their pins, the others at the coarsest.

    Raises:
        BudgetTooSmall: they cannot.
    """
    if max_visual_tokens is None:
        return
    least = [scales[0] if pin is None else pin for pin in pins]
    if sum(least) <= max_visual_tokens:
        return
    n_pictures = "one picture" if len(pins) == 1 else f"{len(pins)} pictures"
    if set(pins) <= {None}:
        where = f"the coarsest scale {scales[0]}"
    elif len(set(pins)) == 1:
        where = f"the pinned scale {pins[0]}"
    else:
        where = f"{', '.join(map(str, least))}, the coarsest that their details allow,"
    raise BudgetTooSmall(max_visual_tokens, sum(least), f"{n_pictures} at {where}")


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
    if {decision.scale, *decision.scales} - {0, scales[-1]}:
        raise NotCertified(
            f"max_harm={constraints.max_harm:g} needs the finest scale {scales[-1]} here, which "
            "the other wishes do not allow; raise max_visual_tokens or leave out max_harm",
            "not_certified",
        )
    return replace(decision, certified=NOTHING_LOST)


def decided(
    scales: tuple[int, ...], reason: Reason, *, router_version: str = "", latency_ms: float = 0.0
) -> RoutingDecision:
    """Return the decision for scales that follow from the request alone, one for each picture."""
    return RoutingDecision(
        scale=max(scales, default=0),
        visual_tokens=sum(scales),
        reason=reason,
        router_version=router_version,
        latency_ms=latency_ms,
        readings=tuple(map(Reading.uniform, scales)),
    )


def finest_fallback(
    scales: Sequence[int],
    constraints: Constraints | None = None,
    *,
    n_pictures: int = 1,
    router_version: str = "",
    latency_ms: float = 0.0,
) -> RoutingDecision:
    """Return the finest scales the constraints allow, for a request whose routing failed.

    A dead router must cost tokens, not answers. Pins are still kept, and pictures that share a
    cap are read as equally as it can be filled.

    Raises:
        BudgetTooSmall: not even the coarsest scale fits the cap.
    """
    limits = constraints or Constraints()
    pins = limits.pins_of(n_pictures)
    keeps_cap(pins, scales, limits.max_visual_tokens)
    chosen = even_shares(scales, pins, limits.max_visual_tokens)
    return decided(chosen, Reason.fallback, router_version=router_version, latency_ms=latency_ms)
