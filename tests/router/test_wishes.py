"""Constraints as JSON: they come back equal, or not at all."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import Constraints, constraints_from_json, constraints_to_json, resolve_constraints
from router.decision import Reason

SCALES = (1, 9, 36, 144, 576)
maybe_scale = st.none() | st.sampled_from(SCALES)


@given(
    st.builds(
        Constraints,
        pinned=maybe_scale,
        max_visual_tokens=st.none() | st.integers(1, 10_000),
        reason=st.sampled_from(list(Reason)),
        explain=st.booleans(),
        max_harm=st.none() | st.floats(0, 1, exclude_min=True, exclude_max=True),
        second_look=st.booleans(),
        price_floor=st.floats(0, 1e6),
        pins=st.lists(maybe_scale, max_size=4).map(tuple),
        focus=st.booleans(),
        restricted=st.booleans(),
        restricted_price=st.none() | st.floats(0, 1e6),
    )
)
def test_every_constraint_comes_back(constraints: Constraints) -> None:
    again = constraints_from_json(constraints_to_json(constraints))
    assert again == constraints
    assert type(again.reason) is Reason
    assert type(again.pins) is tuple


def test_what_is_written_down() -> None:
    held_to = resolve_constraints(scales=SCALES, detail=["low", None], n_pictures=2, max_harm=None)
    assert json.loads(constraints_to_json(held_to)) == {
        "pinned": None, "max_visual_tokens": None, "reason": "predicted", "explain": False,
        "max_harm": None, "second_look": False, "price_floor": 0.0, "pins": [9, None],
        "focus": True, "restricted": False, "restricted_price": None,
    }  # fmt: skip
    assert constraints_from_json("{}") == Constraints()
    assert constraints_from_json('{"pinned": 9}') == Constraints(9, reason=Reason.pinned)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"pinned": 9, "latency_ms": 50}', "later version: latency_ms is unknown"),
        ('{"pinned": "9"}', "damaged: pinned is '9'"),
        ('{"pinned": true}', "damaged: pinned is True"),
        ('{"pins": [9, 1.5]}', "damaged: pins is"),
        ('{"reason": "whim"}', "whim"),
        ("[]", "are a JSON object"),
        ("{", "Expecting property name"),
    ],
)
def test_what_cannot_be_kept_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        constraints_from_json(text)
