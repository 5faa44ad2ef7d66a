"""Questions that router or model cannot know are read finely, and the reply says so."""

from collections.abc import Callable
from typing import Any

import httpx2
import pytest


@pytest.fixture
def route(running: Any, ask_body: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def ask(question: str, **routing: Any) -> dict[str, Any]:
        body = ask_body(question, **({"routing": routing} if routing else {}))
        reply = httpx2.post(f"{running.url}/v1/route", json=body, timeout=60)
        assert reply.status_code == 200, reply.text
        return dict(reply.json()["routing"])

    return ask


@pytest.mark.parametrize(
    "question",
    ["牌子上写着什么", "看板には何と書いてありますか", "что написано?", "🦊❓", "\u200b", "\x00"],
)
def test_what_nobody_knows_is_read_at_the_finest_scale(route: Any, question: str) -> None:
    said = route(question)
    assert (said["scale"], said["reason"]) == (576, "unfamiliar")
    capped = route(question, max_visual_tokens=100)
    assert (capped["scale"], capped["reason"]) == (36, "budget_cap")


@pytest.mark.parametrize("question", ["What is it?", "Was steht da?", "what " * 300])
def test_what_is_known_is_decided_as_ever(route: Any, question: str) -> None:
    assert (route(question)["scale"], route(question)["reason"]) == (36, "predicted")


def test_known_letters_that_the_tokenizer_cannot_read_are_unfamiliar_too(route: Any) -> None:
    assert route("łłł ŧŧŧ đđđ?")["reason"] == "unfamiliar"
