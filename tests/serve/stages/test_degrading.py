"""What the shipped router's certificate lets an overloaded service take, by its own table."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import Router, default_router_path
from router.actions import uniform_space
from router.decision import Constraints, Reason
from serve.stages.deciding.degrading import under_pressure

ONCE, TWICE = Constraints(), Constraints(second_look=True)


@pytest.fixture(scope="module")
def router() -> Router:
    return Router.from_pretrained(default_router_path())


@pytest.mark.parametrize(
    ("constraints", "pressure", "max_harm", "floor"),
    [  # prices to four digits, from router/pretrained/m3-mini/certificate.json; its own is 0.0122
        (ONCE, 0.0, 0.1, 0.0),
        (ONCE, 0.01, 0.1, 0.0123),
        (ONCE, 1.0, 0.1, 5.4049),
        (ONCE, 1.0, 0.05, 1.0787),
        (ONCE, 1.0, 0.02, 0.0),  # below its own
        (ONCE, 1.0, 0.01, 0.0),
        (ONCE, 1.0, 0.001, 0.0),
        (ONCE, 1.0, None, 0.0),
        (TWICE, 0.0, 0.1, 0.0),
        (TWICE, 0.01, 0.1, 0.1505),  # the last below 0.1775, where its first look starts
        (TWICE, 0.5, 0.1, 0.9018),  # the eleventh of 21
        (TWICE, 1.0, 0.1, 5.4049),
        (TWICE, 1.0, 0.05, 1.0787),
        (Constraints(pinned=9, reason=Reason.pinned), 1.0, 0.1, 0.0),
        (Constraints(max_visual_tokens=144), 1.0, 0.1, 0.0),
        (Constraints(max_harm=0.02), 1.0, 0.1, 0.0),
    ],
)
def test_the_floor_of_the_price(
    router: Router, constraints: Constraints, pressure: float, max_harm: Any, floor: float
) -> None:
    found = under_pressure(constraints, router, pressure, max_harm)
    assert found.price_floor == pytest.approx(floor, abs=5e-5)


def test_who_declines_foci_that_were_certified_along_pays_the_usual_price(router: Router) -> None:
    declined = replace(ONCE, focus=False)
    assert under_pressure(declined, router, 1.0, 0.1) == declined
    assert under_pressure(ONCE, router, 1.0, 0.1).price_floor > 5.0
    of_scales = copy.copy(router)
    of_scales.space = uniform_space(router.scales)
    assert under_pressure(declined, of_scales, 1.0, 0.1).price_floor > 5.0


@given(
    pressures=st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)), max_harm=st.floats(0.001, 0.9)
)
def test_more_pressure_is_never_cheaper_and_never_beyond_the_bound(
    router: Router, pressures: tuple[float, float], max_harm: float
) -> None:
    held = router.held.certificate
    assert held is not None
    bounded = [rung.price for rung in held.ladder if rung.bound <= max_harm and rung.price]
    for constraints in (ONCE, TWICE):
        less, more = (
            under_pressure(constraints, router, pressure, max_harm).price_floor
            for pressure in sorted(pressures)
        )
        assert 0.0 <= less <= more <= max([0.0, *bounded])
        assert more in {0.0, *held.prices}
