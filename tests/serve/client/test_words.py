"""What an answer cost in words, against sentences written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from serve.client.wire import Route
from serve.client.words import cost_in_words

P = {1: 0.1, 36: 0.6, 576: 0.9}


def looked(first: int, second: int, confidence: float) -> dict[str, Any]:
    return {
        "from": first, "confidence": confidence,
        "first_visual_tokens": first, "second_visual_tokens": second,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("route", "words"),
    [
        (Route(36, 36, "predicted", P), "36 of 576 visual tokens, 94 % saved (predicted)"),
        (Route(1, 1, "predicted", P), "1 of 576 visual tokens, 99 % saved (predicted)"),
        (Route(576, 576, "predicted", P), "576 of 576 visual tokens, none saved (predicted)"),
        (Route(36, 72, "budget_cap", P), "72 of 1152 visual tokens, 94 % saved (budget_cap)"),
        (
            Route(144, 153, "predicted", P, scales=(144, 9)),
            "153 of 1152 visual tokens, 87 % saved (predicted)",
        ),
        (Route(9, 9, "pinned"), "9 visual tokens (pinned)"),
        (Route(1, 1, "detail"), "1 visual token (detail)"),
        (Route(576, 576, "fallback"), "576 visual tokens (fallback)"),
        (Route(0, 0, "no_image"), "0 visual tokens (no_image)"),
        (
            Route(576, 612, "predicted", P, second_look=looked(36, 576, 0.41)),
            "first look: 36 visual tokens, 41 % sure; second look: 576 visual tokens; "
            "together 612, 36 more than always reading 576",
        ),
        (
            Route(36, 37, "predicted", P, second_look=looked(1, 36, 0.07)),
            "first look: 1 visual token, 7 % sure; second look: 36 visual tokens; "
            "together 37 of 576, 94 % saved",
        ),
    ],
)  # fmt: skip
def test_the_cost_in_words(route: Route, words: str) -> None:
    assert cost_in_words(route) == words
