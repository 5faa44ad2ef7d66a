"""The precedence of a request's wishes, against a table worked out by hand."""

import pytest

from router.decision import (
    Constraints,
    Reason,
    RoutingDecision,
    decided,
    default_detail_map,
    finest_fallback,
    resolve_constraints,
    within_bound,
)
from router.errors import (
    BudgetTooSmall,
    NotCertified,
    RoutingError,
    UnknownDetail,
    UnknownScale,
)

SCALES = (1, 9, 36, 144, 576)

# routing.scale, model id, detail, cap, pictures -> pinned, reason
PRECEDENCE = [
    (None, None, None, None, 1, None, Reason.predicted),
    (None, None, "auto", None, 1, None, Reason.predicted),
    (None, None, "low", None, 1, 9, Reason.detail),
    (None, None, "high", None, 1, 144, Reason.detail),
    (None, None, "original", None, 1, 576, Reason.detail),
    (None, 36, None, None, 1, 36, Reason.pinned),
    (None, 36, "high", None, 1, 36, Reason.pinned),
    (1, None, "high", None, 1, 1, Reason.pinned),
    (1, 36, "high", None, 1, 1, Reason.pinned),
    (576, 1, None, None, 1, 576, Reason.pinned),
    (576, 1, "low", 576, 1, 576, Reason.pinned),
    (None, 1, "auto", 1, 1, 1, Reason.pinned),
    (None, None, None, 40, 1, None, Reason.predicted),
    (None, None, "low", 27, 3, 9, Reason.detail),
    (36, None, None, 72, 2, 36, Reason.pinned),
    (None, None, None, None, 0, None, Reason.no_image),
    (36, 9, "high", 0, 0, None, Reason.no_image),
]


@pytest.mark.parametrize(
    ("scale", "model", "detail", "cap", "pictures", "pinned", "reason"), PRECEDENCE
)
def test_resolve_constraints_follows_the_precedence(
    scale: int | None,
    model: int | None,
    detail: str | None,
    cap: int | None,
    pictures: int,
    pinned: int | None,
    reason: Reason,
) -> None:
    got = resolve_constraints(
        scales=SCALES,
        routing_scale=scale,
        model_scale=model,
        detail=detail,
        max_visual_tokens=cap,
        n_pictures=pictures,
    )
    assert got == Constraints(pinned, cap, reason, explain=False)


# routing.scale, model id, detail, cap, pictures -> the smallest cap that would do
TOO_SMALL = [
    (36, None, None, 35, 1, 36),
    (36, None, None, 36, 2, 72),
    (None, 144, None, 100, 1, 144),
    (None, None, "original", 575, 1, 576),
    (1, 576, None, 0, 1, 1),  # the winning pin decides what is needed
    (None, None, None, 0, 1, 1),
    (None, None, None, 2, 3, 3),
    (None, None, None, -5, 0, 0),
]


@pytest.mark.parametrize(("scale", "model", "detail", "cap", "pictures", "needed"), TOO_SMALL)
def test_a_cap_that_cannot_be_kept_is_refused_with_the_number_needed(
    scale: int | None, model: int | None, detail: str | None, cap: int, pictures: int, needed: int
) -> None:
    with pytest.raises(BudgetTooSmall, match=f"at least {needed}") as caught:
        resolve_constraints(
            scales=SCALES,
            routing_scale=scale,
            model_scale=model,
            detail=detail,
            max_visual_tokens=cap,
            n_pictures=pictures,
        )
    assert caught.value.needed == needed
    assert caught.value.max_visual_tokens == cap


@pytest.mark.parametrize("scale", [0, 2, 577, -1, True])
@pytest.mark.parametrize("where", ["routing_scale", "model_scale"])
def test_a_scale_the_checkpoint_lacks_is_refused(scale: int, where: str) -> None:
    with pytest.raises(UnknownScale, match="1, 9, 36, 144, 576"):
        resolve_constraints(scales=SCALES, **{where: scale})  # type: ignore[arg-type]


def test_a_losing_wish_must_still_be_valid() -> None:
    with pytest.raises(UnknownScale):
        resolve_constraints(scales=SCALES, routing_scale=9, model_scale=10)
    with pytest.raises(UnknownDetail, match="high, low, original, auto"):
        resolve_constraints(scales=SCALES, routing_scale=9, detail="ultra")


def test_settings_may_move_a_detail_but_not_to_an_unknown_scale() -> None:
    got = resolve_constraints(scales=SCALES, detail="low", detail_map={"low": 1})
    assert got.pinned == 1
    assert resolve_constraints(scales=SCALES, detail="high", detail_map={"low": 1}).pinned == 144
    with pytest.raises(UnknownScale):
        resolve_constraints(scales=SCALES, detail_map={"low": 2})


@pytest.mark.parametrize(
    ("scales", "expected"),
    [
        ((1, 9, 36, 144, 576), (9, 144, 576)),
        ((1, 4, 16), (1, 4, 16)),
        ((4,), (4, 4, 4)),
        ((9, 144), (9, 144, 144)),
    ],
)
def test_details_without_9_or_144_take_their_neighbours(
    scales: tuple[int, ...], expected: tuple[int, int, int]
) -> None:
    details = default_detail_map(scales)
    assert (details["low"], details["high"], details["original"]) == expected


def test_explain_is_passed_on_and_a_bare_pin_says_pinned() -> None:
    assert resolve_constraints(scales=SCALES, explain=True).explain
    assert Constraints(pinned=9).reason is Reason.pinned
    assert Constraints(pinned=9, reason=Reason.detail).reason is Reason.detail


# details of each picture, routing.scale, cap -> pinned, pins, reason
OF_EACH = [
    (["low", "low"], None, None, 9, (), Reason.detail),
    (["low", "original"], None, None, None, (9, 576), Reason.detail),
    (["low", None], None, None, None, (9, None), Reason.predicted),
    (["auto", "high", None], None, 146, None, (None, 144, None), Reason.predicted),
    (["auto", None], None, 2, None, (), Reason.predicted),
    (["low", "high"], 36, 72, 36, (), Reason.pinned),
    (["high"], None, None, 144, (), Reason.detail),
    ([], None, None, None, (), Reason.no_image),
]


@pytest.mark.parametrize(("details", "scale", "cap", "pinned", "pins", "reason"), OF_EACH)
def test_a_detail_pins_its_own_picture(
    details: list[str | None],
    scale: int | None,
    cap: int | None,
    pinned: int | None,
    pins: tuple[int | None, ...],
    reason: Reason,
) -> None:
    got = resolve_constraints(
        scales=SCALES,
        detail=details,
        routing_scale=scale,
        max_visual_tokens=cap,
        n_pictures=len(details),
    )
    assert got == Constraints(pinned, cap, reason, pins=pins)


def test_details_of_several_pictures_are_checked() -> None:
    with pytest.raises(BudgetTooSmall, match="3 pictures at 9, 144, 1, the coarsest that their"):
        resolve_constraints(
            scales=SCALES, detail=["low", "high", None], n_pictures=3, max_visual_tokens=153
        )
    with pytest.raises(UnknownDetail, match="'ultra'"):
        resolve_constraints(scales=SCALES, detail=["low", "ultra"], n_pictures=2)
    with pytest.raises(ValueError, match="2 details for 3 pictures"):
        resolve_constraints(scales=SCALES, detail=["low", "high"], n_pictures=3)
    with pytest.raises(ValueError, match="2 pins for 3 pictures"):
        Constraints(pins=(9, None)).pins_of(3)


def test_a_bound_covers_every_picture() -> None:
    both = resolve_constraints(scales=SCALES, detail=["original"] * 2, n_pictures=2, max_harm=0.1)
    assert both.fixed(2) == (576, 576)
    for details in (["original", "low"], ["original", None], [None, None]):
        with pytest.raises(NotCertified):
            resolve_constraints(scales=SCALES, detail=details, n_pictures=2, max_harm=0.1)
    bounded = Constraints(max_harm=0.1)
    assert within_bound(decided((576, 576), Reason.fallback), bounded, SCALES).certified
    with pytest.raises(NotCertified, match="needs the finest scale 576"):
        within_bound(decided((144, 576), Reason.fallback), bounded, SCALES)
    with pytest.raises(NotCertified):
        within_bound(RoutingDecision(144, 144, Reason.predicted), bounded, SCALES)


def test_a_failed_routing_falls_back_to_the_finest_scale_allowed() -> None:
    free = finest_fallback(SCALES)
    assert (free.scale, free.visual_tokens, free.reason) == (576, 576, Reason.fallback)
    capped = finest_fallback(SCALES, Constraints(max_visual_tokens=300), n_pictures=2)
    assert (capped.scale, capped.scales, capped.visual_tokens) == (144, (144, 144), 288)
    uneven = finest_fallback(SCALES, Constraints(max_visual_tokens=900), n_pictures=3)
    assert (uneven.scale, uneven.scales, uneven.visual_tokens) == (576, (576, 144, 144), 864)
    mixed = Constraints(max_visual_tokens=300, pins=(None, 9, None))
    assert finest_fallback(SCALES, mixed, n_pictures=3).scales == (144, 9, 144)
    pinned = finest_fallback(SCALES, Constraints(pinned=9, max_visual_tokens=300))
    assert (pinned.scale, pinned.reason) == (9, Reason.fallback)
    assert pinned.p_suffices is None
    with pytest.raises(BudgetTooSmall):
        finest_fallback(SCALES, Constraints(max_visual_tokens=1), n_pictures=2)


def test_decisions_without_a_router() -> None:
    pinned = decided((36, 9), Reason.detail)
    assert (pinned.scale, pinned.visual_tokens, pinned.reason) == (36, 45, Reason.detail)
    assert pinned.scales == (36, 9)
    text = decided((), Reason.no_image)
    assert (text.scale, text.visual_tokens, text.scales) == (0, 0, ())


def test_reasons_are_the_words_of_the_wire() -> None:
    words = "predicted pinned detail budget_cap no_image unfamiliar degraded restricted fallback"
    assert [str(reason) for reason in Reason] == words.split()
    assert issubclass(RoutingError, ValueError)
