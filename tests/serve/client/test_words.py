"""What an answer cost in words, against sentences written by hand."""

from __future__ import annotations

from typing import Any

import pytest

from serve.client.focus import Focus
from serve.client.wire import Route
from serve.client.words import cost_in_words, grid_in_words

P: dict[int | str, float] = {1: 0.1, 36: 0.6, "36+576@250x48": 0.8, 576: 0.9}
FOCUS = Focus(36, 576, tuple(range(22)), 124)
SENT = {"coarse": 9, "fine": 144, "cells": [14, 15], "visual_tokens": 17}
NOTHING_FINE = Focus(36, 576, (), 36)


def looked(scale: int, first: int, second: int, confidence: float) -> dict[str, Any]:
    return {
        "from": scale, "confidence": confidence,
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
            Route(576, 612, "predicted", P, second_look=looked(36, 36, 576, 0.41)),
            "first look: 36 visual tokens, 41 % sure; second look: 576 visual tokens; "
            "together 612, 36 more than always reading 576",
        ),
        (
            Route(36, 37, "predicted", P, second_look=looked(1, 1, 36, 0.07)),
            "first look: 1 visual token, 7 % sure; second look: 36 visual tokens; "
            "together 37 of 576, 94 % saved",
        ),
        (
            Route(36, 124, "predicted", P, focus=FOCUS),
            "36 coarse + 88 fine = 124 of 576 visual tokens, 78 % saved (predicted)",
        ),
        (
            Route(36, 124, "budget_cap", focus=FOCUS),
            "36 coarse + 88 fine = 124 visual tokens (budget_cap)",
        ),
        (
            Route(36, 36, "predicted", P, scales=(36,), focus=NOTHING_FINE),
            "36 of 576 visual tokens, 94 % saved (predicted)",
        ),
        (
            Route(
                36, 141, "predicted", P, scales=(36,), focus=FOCUS,
                second_look=looked(9, 17, 124, 0.5) | {"focus": SENT},
            ),
            "first look: 9 coarse + 8 fine = 17 visual tokens, 50 % sure; "
            "second look: 36 coarse + 88 fine = 124 visual tokens; "
            "together 141 of 576, 76 % saved",
        ),
    ],
)  # fmt: skip
def test_the_cost_in_words(route: Route, words: str) -> None:
    assert cost_in_words(route) == words


@pytest.mark.parametrize(
    ("route", "words"),
    [
        (Route(36, 36, "predicted", P, scales=(36,)), ["36 tokens everywhere"]),
        (Route(1, 1, "pinned"), ["1 token everywhere"]),
        (
            Route(36, 124, "predicted", P, focus=FOCUS),
            ["36 coarse tokens everywhere, 4 x 22 fine tokens where the question looks"],
        ),
        (Route(36, 36, "predicted", P, focus=NOTHING_FINE), ["36 tokens everywhere"]),
        (
            Route(576, 593, "predicted", P, second_look=looked(9, 17, 576, 0.5) | {"focus": SENT}),
            [
                "first look: 9 coarse tokens everywhere, 4 x 2 fine tokens where the question "
                "looks",
                "second look: 576 tokens everywhere",
            ],
        ),
        (Route(0, 0, "no_image"), []),
        (Route(144, 153, "predicted", P, scales=(144, 9)), []),
    ],
)
def test_the_grid_in_words(route: Route, words: list[str]) -> None:
    assert grid_in_words(route) == words
