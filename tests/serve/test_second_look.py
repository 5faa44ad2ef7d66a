"""A second look through the whole service in one process: who gets one, what it costs and says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pyarrow.parquet as pq
import pytest

from router import Router, SecondLook
from router.second_look import Gate
from serve.client.wire import chat_body, parse_answer
from serve.errors import NotReady, ReplicaDied
from serve.gateway.call import Call
from serve.in_process import compose
from serve.protocol import ChatRequest
from serve.settings import ServeSettings
from serve.stages.messages import AnswerPart, GenerateRequest

Body = Callable[..., dict[str, Any]]
SCALES = (1, 9, 36, 144, 576)
CHAT = "/v1/chat/completions"
NEVER, ALWAYS = Gate(0.0, 0.0, 0.0, 9.0), Gate(0.0, 0.0, 0.0, -9.0)


@pytest.fixture(autouse=True)
def tries_follow_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.gateway.gateway.RETRY_WAIT_S", 0.005)


def gates(itself: Gate) -> SecondLook:
    """A look that stays or goes to 144, whatever the answer is; first looks are at 9 or coarser."""
    finer = {scale: Gate(0.0, 0.0, 0.0, 2.0 if scale == 144 else -2.0) for scale in SCALES}
    rows = tuple((itself, *(finer[scale] for scale in SCALES[start + 1 :])) for start in range(4))
    return SecondLook(tuple(map(str, SCALES)), rows, start_price=1e6, price=0.01)


@dataclass
class Running:
    """A composed service and its log folder."""

    service: Any
    log_dir: Path

    def post(self, body: dict[str, Any], path: str = CHAT) -> httpx2.Response:
        async def run() -> httpx2.Response:
            transport = httpx2.ASGITransport(app=self.service.api)
            async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
                return await http.post(path, json=body)

        return asyncio.run(run())

    def records(self) -> list[dict[str, Any]]:
        self.service.gateway.log.close()
        files = sorted(self.log_dir.rglob("*.parquet"))
        rows = [row for file in files for row in pq.read_table(file).to_pylist()]
        return [row for row in rows if "scale" in row]

    def counted(self, name: str) -> dict[str, float]:
        text = asyncio.run(self.service.gateway.metrics.text())
        lines = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(name)]
        values = {key: float(value) for key, value in lines if "_created" not in key}
        return {key: value for key, value in values.items() if value or "{" not in key}


@pytest.fixture
def start(
    tiny_model: Path, make_router: Callable[[Path, int], str], tmp_path: Path
) -> Iterator[Callable[..., Running]]:
    """Starts a service whose router starts at 1, and escalates to 144 always, never or not."""
    made: list[Any] = []

    def make(look: SecondLook | None, **settings: Any) -> Running:
        make_router(tmp_path / "plain", 36)
        plain = Router.from_pretrained(tmp_path / "plain")
        router = Router(plain.predictor, plain.schema, plain.policy, second_look=look)
        router.save_pretrained(tmp_path / "router")
        wanted = ServeSettings(
            model=tiny_model, router=tmp_path / "router", registry=None, log_dir=tmp_path / "log",
            **settings,
        )  # fmt: skip
        made.append(compose(wanted))
        return Running(made[-1], tmp_path / "log")

    yield make
    for each in made:
        each.encoder.close()
        each.generator.close()
        each.gateway.log.close()


def test_an_unsure_answer_is_asked_again_and_both_are_counted(start: Any, ask_body: Body) -> None:
    running = start(gates(ALWAYS))
    fine = running.post(ask_body(routing={"scale": 144})).json()
    coarse = running.post(ask_body(routing={"scale": 1})).json()
    body = running.post(ask_body()).json()
    assert body["choices"] == fine["choices"]
    routing, usage = body["routing"], body["usage"]
    assert (routing["scale"], routing["visual_tokens"], routing["reason"]) == (
        144, 145, "predicted",
    )  # fmt: skip
    told = routing["second_look"]
    assert (told["from"], told["first_visual_tokens"], told["second_visual_tokens"]) == (1, 1, 144)
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert usage[name] == fine["usage"][name] + coarse["usage"][name]
    assert usage["prompt_tokens_details"]["image_tokens"] == 145
    first, second = running.counted("m3_second_looks"), running.counted("m3_picture_cache")
    assert first == {'m3_second_looks_total{outcome="escalated"}': 1.0}
    # Three requests, one picture: one encode, and the second look does not even decode it.
    assert second == {
        'm3_picture_cache_total{outcome="miss"}': 1.0, 'm3_picture_cache_total{outcome="hit"}': 2.0,
    }  # fmt: skip
    assert running.counted("m3_visual_tokens_total") == {"m3_visual_tokens_total": 290.0}
    assert running.counted("m3_second_look_encodes_total") == {"m3_second_look_encodes_total": 0.0}
    pinned, *_, record = sorted(running.records(), key=lambda row: row["time_utc"])
    assert (record["scale"], record["visual_tokens"], record["escalated_from"]) == (144, 145, 1)
    said = routing["second_look"]["confidence"]
    assert record["first_confidence"] == pytest.approx(said, abs=1e-6)
    assert (pinned["escalated_from"], pinned["first_confidence"]) == (None, None)
    assert record["confidence"] == pytest.approx(pinned["confidence"], rel=1e-4)


def test_the_explanation_is_that_of_the_first_look(start: Any, ask_body: Body) -> None:
    running = start(gates(ALWAYS))
    for wish in ({}, {"stream": True}):
        text = running.post(ask_body(routing={"explain": True}, **wish)).text
        events = [e.removeprefix("data: ") for e in text.split("\n\n") if e.startswith("data: {")]
        routing = json.loads(events[-1] if events else text)["routing"]
        sure = f"{100 * routing['second_look']['confidence']:.0f} % sure"
        explain = routing["explain"]
        assert (routing["scale"], explain["scale"]) == (144, 1)
        assert explain["sentence"].startswith("The router first chose 1 at the price 1e+06; ")
        assert explain["sentence"].endswith(f"{sure}, and a second look read 144.")
    kept = start(gates(NEVER)).post(ask_body(routing={"explain": True})).json()["routing"]
    assert kept["explain"]["sentence"].startswith("The router chose 1 at the price 1e+06; ")


def test_the_confidence_is_that_of_the_first_answer_alone(start: Any, ask_body: Body) -> None:
    running = start(gates(ALWAYS))
    said = running.post(ask_body()).json()["routing"]["second_look"]["confidence"]
    running.post(ask_body(routing={"scale": 1}))
    alone = sorted(running.records(), key=lambda row: row["time_utc"])[-1]
    assert alone["confidence"] == pytest.approx(said, rel=1e-3, abs=1e-6)


def test_a_stream_holds_the_first_answer_back(start: Any, ask_body: Body) -> None:
    running = start(gates(ALWAYS), tokens_per_part=1)
    whole = running.post(ask_body()).json()
    options = {"include_usage": True}
    events = running.post(ask_body(stream=True, stream_options=options)).text.split("\n\n")
    chunks = [json.loads(e.removeprefix("data: ")) for e in events if e.startswith("data: {")]
    text = "".join(c["delta"].get("content") or "" for e in chunks for c in e["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert len(chunks) > 4  # the second answer comes in parts
    assert chunks[0]["routing"]["second_look"]["from"] == 1
    # Both looks of the second request find the pictures of the first one's.
    both, text_tokens = 144 + 1, whole["usage"]["prompt_tokens_details"]["text_tokens"]
    details = chunks[-1]["usage"]["prompt_tokens_details"]
    assert both < details.pop("cached_tokens") < both + text_tokens
    assert whole["usage"]["prompt_tokens_details"].pop("cached_tokens") == 0
    assert chunks[-1]["usage"] == whole["usage"]


@pytest.mark.parametrize(("gate", "scale"), [(ALWAYS, 144), (NEVER, 1)])
def test_logprobs_are_those_of_the_answer_that_counts(
    start: Any, ask_body: Body, gate: Gate, scale: int
) -> None:
    running = start(gates(gate))
    wish = {"logprobs": True, "top_logprobs": 2}
    counting = running.post(ask_body(**wish, routing={"scale": scale})).json()["choices"][0]
    looked = running.post(ask_body(**wish)).json()["choices"][0]
    assert looked["message"] == counting["message"]
    mine, theirs = (choice["logprobs"]["content"] for choice in (looked, counting))
    assert [token["bytes"] for token in mine] == [token["bytes"] for token in theirs]
    assert [token["logprob"] for token in mine] == pytest.approx(
        [token["logprob"] for token in theirs], abs=1e-4
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_sure_answer_is_kept(start: Any, ask_body: Body, stream: bool) -> None:
    running = start(gates(NEVER))
    pinned = running.post(ask_body(routing={"scale": 1}, stream=stream))
    kept = running.post(ask_body(routing={"second_look": True}, stream=stream))
    assert "second_look" not in kept.text
    assert running.counted("m3_second_looks") == {'m3_second_looks_total{outcome="kept"}': 1.0}
    if not stream:
        assert kept.json()["choices"] == pinned.json()["choices"]
        for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
            assert kept.json()["usage"][name] == pinned.json()["usage"][name]
        assert kept.json()["routing"]["scale"] == 1


def test_who_gets_no_second_look(start: Any, ask_body: Body) -> None:
    running = start(gates(ALWAYS))
    for more in (
        {"routing": {"second_look": False}},
        {"routing": {"scale": 9}},
        {"model": "m3-9"},
        {"detail": "low"},
        {"routing": {"max_visual_tokens": 9}},  # caps the sum: nothing finer is left
        {"temperature": 0.7},
        {"n": 2},
        {"seeds": (0, 1)},
        {"seeds": ()},
    ):
        reply = running.post(ask_body(**more))
        assert reply.status_code == 200, more
        assert "second_look" not in reply.json()["routing"], more
    assert running.counted("m3_second_looks").get('m3_second_looks_total{outcome="escalated"}') is (
        None
    )
    decided = running.post(ask_body(routing={"second_look": False})).json()["routing"]
    assert decided["scale"] == 36  # at the router's own price, not the start price
    capped = running.post(ask_body(routing={"max_visual_tokens": 144})).json()["routing"]
    assert (capped["scale"], capped["visual_tokens"]) == (9, 10)  # 1 + 144 would break the cap
    assert running.post(ask_body(), "/v1/route").json()["routing"]["scale"] == 1


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"routing": {"second_look": True, "scale": 9}}, "pinned"),
        ({"routing": {"second_look": True}, "model": "m3-9"}, "pinned"),
        ({"routing": {"second_look": True}, "temperature": 1.0}, "greedy"),
        ({"routing": {"second_look": True}, "seeds": (0, 1)}, "one picture"),
        ({"routing": {"second_look": True}, "seeds": ()}, "one picture"),
        ({"routing": {"second_look": True, "max_harm": 0.1}}, "max_harm"),
    ],
)
def test_what_cannot_be_had_is_refused(
    start: Any, ask_body: Body, more: dict[str, Any], says: str
) -> None:
    reply = start(gates(ALWAYS)).post(ask_body(**more))
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, "routing.second_look")
    assert error["code"] == "no_second_look"
    assert says in error["message"]


def test_a_router_without_one_refuses_to_promise_it(start: Any, ask_body: Body) -> None:
    running = start(None)
    for path in (CHAT, "/v1/route"):
        reply = running.post(ask_body(routing={"second_look": True}), path)
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "no_second_look")
    assert running.post(ask_body(routing={"second_look": False})).json()["routing"]["scale"] == 36


def test_a_forgotten_picture_is_encoded_again_and_counted(start: Any, ask_body: Body) -> None:
    running = start(gates(ALWAYS), encoder_cache_bytes=0)
    assert running.post(ask_body()).json()["routing"]["scale"] == 144
    assert running.counted("m3_second_look_encodes_total") == {"m3_second_look_encodes_total": 1.0}
    assert running.counted("m3_picture_cache") == {'m3_picture_cache_total{outcome="miss"}': 2.0}


class Failing:
    """The generator, which refuses from the second request on; or dies once and recovers."""

    def __init__(self, generator: Any, error: type[Exception], times: int) -> None:
        self.generator, self.error, self.times, self.calls = generator, error, times, 0

    async def generate(self, request: GenerateRequest) -> AsyncIterator[AnswerPart]:
        self.calls += 1
        if 1 < self.calls <= 1 + self.times:
            raise self.error()
        async for part in self.generator.generate(request):
            yield part


@pytest.mark.parametrize(
    ("error", "times", "scale", "outcome"),
    [(NotReady, 9, 1, "failed"), (ReplicaDied, 1, 144, "escalated"), (ReplicaDied, 9, 1, "failed")],
)
def test_a_failing_second_look_leaves_the_first_answer(
    start: Any, ask_body: Body, error: type[Exception], times: int, scale: int, outcome: str
) -> None:
    running = start(gates(ALWAYS))
    gateway = running.service.gateway
    gateway._generator = Failing(gateway._generator, error, times)
    reply = asyncio.run(gateway.complete(ChatRequest.model_validate(ask_body()), Call("r")))
    assert (reply.routing.scale, reply.usage.completion_tokens > 0) == (scale, True)
    assert reply.routing.visual_tokens == (1 if scale == 1 else 145)
    assert running.counted("m3_second_looks") == {
        f'm3_second_looks_total{{outcome="{outcome}"}}': 1.0
    }


def test_the_client_asks_for_it_and_tells_it(start: Any, picture_bytes: Any) -> None:
    body = chat_body(picture_bytes(), "What?", {"second_look": True, "max_tokens": 4})
    assert body["routing"] == {"second_look": True}
    reply = start(gates(ALWAYS)).post(body)
    answer = parse_answer(reply.json(), reply.headers, 0.0)
    assert (answer.scale, answer.visual_tokens) == (144, 145)
    assert answer.second_look is not None
    assert answer.second_look["from"] == 1
