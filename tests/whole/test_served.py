"""What the service answers is what is labelled: every audited request, asked again from the log.

One service of the tiny model with foci and a second look takes conversations with system prompts,
histories, stop strings and limits of all kinds; its log is labelled, and its decisions are made
again from their records.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pyarrow.parquet as pq
import pytest
from PIL import Image

from m3model import M3Processor
from m3model.engine.recipe import label_recipe_hash
from router import Router, SecondLook, constraints_from_json
from router.log import read_log
from router.records import DecisionRecord, OracleRecord, from_table
from router.second_look import Gate
from serve.gateway.question import parse_request
from serve.in_process import compose
from serve.protocol import ChatRequest
from serve.settings import ServeSettings
from training.evaluation.served import seen_in, served_again
from training.finetune.conversations import conversation_ids
from training.oracle.collection import collect
from training.oracle.data import read_oracle
from training.oracle.labelling import Labeller
from training.oracle.manifest import read_manifest
from training.scoring import exact_match
from training.sources.llava import LlavaRecord, Turn
from training.sources.log import log_source
from training.sources.tasks import Ask

SCALES = (1, 9, 36, 144, 576)
CHAT = "/v1/chat/completions"
# It stays where the first answer is sure, and else goes to 144.
LOOK = [Gate(0.0, 0.0, 2.0, 20.0), Gate(0.0, 0.0, 0.0, -9.0), Gate(0.0, 0.0, 0.0, 2.0)]


def look(space: Any) -> SecondLook:
    rows = tuple(
        (LOOK[0], *(LOOK[2] if name == "144" else LOOK[1] for name in space.names[start + 1 :]))
        for start in range(len(space) - 1)
    )
    return SecondLook(space.names, rows, start_price=0.4, price=0.01)


@dataclass(frozen=True)
class Served:
    """What was asked and answered, the log, and the router that decided."""

    bodies: list[dict[str, Any]]
    replies: list[dict[str, Any]]
    log: Path
    router: Router

    def records(self) -> list[DecisionRecord]:
        rows = from_table(read_log(self.log).decisions, DecisionRecord)
        order = [f"r{number}" for number in range(len(self.bodies))]
        return sorted(rows, key=lambda row: order.index(row.request_id))


def picture(data: bytes) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def turned(data: bytes) -> bytes:
    """The same file, to be turned as EXIF says."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.open(io.BytesIO(data)).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


def bodies(picture_bytes: Callable[..., bytes]) -> list[dict[str, Any]]:
    """Conversations about a few pictures; no two alike, many with one last question."""
    shown = [
        picture(picture_bytes(0)),
        picture(turned(picture_bytes(1))),
        picture(picture_bytes(2)),
    ]
    what = {"type": "text", "text": "What color is the circle?"}
    made = []
    for number, part in enumerate(shown):
        user = {"role": "user", "content": [part, what]}
        made += [
            {"messages": [user], "max_tokens": 6},
            {"messages": [user], "max_tokens": 2},
            {"messages": [{"role": "system", "content": "Say yes."}, user], "max_tokens": 5},
            {"messages": [{"role": "developer", "content": "Say no."}, user]},
            {
                "messages": [
                    {"role": "user", "content": [part, {"type": "text", "text": "Which word?"}]},
                    {"role": "assistant", "content": "star"},
                    {"role": "user", "content": "Which color?"},
                ],
                "max_completion_tokens": 4 + number,
            },
            {
                "messages": [
                    {"role": "user", "content": "Hello, count the bars."},
                    {"role": "assistant", "content": [{"type": "text", "text": "three"}]},
                    user,
                ],
                "max_tokens": 7,
                "routing": {"second_look": False},
            },
            {"messages": [user], "max_tokens": 6, "routing": {"max_visual_tokens": 40}},
            {"messages": [user], "max_tokens": 6, "routing": {"focus": False, "explain": True}},
            {"messages": [user], "max_tokens": 3, "model": "m3-9"},
            {"messages": [user], "max_tokens": 4, "temperature": 0.7, "seed": 3},
        ]
    return made


def answers(settings: ServeSettings, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a service says, one after the other."""
    service = compose(settings)

    async def ask() -> list[dict[str, Any]]:
        transport = httpx2.ASGITransport(app=service.api)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            replies = []
            for number, body in enumerate(asked):
                headers = {"x-request-id": f"r{number}"}
                replies.append((await http.post(CHAT, json=body, headers=headers)).json())
        await service.stop()
        return replies

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def served(
    tiny_model: Path, make_focus_router: Callable[..., Router], picture_bytes: Callable[..., bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> Served:  # fmt: skip
    folder = tmp_path_factory.mktemp("served")
    plain = make_focus_router(folder / "plain", "9+144@500x12")
    router = make_focus_router(folder / "router", "9+144@500x12", look(plain.space))
    settings = ServeSettings(
        model=tiny_model, router=folder / "router", registry=None, log_dir=folder / "log",
        log_images=True, default_max_tokens=5,
    )  # fmt: skip
    asked = bodies(picture_bytes)
    said = answers(settings.model_copy(update={"log_dir": None}), asked)
    # A stop string that the model does say, in the middle of an answer.
    stops = []
    for body, reply in zip(asked, said, strict=True):
        words = reply["choices"][0]["message"]["content"].split()
        if len(words) > 2 and "temperature" not in body:
            stops.append({**body, "stop": ["never said", words[1]]})
    assert len(stops) > 8
    asked += stops
    return Served(asked, answers(settings, asked), folder / "log", router)


@pytest.fixture(scope="module")
def oracle(served: Served, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("oracle") / "served"
    collect(log_source(served.log), tiny_model, out, workers=1, space=served.router.space)
    return out


def rows(oracle: Path) -> dict[str, OracleRecord]:
    files = sorted(oracle.glob("oracle-*.parquet"))
    found = [row for path in files for row in from_table(pq.read_table(path), OracleRecord)]
    return {row.question_id: row for row in found}


def test_a_record_keeps_what_was_asked_and_under_which_wishes(
    served: Served, tiny_model: Path
) -> None:
    records = served.records()
    assert len(records) == len(served.bodies)
    recipe = label_recipe_hash(tiny_model, "float32")
    for body, record in zip(served.bodies, records, strict=True):
        limit = body.get("max_completion_tokens", body.get("max_tokens", 5))
        assert (record.max_tokens, record.label_recipe) == (limit, f"{recipe}-{limit}")
        assert record.temperature == pytest.approx(body.get("temperature", 0.0))
        assert (record.arm, record.group_id, record.certificate) == ("live", None, None)
        held_to = constraints_from_json(record.constraints or "")
        routing = body.get("routing", {})
        assert held_to.max_visual_tokens == routing.get("max_visual_tokens")
        assert held_to.focus is routing.get("focus", True)
        assert held_to.pinned == (9 if body.get("model") == "m3-9" else None)
        assert held_to.second_look is record.second_look
        messages = json.loads(record.messages or "")
        assert [m["role"].replace("developer", "system") for m in body["messages"]] == [
            m["role"].replace("developer", "system") for m in messages
        ]
        shown = [part for m in messages if isinstance(m["content"], list) for part in m["content"]]
        names = [part["picture_id"] for part in shown if part["type"] == "image"]
        assert tuple(names) == record.picture_ids
        assert messages[-1].get("stop") == body.get("stop")
        assert "base64" not in (record.messages or "")
    assert {record.escalated_from is None for record in records} == {True, False}
    assert {record.actions for record in records} > {("144",), ("9+144@500x12",)}


def test_the_action_that_answered_gives_its_answer_again(served: Served, oracle: Path) -> None:
    found = rows(oracle)
    greedy = 0
    for record in served.records():
        row = found.get(record.request_id)
        if row is None:  # an equal request came before it
            continue
        at = served.router.space.index((record.actions or ("",))[0])
        again = row.answers[at]
        assert row.label_recipe == record.label_recipe
        if record.temperature:
            continue
        greedy += 1
        assert exact_match(again, record.answer or ""), record.request_id
        assert row.confidence[at] == pytest.approx(record.confidence, rel=1e-3)
    assert greedy > 30
    counts = read_manifest(oracle)["counts"]
    logged, given = (
        counts[f"logged answers {what}"]
        for what in ("of an action that was run again", "that it gave again")
    )
    assert logged == len(found)
    assert given >= greedy


def test_conversations_with_one_last_question_are_several(served: Served, oracle: Path) -> None:
    """Asked alone, the last messages would be one question about each picture."""
    found = list(rows(oracle).values())
    data = read_oracle([oracle])
    assert len(data) == len(found)
    same = [row for row in found if row.question == "What color is the circle?"]
    assert len({row.answers for row in same}) > len({row.picture_id for row in same})
    assert data.label_recipe == "-".join(str(same[0].label_recipe).split("-")[:2])


def test_one_prompt_for_service_labels_and_training(served: Served, tiny_model: Path) -> None:
    """Of a question about a picture, and of a turn behind others."""
    processor, labeller = M3Processor.from_pretrained(tiny_model), Labeller(tiny_model)
    turns = (Turn("Which word?", "star"), Turn("Which color?", "red"))
    for body, known in ((served.bodies[0], turns[:0]), (served.bodies[4], turns[:1])):
        parsed = parse_request(ChatRequest.model_validate(body), SCALES, ServeSettings())
        prompt = processor.prompt_ids(parsed.messages)
        ask = Ask(parsed.question, messages=parsed.messages)
        assert labeller._question(ask).prompt_ids == prompt
        if not known:
            assert labeller._question(Ask(parsed.question)).prompt_ids == prompt
        asked = (*known, Turn(parsed.question, "red"))
        record = LlavaRecord("7", tiny_model, asked, "", "")
        ids, labels = conversation_ids(processor, record, 1000)
        answer = processor.answer_ids(parsed.messages, "red")
        assert ids == prompt + answer
        assert labels[-len(answer) :] == answer


def test_a_log_is_decided_again_to_the_last_action(served: Served, oracle: Path) -> None:
    seen = seen_in(rows(oracle).values(), served.router)
    found = served_again(served.router, served.records(), seen)
    assert (found.differing, dict(found.left_out)) == ([], {})
    assert found.same == len(served.bodies)
    # It is the constraints and the confidence that decide: without them it comes out otherwise.
    free = [replace(record, constraints="{}") for record in served.records()]
    assert len(served_again(served.router, free, seen).differing) > 5


def test_replay_says_how_many_decisions_it_takes_again(
    served: Served, oracle: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    router, log, out = served.log.parent / "router", served.log, tmp_path / "rows.json"
    words = ["m3-train", "replay", "--split", "all", "--resamples", 100, "--log", log]
    done = command(*words, "--oracle", oracle, "--router", router, "--json", out)
    assert done.returncode == 0, done.stderr
    all_of_them = f"{len(served.bodies)} of {len(served.bodies)} logged decisions are taken again"
    assert all_of_them in done.stderr
    assert "warning" not in done.stderr
    told = json.loads(out.read_text())["served_again"][str(router)]
    assert (told["same"], told["differing"]) == (len(served.bodies), 0)
    done = command(*words, "--oracle", oracle, "--policy", "finest")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "--log needs --router DIR" in done.stderr
