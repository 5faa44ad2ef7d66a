"""Requests with several pictures: a scale each, one cap, details of their own; answers stay right.

The answer at mixed scales is held against the model called directly.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from PIL import Image

from m3model import M3ForConditionalGeneration, M3Processor
from router.actions import uniform_space
from serve.client import BadRequestError, M3Client

Picture = Callable[..., bytes]
Body = Callable[..., dict[str, Any]]
QUESTION = "What is it?"


def of_model(folder: Path, pictures: list[bytes], scales: list[int]) -> str:
    """The model's own greedy answer, all pictures before the question."""
    model = M3ForConditionalGeneration.from_pretrained(folder).eval()
    processor = M3Processor.from_pretrained(folder)
    content = [{"type": "image"}] * len(pictures) + [{"type": "text", "text": QUESTION}]
    ids = processor.prompt_ids([{"role": "user", "content": content}])
    pixels = processor.pixel_values([Image.open(io.BytesIO(each)) for each in pictures])
    with torch.inference_mode():
        out = model.generate(
            input_ids=torch.tensor([ids]), pixel_values=pixels, scale=scales, max_new_tokens=12
        )
    return processor.decode(out[0]).strip()


@pytest.mark.parametrize(
    ("details", "cap", "scales", "reason"),
    [
        (("low", "high", "original"), None, (9, 144, 576), "detail"),
        (("high", "low", "original"), None, (144, 9, 576), "detail"),
        (("auto", "high", "auto"), None, (36, 144, 36), "predicted"),
        (("auto", "high", "auto"), 181, (36, 144, 1), "budget_cap"),
        ("auto", 40, (36, 1, 1), "budget_cap"),
        ("low", 27, (9, 9, 9), "detail"),
    ],
)
def test_each_picture_is_read_at_its_scale(
    running: Any, tiny_model: Path, picture_bytes: Picture, details: Any, cap: int | None,
    scales: tuple[int, ...], reason: str,
) -> None:  # fmt: skip
    pictures = [picture_bytes(1), picture_bytes(2, (30, 50)), picture_bytes(3)]
    with M3Client(running.url) as client:
        answer = client.ask(
            pictures, QUESTION, detail=details, max_visual_tokens=cap, max_tokens=12
        )
        route = client.route(pictures, QUESTION, detail=details, max_visual_tokens=cap)
    assert (answer.scales, answer.reason) == (scales, reason)
    assert (answer.scale, answer.visual_tokens) == (max(scales), sum(scales))
    assert (route.scales, route.visual_tokens) == (scales, sum(scales))
    assert answer.text.strip() == of_model(tiny_model, pictures, list(scales))


def test_the_scales_matter_to_the_answer(tiny_model: Path, picture_bytes: Picture) -> None:
    """Else the comparisons above would show nothing."""
    pictures = [picture_bytes(1), picture_bytes(2, (30, 50)), picture_bytes(3)]
    mixes = [[9, 144, 576], [144, 9, 576], [36, 144, 36], [36, 144, 1], [36, 1, 1], [9, 9, 9]]
    assert len({of_model(tiny_model, pictures, scales) for scales in mixes}) >= 4


def test_the_openai_sdk_gives_each_picture_its_detail(running: Any, ask_body: Body) -> None:
    body = ask_body(seeds=(1, 2))
    for part, detail in zip(body["messages"][0]["content"], ("low", "high"), strict=False):
        part["image_url"]["detail"] = detail
    sdk = openai.OpenAI(base_url=f"{running.url}/v1", api_key="none", max_retries=0)
    reply = sdk.chat.completions.create(**body)
    routing: Any = reply.model_extra["routing"]  # type: ignore[index]
    assert (routing["scales"], routing["scale"], routing["reason"]) == ([9, 144], 144, "detail")
    assert reply.usage is not None
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.model_dump()["image_tokens"] == 153
    one = sdk.chat.completions.create(**ask_body())
    assert one.model_extra["routing"]["scales"] == [36]  # type: ignore[index]
    pinned = sdk.chat.completions.create(**body | {"model": "m3-1"})
    assert pinned.model_extra["routing"]["scales"] == [1, 1]  # type: ignore[index]


def test_pins_that_exceed_the_cap_are_refused(running: Any, picture_bytes: Picture) -> None:
    pictures = [picture_bytes(1), picture_bytes(2)]
    with M3Client(running.url) as client:
        with pytest.raises(BadRequestError, match="raise the cap to at least 145") as refused:
            client.ask(pictures, QUESTION, detail=["high", "auto"], max_visual_tokens=144)
        assert refused.value.param == "routing.max_visual_tokens"
        with pytest.raises(BadRequestError, match="certified for requests with one picture"):
            client.ask(pictures, QUESTION, detail=["original", "auto"], max_harm=0.02)
        with pytest.raises(ValueError, match="3 details for 2 pictures"):
            client.ask(pictures, QUESTION, detail=["low"] * 3)


def test_every_picture_is_counted(running: Any, ask_body: Body) -> None:
    def counted(name: str) -> float:
        lines = httpx2.get(f"{running.url}/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))

    body = ask_body(seeds=(1, 2))
    body["messages"][0]["content"][0]["image_url"]["detail"] = "high"
    names = [
        'm3_decisions_total{reason="predicted",scale="144"}',
        'm3_decisions_total{reason="predicted",scale="36"}',
        "m3_visual_tokens_total",
        "m3_visual_tokens_finest_total",
    ]
    before = [counted(name) for name in names]
    reply = httpx2.post(f"{running.url}/v1/chat/completions", json=body, timeout=30)
    assert reply.headers["x-m3-scale"] == "144"
    assert [counted(name) - was for name, was in zip(names, before, strict=True)] == [
        1, 1, 180, 1152,
    ]  # fmt: skip


def test_each_pictures_explanation_travels(running: Any, picture_bytes: Picture) -> None:
    pictures = [picture_bytes(1), picture_bytes(2)]
    with M3Client(running.url) as client:
        told = client.route(pictures, QUESTION, explain=True, max_visual_tokens=40).explain
    assert told is not None
    assert [each.scale for each in told.pictures] == [36, 1]
    assert (told.scale, len(told.relevance)) == (36, 2)
    assert told.sentence.startswith("Picture 1 of 2: The router chose 36 at the price 0.1")


def test_a_dead_router_fills_the_cap_as_equally_as_it_can(
    running: Any, picture_bytes: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dead:
        version, space = "dead", uniform_space((1, 9, 36, 144, 576))

        def route(self, *arguments: Any) -> None:
            raise FloatingPointError("no number")

    monkeypatch.setattr(running.service.encoder._router, "current", Dead())
    pictures = [picture_bytes(1), picture_bytes(2), picture_bytes(3)]
    with M3Client(running.url) as client:
        route = client.route(pictures, QUESTION, max_visual_tokens=900)
        pinned = client.route(
            pictures, QUESTION, max_visual_tokens=900, detail=["auto", "low", "auto"]
        )
    assert (route.scales, route.reason) == ((576, 144, 144), "fallback")
    assert (pinned.scales, pinned.visual_tokens) == ((576, 9, 144), 729)
