"""Foci through the whole service: what is read, told, counted and logged, and who gets none.

What the encoder sends is held against means and rows taken by hand from the model's own grid.
"""

from __future__ import annotations

import asyncio
import copy
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from m3model import Focus, M3ForConditionalGeneration, M3Processor, focus_visual_tokens
from router import ActionSpace, SecondLook
from router.decision import Constraints
from router.second_look import Gate
from serve.gateway.call import Call
from serve.in_process import compose
from serve.protocol import ChatRequest
from serve.settings import ServeSettings
from serve.stages.messages import EncodeRequest, PoolRequest

Body = Callable[..., dict[str, Any]]
CHAT = "/v1/chat/completions"
SMALL, WIDE = "9+144@500x12", "36+576@250rx48"
NAMES = ("1", "9", SMALL, "36", WIDE, "144", "576")


class Running:
    """A composed service and its log folder."""

    def __init__(self, service: Any, log_dir: Path) -> None:
        self.service, self.log_dir = service, log_dir

    def post(self, body: dict[str, Any], path: str = CHAT) -> httpx2.Response:
        async def run() -> httpx2.Response:
            transport = httpx2.ASGITransport(app=self.service.api)
            async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
                return await http.post(path, json=body)

        return asyncio.run(run())

    def routing(self, body: dict[str, Any], path: str = CHAT) -> dict[str, Any]:
        reply = self.post(body, path)
        assert reply.status_code == 200, reply.text
        told: dict[str, Any] = reply.json()["routing"]
        return told

    def counted(self, name: str) -> float:
        text = asyncio.run(self.service.gateway.metrics.text())
        lines = (line.rsplit(" ", 1) for line in text.splitlines())
        return sum(float(value) for key, value in lines if key == name)

    def records(self) -> list[dict[str, Any]]:
        self.service.gateway.log.close()
        files = sorted((self.log_dir / "decisions").rglob("*.parquet"))
        return [row for file in files for row in pq.read_table(file).to_pylist()]


@pytest.fixture
def start(tiny_model: Path, make_focus_router: Any, tmp_path: Path) -> Iterator[Any]:
    """Starts a service whose router always chooses the named action."""
    made: list[Any] = []

    def make(favourite: str, second_look: SecondLook | None = None, **settings: Any) -> Running:
        folder = tmp_path / f"router-{len(made)}"
        make_focus_router(folder, favourite, second_look)
        wanted = ServeSettings(
            model=tiny_model, router=folder, registry=None, log_dir=tmp_path / "log", **settings
        )
        made.append(compose(wanted))
        return Running(made[-1], tmp_path / "log")

    yield make
    for each in made:
        each.encoder.close()
        each.generator.close()
        each.gateway.log.close()


def cells_by_hand(values: list[int], across: int, share: float, most: int) -> list[int]:
    """The cells of a 24x24 map with at least a share of the greatest sum, the greatest first."""
    side = 24 // across
    sums = [0] * across**2
    for place, value in enumerate(values):
        row, column = divmod(place, 24)
        sums[row // side * across + column // side] += value
    marked = [cell for cell in range(across**2) if sums[cell] >= share * max(sums)]
    marked.sort(key=lambda cell: (-sums[cell], cell))
    return sorted(marked[:most])


def test_a_focus_is_read_and_told_to_the_token(start: Any, ask_body: Body) -> None:
    running = start(SMALL)
    reply = running.post(ask_body(routing={"explain": True})).json()
    routing = reply["routing"]
    told = routing["focus"]
    assert (routing["scale"], routing["scales"], routing["reason"]) == (9, [9], "predicted")
    assert routing["action"] == SMALL
    relevance = routing["explain"]["relevance"][0]["values"]
    assert told["cells"] == cells_by_hand(relevance, 6, 0.5, 12)
    tokens = 9 + 4 * len(told["cells"])
    assert 9 < tokens <= 57
    assert told == {"coarse": 9, "fine": 144, "cells": told["cells"], "visual_tokens": tokens}
    assert list(routing["p_suffices"]) == list(NAMES)
    assert routing["p_suffices"][SMALL] > 0.9 > 0.1 > routing["p_suffices"]["144"]
    details = reply["usage"]["prompt_tokens_details"]
    assert (routing["visual_tokens"], details["image_tokens"]) == (tokens, tokens)
    assert reply["usage"]["prompt_tokens"] == tokens + details["text_tokens"]
    decided = running.post(ask_body(), "/v1/route").json()
    assert decided["routing"]["focus"] == told
    assert decided["usage"]["prompt_tokens_details"]["image_tokens"] == tokens
    assert running.counted("m3_visual_tokens_total") == tokens
    assert running.counted("m3_visual_tokens_finest_total") == 576
    assert running.counted(f'm3_focus_decisions_total{{focus="{SMALL}"}}') == 2
    assert running.counted('m3_decisions_total{reason="predicted",scale="9"}') == 2
    (record,) = running.records()
    space = running.service.encoder._router.current.space
    assert (record["actions"], record["action_space"]) == ([SMALL], space.hash)
    assert (record["cells"], record["scale"]) == ([told["cells"]], 9)
    assert (record["visual_tokens"], record["scales"]) == (tokens, [9])
    assert len(record["p_suffices"]) == 5  # of the checkpoint's scales


def test_a_stream_tells_it_at_both_ends(start: Any, ask_body: Body) -> None:
    running = start(WIDE, tokens_per_part=1)
    whole = running.post(ask_body()).json()
    body = ask_body(stream=True, stream_options={"include_usage": True})
    events = running.post(body).text.split("\n\n")
    chunks = [json.loads(e.removeprefix("data: ")) for e in events if e.startswith("data: {")]
    told = [chunk["routing"]["focus"] for chunk in chunks if "routing" in chunk]
    assert told == [whole["routing"]["focus"]] * 2
    text = "".join(c["delta"].get("content") or "" for e in chunks for c in e["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    image = chunks[-1]["usage"]["prompt_tokens_details"]["image_tokens"]
    assert image == told[0]["visual_tokens"] == 36 + 4 * len(told[0]["cells"])


def test_who_is_read_at_one_scale(start: Any, ask_body: Body) -> None:
    running = start(SMALL)
    for more, scales in (
        ({"routing": {"focus": False}}, [576]),  # the next that suffices
        ({"routing": {"scale": 9}}, [9]),
        ({"model": "m3-36"}, [36]),
        ({"detail": "high"}, [144]),
        ({"routing": {"scale": 9, "explain": True}}, [9]),
        ({"seeds": (0, 1)}, [576, 576]),
        ({"seeds": ()}, []),
    ):
        routing = running.routing(ask_body(**more))
        assert (routing["scales"], "focus" in routing) == (scales, False), more
        assert routing.get("action") == (str(*scales) if len(scales) == 1 else None), more
        assert routing["visual_tokens"] == sum(scales)
    assert running.counted(f'm3_focus_decisions_total{{focus="{SMALL}"}}') == 0
    for path in (CHAT, "/v1/route"):
        reply = running.post(ask_body(model="m3-9", routing={"focus": True}), path)
        error = reply.json()["error"]
        assert (reply.status_code, error["param"]) == (400, "routing.focus")
        assert (error["code"], error["type"]) == ("no_focus", "invalid_request_error")
    assert "focus" in running.routing(ask_body(routing={"focus": True}))


def test_a_cap_is_kept_to_the_token(start: Any, ask_body: Body) -> None:
    running = start(WIDE)
    tokens = running.routing(ask_body(), "/v1/route")["visual_tokens"]
    assert 144 < tokens < 576
    for cap, reason in ((tokens, "predicted"), (tokens - 1, "budget_cap")):
        routing = running.routing(ask_body(routing={"max_visual_tokens": cap}))
        assert (routing["reason"], routing["visual_tokens"] <= cap) == (reason, True)
        assert ("focus" in routing) is (reason == "predicted")


def test_the_context_is_a_cap_too(start: Any, ask_body: Body) -> None:
    running = start(WIDE, kv_tokens=400)
    usage = running.post(ask_body(), "/v1/route").json()["usage"]
    room = 399 - usage["prompt_tokens"]
    told = usage["prompt_tokens_details"]
    assert room > 0
    for words, fits in ((room // 2, True), (room + 40, False)):
        question = "What is it? " + "it " * words
        reply = running.post(ask_body(question), "/v1/route").json()
        assert reply["usage"]["prompt_tokens"] <= 399
        assert (reply["routing"]["visual_tokens"] == told["image_tokens"]) is fits
        assert reply["routing"]["reason"] == ("predicted" if fits else "budget_cap")


def looks(first: str, then: str | None) -> SecondLook:
    """A look that begins at an action and goes to another, or stays, whatever the answer is."""
    rows = []
    for start, name in enumerate(NAMES[:-1]):
        stays = 9.0 if then is None or name != first else -9.0
        wanted = [Gate(0.0, 0.0, 0.0, 5.0 if each == then else -9.0) for each in NAMES[start + 1 :]]
        rows.append((Gate(0.0, 0.0, 0.0, stays), *wanted))
    return SecondLook(NAMES, tuple(rows), start_price=0.1, price=0.01)


def test_a_second_look_goes_from_a_focus_to_a_wider_one(start: Any, ask_body: Body) -> None:
    running = start(SMALL, looks(SMALL, WIDE))
    reply = running.post(ask_body(routing={"explain": True})).json()
    routing = reply["routing"]
    first, second = routing["second_look"]["focus"], routing["focus"]
    assert (first["coarse"], first["fine"], second["coarse"], second["fine"]) == (9, 144, 36, 576)
    assert (routing["scale"], routing["second_look"]["from"]) == (36, 9)
    assert routing["action"] == WIDE
    read = first["visual_tokens"], second["visual_tokens"]
    assert read == (9 + 4 * len(first["cells"]), 36 + 4 * len(second["cells"]))
    told = routing["second_look"]
    assert (told["first_visual_tokens"], told["second_visual_tokens"]) == read
    assert routing["visual_tokens"] == sum(read)
    assert reply["usage"]["prompt_tokens_details"]["image_tokens"] == sum(read)
    assert running.counted("m3_visual_tokens_total") == sum(read)
    assert running.counted('m3_second_looks_total{outcome="escalated"}') == 1
    assert routing["explain"]["scale"] == SMALL
    (record,) = running.records()
    assert (record["actions"], record["cells"]) == ([WIDE], [second["cells"]])
    assert (record["escalated_from"], record["visual_tokens"]) == (9, sum(read))


def test_a_second_look_goes_from_a_focus_to_the_anchor_and_a_cap_holds_for_both(
    start: Any, ask_body: Body
) -> None:
    running = start(SMALL, looks(SMALL, "576"))
    routing = running.routing(ask_body())
    first = routing["second_look"]["focus"]["visual_tokens"]
    assert (routing["scale"], routing["visual_tokens"]) == (576, 576 + first)
    assert "focus" not in routing
    capped = running.routing(ask_body(routing={"max_visual_tokens": 575 + first}))
    assert (capped["visual_tokens"], "second_look" in capped) == (first, False)
    declined = running.routing(ask_body(routing={"focus": False}))
    assert (declined["scales"], "second_look" in declined) == ([576], False)


def test_usage_counts_what_the_engine_really_reads(
    start: Any, ask_body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two looks, with nothing at hand, then with another reading's coarse tokens, then with all."""
    running = start(SMALL, looks(SMALL, WIDE))
    packed, passes = running.service.generator._engine._packed, []
    run = packed.launch

    def counted(chunks: list[tuple[Any, int]]) -> Any:
        passes.extend(new for _, new in chunks)
        return run(chunks)

    monkeypatch.setattr(packed, "launch", counted)
    cached = []
    for more in ({}, {"routing": {"scale": 36}}, {"question": "And?"}, {"question": "And?"}):
        passes.clear()
        reply = running.post(ask_body(**{"question": "What is it?", **more})).json()
        usage, looked = reply["usage"], 1 + ("second_look" in reply["routing"])
        assert reply["choices"][0]["finish_reason"] == "length"
        at_hand = usage["prompt_tokens_details"]["cached_tokens"]
        answers = usage["completion_tokens"] - looked  # the last token of each is not read
        assert sum(passes) == usage["prompt_tokens"] - at_hand + answers
        cached.append(at_hand)
    assert cached[0] == 0 < cached[1] < cached[2] <= cached[3]


def test_who_leaves_between_two_looks_is_charged_for_one(
    start: Any, ask_body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(SMALL, looks(SMALL, WIDE))
    gateway = running.service.gateway
    reached = asyncio.Event()

    async def waits(_: PoolRequest) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(running.service.encoder, "pool", waits)

    async def leave() -> None:
        asked = ChatRequest.model_validate(ask_body())
        answer = asyncio.create_task(gateway.complete(asked, Call("r")))
        await reached.wait()
        answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer

    asyncio.run(leave())
    (record,) = running.records()
    assert (record["status"], record["actions"]) == ("cancelled", [SMALL])
    assert running.counted("m3_visual_tokens_total") == record["visual_tokens"] < 58
    assert running.service.generator._engine.stats().running == 0


def test_what_travels_to_the_gateway_decides_there_too(start: Any, picture_bytes: Any) -> None:
    """A deep copy takes values apart and together as the way between replicas does."""
    encoder = start(SMALL, looks(SMALL, WIDE)).service.encoder
    asked = EncodeRequest((picture_bytes(),), "What?", Constraints(second_look=True))
    sent = asyncio.run(encoder.encode_and_route(asked))
    come = copy.deepcopy(sent)
    assert come.decision == sent.decision
    reading = come.decision.open_look.escalate(0.5)
    assert (reading.action, reading) == (WIDE, sent.decision.open_look.escalate(0.5))
    request = PoolRequest(come.picture_ids[0], picture_bytes(), reading)
    tokens = asyncio.run(encoder.pool(copy.deepcopy(request)))
    assert len(tokens) == reading.visual_tokens


def test_a_raised_price_weighs_what_a_focus_really_reads(start: Any, picture_bytes: Any) -> None:
    encoder = start(SMALL).service.encoder
    for floor, action, reason in ((0.2, SMALL, "predicted"), (1e3, "1", "degraded")):
        asked = EncodeRequest((picture_bytes(),), "What?", Constraints(price_floor=floor))
        decision = asyncio.run(encoder.encode_and_route(asked)).decision
        assert (decision.readings[0].action, decision.reason.value) == (action, reason)


def test_a_router_that_dies_of_a_focus_costs_tokens(
    start: Any, ask_body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(SMALL)

    def fails(*_: object) -> None:
        raise FloatingPointError("no cells")

    monkeypatch.setattr(ActionSpace, "plan", fails)
    routing = running.routing(ask_body())
    assert (routing["scale"], routing["reason"], "focus" in routing) == (576, "fallback", False)
    capped = running.routing(ask_body(routing={"max_visual_tokens": 100}))
    assert (capped["scale"], capped["visual_tokens"]) == (36, 36)


def test_the_answer_is_the_models_own(
    start: Any, ask_body: Body, tiny_model: Path, picture_bytes: Any
) -> None:
    reply = start(WIDE).post(ask_body(seeds=(5,))).json()
    told = reply["routing"]["focus"]
    model = M3ForConditionalGeneration.from_pretrained(tiny_model).eval()
    processor = M3Processor.from_pretrained(tiny_model)
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    ids = processor.prompt_ids([{"role": "user", "content": content}])
    with torch.inference_mode():
        out = model.generate(
            input_ids=torch.tensor([ids]),
            pixel_values=processor.pixel_values(Image.open(io.BytesIO(picture_bytes(5)))),
            scale=Focus(told["coarse"], told["fine"], tuple(told["cells"])),
            max_new_tokens=6,
        )
    assert reply["choices"][0]["message"]["content"].strip() == processor.decode(out[0]).strip()


def test_tokens_are_means_and_rows_of_the_grid(
    start: Any, tiny_model: Path, picture_bytes: Any
) -> None:
    model = M3ForConditionalGeneration.from_pretrained(tiny_model).eval()
    pixels = M3Processor.from_pretrained(tiny_model).pixel_values(
        Image.open(io.BytesIO(picture_bytes(5)))
    )
    with torch.no_grad():
        grid = model.encode_images(pixels)[0].numpy().reshape(24, 24, -1)
    encoder = start(WIDE).service.encoder
    asked = EncodeRequest((picture_bytes(5),), "What is it?", Constraints())
    encoded = asyncio.run(encoder.encode_and_route(asked))
    (reading,) = encoded.decision.readings
    coarse = grid.reshape(6, 4, 6, 4, -1).mean(axis=(1, 3)).reshape(36, -1)
    inside = np.zeros((24, 24), bool)
    for cell in reading.cells:
        row, column = divmod(cell, 12)
        inside[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = True
    wanted = np.concatenate([coarse, grid[inside]])
    assert encoded.visual_tokens[0].dtype == np.float16
    np.testing.assert_allclose(encoded.visual_tokens[0], wanted, rtol=1e-3, atol=1e-3)
    assert reading.fine is not None
    focus = Focus(reading.scale, reading.fine, reading.cells)
    models = focus_visual_tokens(torch.from_numpy(grid.reshape(576, -1)), focus)
    np.testing.assert_array_equal(encoded.visual_tokens[0], models.to(torch.float16).numpy())
    bare = replace(reading, cells=())  # nothing relevant: the coarse scale alone
    request = PoolRequest(encoded.picture_ids[0], picture_bytes(5), bare)
    np.testing.assert_array_equal(asyncio.run(encoder.pool(request)), encoded.visual_tokens[0][:36])
    request = PoolRequest(encoded.picture_ids[0], picture_bytes(5), reading)
    np.testing.assert_array_equal(asyncio.run(encoder.pool(request)), encoded.visual_tokens[0])
