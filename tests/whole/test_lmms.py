"""A task of lmms-eval is answered as the service answers it: word for word, token for token.

One service of the tiny model with foci and a second look is asked what an `Answerer` is asked.
"""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from router import SecondLook
from router.second_look import Gate
from serve.in_process import compose
from serve.settings import ServeSettings
from training.lmms.answering import Answered
from training.lmms.conversation import asked_of
from training.lmms.wishes import answerer_of

FOCUS = "9+144@500x12"
# It stays where the first answer is sure, and else goes to 144.
LOOK = [Gate(0.0, 0.0, 2.0, 20.0), Gate(0.0, 0.0, 0.0, -9.0), Gate(0.0, 0.0, 0.0, 2.0)]
LIMITS = (7, 2)  # of answers, in turn: after few tokens the model is surer
Conversation = list[dict[str, Any]]


@pytest.fixture(scope="module")
def router(make_focus_router: Callable[..., Any], tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("routed")
    space = make_focus_router(folder / "plain", FOCUS).space
    rows = tuple(
        (LOOK[0], *(LOOK[2] if name == "144" else LOOK[1] for name in space.names[start + 1 :]))
        for start in range(len(space) - 1)
    )
    look = SecondLook(space.names, rows, start_price=0.4, price=0.01)
    make_focus_router(folder / "router", FOCUS, look)
    return folder / "router"


@pytest.fixture(scope="module")
def conversations(picture_bytes: Callable[..., bytes]) -> list[Conversation]:
    """As a task tells them: one picture, two, none, a system text, an earlier turn."""
    shown = [
        {"type": "image", "url": Image.open(io.BytesIO(picture_bytes(seed)))} for seed in range(4)
    ]

    def said(text: str) -> dict[str, Any]:
        return {"type": "text", "text": text}

    def user(*parts: dict[str, Any]) -> dict[str, Any]:
        return {"role": "user", "content": list(parts)}

    asked = [user(part, said(text)) for part in shown for text in ("What is it?", "Which color?")]
    return [
        *([each] for each in asked),
        [{"role": "system", "content": [said("Say yes.")]}, asked[0]],
        [user(shown[0], said("Which word?")), {"role": "assistant", "content": [said("star")]},
         user(said("Which color?"))],
        [user(shown[1], shown[2], said("Are they alike?"))],
        [user(said("Hello, count the bars."))],
        [user(shown[3], said("это что")) ],  # a script that the router was not fitted on
    ]  # fmt: skip


def as_sent(conversation: Conversation, model: str, limit: int) -> dict[str, Any]:
    """The same as a request."""

    def part(told: dict[str, Any]) -> dict[str, Any]:
        if told["type"] == "text":
            return told
        file = io.BytesIO()
        told["url"].save(file, "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        return {"type": "image_url", "image_url": {"url": url}}

    messages = [
        {"role": said["role"], "content": [part(each) for each in said["content"]]}
        for said in conversation
    ]
    return {"model": model, "messages": messages, "max_tokens": limit, "stop": ["\n\n"]}


def served(settings: ServeSettings, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    service = compose(settings)

    async def ask() -> list[dict[str, Any]]:
        transport = httpx2.ASGITransport(app=service.api)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            said = [(await http.post("/v1/chat/completions", json=body)).json() for body in bodies]
        await service.stop()
        return said

    return asyncio.run(ask())


def answered(conversations: list[Conversation], **wishes: Any) -> list[Answered]:
    answerer = answerer_of(**wishes)
    asked = [
        asked_of(each, {"max_new_tokens": LIMITS[number % 2], "until": ["\n\n"]})
        for number, each in enumerate(conversations)
    ]
    # In two parts, as lmms-eval's batches come.
    found = answerer.answer(asked[:5]) + answerer.answer(asked[5:])
    answerer.close()
    return found


@pytest.mark.parametrize("wish", [9, 576, "auto"])
def test_answers_are_the_services(
    wish: int | str, conversations: list[Conversation], router: Path, tiny_model: Path
) -> None:
    settings = ServeSettings(model=tiny_model, router=router, registry=None, log_dir=None)
    bodies = [
        as_sent(each, f"m3-{wish}", LIMITS[number % 2]) for number, each in enumerate(conversations)
    ]
    replies = served(settings, bodies)
    more = {"router": str(router)} if wish == "auto" else {}
    mine = answered(conversations, pretrained=str(tiny_model), scale=wish, **more)
    for reply, found in zip(replies, mine, strict=True):
        assert found.text == reply["choices"][0]["message"]["content"].strip()
        usage = reply["usage"]
        assert found.told.visual_tokens == usage["prompt_tokens_details"]["image_tokens"]
        assert found.told.wish == str(wish)
    tokens = {found.told.visual_tokens for found in mine}
    if wish == "auto":  # foci, second looks, the finest, several pictures, none
        actions = {found.told.actions for found in mine}
        assert {(FOCUS,), ("144",), ("576",), ()} <= actions
        assert len(tokens) > 4
    else:
        assert tokens == {0, wish, 2 * int(wish)}


def test_a_focus_reads_what_labelling_reads(
    conversations: list[Conversation], tiny_model: Path, tmp_path: Path
) -> None:
    """The same cells and the same answer as a row of `collect` has for that focus."""
    import json

    import pyarrow.parquet as pq

    from router.records import OracleRecord, from_table
    from training.oracle.collection import collect
    from training.sources.llava import llava_source

    name, said = "36+144@350wx12", []
    for number in range(0, 8, 2):
        picture, text = conversations[number][0]["content"]
        picture["url"].save(tmp_path / f"{number}.png")
        turns = [{"from": "human", "value": f"<image>\n{text['text']}"},
                 {"from": "gpt", "value": "star"}]  # fmt: skip
        said.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (tmp_path / "data.json").write_text(json.dumps(said), encoding="utf-8")
    source = llava_source(tmp_path / "data.json", tmp_path)
    collect(source, tiny_model, tmp_path / "oracle", workers=1, max_new_tokens=7)
    rows = {
        row.picture_id: row
        for path in (tmp_path / "oracle").glob("*.parquet")
        for row in from_table(pq.read_table(path), OracleRecord)
    }
    asked = [each for each in conversations[:8:2] for _ in LIMITS]
    found = answered(asked, pretrained=str(tiny_model), focus=name)
    assert len(rows) == 4
    for each in found[:: len(LIMITS)]:
        row = rows[each.told.picture_ids[0]]
        at = (row.actions or ()).index(name)
        assert each.told.actions == (name,)
        assert each.told.visual_tokens == row.visual_tokens[at]
        assert each.text.split() == row.answers[at].split()
        assert each.told.confidence == pytest.approx(row.confidence[at], rel=1e-3)
