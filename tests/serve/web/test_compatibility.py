"""What OpenAI's clients send by themselves is understood: replies sent back, defaults, nulls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest

Body = Callable[..., dict[str, Any]]
URL = "/v1/chat/completions"
AND_THEN = {"role": "user", "content": "And what else?"}


@pytest.fixture(scope="module")
def sdk(running: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def http(running: Any) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=running.url, timeout=30) as client:
        yield client


def plain_turn(text: str | None) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "as_sent_back",
    [
        lambda message: message,
        lambda message: message.model_dump(),
        lambda message: message.model_dump(exclude_none=True),
        lambda message: message.to_dict(),
    ],
    ids=["message", "model_dump", "without nulls", "to_dict"],
)
def test_a_reply_is_sent_back_as_it_came(
    sdk: openai.OpenAI, ask_body: Body, as_sent_back: Callable[[Any], Any]
) -> None:
    body = ask_body()
    message = sdk.chat.completions.create(**body).choices[0].message
    asked = body["messages"]
    body["messages"] = [*asked, as_sent_back(message), AND_THEN]
    again = sdk.chat.completions.create(**body)
    body["messages"] = [*asked, plain_turn(message.content), AND_THEN]
    by_hand = sdk.chat.completions.create(**body)
    assert again.choices[0].message.content == by_hand.choices[0].message.content
    assert again.usage == by_hand.usage


def test_a_streamed_reply_is_sent_back_as_it_came(sdk: openai.OpenAI, ask_body: Body) -> None:
    body = ask_body()
    with sdk.chat.completions.stream(**body) as stream:
        for _ in stream:
            pass
        final = stream.current_completion_snapshot.choices[0].message
    body["messages"] += [final, AND_THEN]
    assert sdk.chat.completions.create(**body).choices[0].message.content
    # By hand: the deltas added up, as most examples do.
    pieces = sdk.chat.completions.create(**ask_body(), stream=True)
    whole = [piece.choices[0].delta.model_dump() for piece in pieces if piece.choices]
    delta = whole[0] | {"content": "".join(each["content"] or "" for each in whole)}
    assert delta["content"] == final.content
    body["messages"][1] = delta
    assert sdk.chat.completions.create(**body).choices[0].message.content


def test_a_cancelled_reply_is_an_empty_one(http: httpx2.Client, ask_body: Body) -> None:
    counted = []
    for turn in (plain_turn(None), plain_turn(""), plain_turn(None) | {"tool_calls": []},
                 {"role": "assistant"}):  # fmt: skip
        body = ask_body()
        body["messages"] += [turn, AND_THEN]
        reply = http.post(URL, json=body)
        assert reply.status_code == 200, reply.text
        counted.append(reply.json()["usage"]["prompt_tokens"])
    assert len(set(counted)) == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tool_calls", [{"id": "a", "type": "function", "function": {"name": "f"}}]),
        ("function_call", {"name": "f", "arguments": "{}"}),
        ("refusal", "I cannot."),
        ("audio", {"id": "a"}),
        ("annotations", [{"type": "url_citation"}]),
        ("reasoning_content", "First, ..."),
    ],
)
def test_what_a_turn_says_besides_text_is_refused_by_name(
    http: httpx2.Client, ask_body: Body, field: str, value: Any
) -> None:
    body = ask_body()
    body["messages"] += [plain_turn("a dog") | {field: value}, AND_THEN]
    reply = http.post(URL, json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, f"messages.1.{field}")


@pytest.mark.parametrize(
    "extra",
    [
        {"tools": [], "tool_choice": "auto"}, {"tools": None, "tool_choice": "none"},
        {"stream": None, "n": None, "store": None, "logprobs": False, "top_logprobs": 0},
        {"stream": False, "stream_options": None},
        {"stream": True, "stream_options": {"include_usage": None, "continuous_usage_stats": None}},
        {"verbosity": "medium", "reasoning_effort": "none", "stop": [], "logit_bias": {}},
        {"model": None, "routing": {"explain": None, "scale": None}},
    ],
)  # fmt: skip
def test_what_asks_for_nothing_is_accepted(http: httpx2.Client, extra: dict[str, Any]) -> None:
    body = {"model": "m3-auto", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    reply = http.post(URL, json=body | extra)
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    ("field", "value"),
    [("tool_choice", "required"), ("verbosity", "high"), ("logit_bias", {"5": 1})],
)
def test_what_would_change_an_answer_is_refused_by_name(
    http: httpx2.Client, ask_body: Body, field: str, value: Any
) -> None:
    reply = http.post(URL, json=ask_body(**{field: value}))
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, field)


def test_a_load_generator_counts_tokens_as_they_come(sdk: openai.OpenAI, ask_body: Body) -> None:
    options: Any = {"include_usage": True, "continuous_usage_stats": True}
    body = ask_body(max_tokens=20)
    chunks = list(sdk.chat.completions.create(**body, stream=True, stream_options=options))
    usages = [chunk.usage for chunk in chunks]
    assert all(usages)
    counts = [usage.completion_tokens for usage in usages if usage]
    assert counts == sorted(counts)
    assert 0 < counts[0] < counts[-1]
    whole = sdk.chat.completions.create(**body)
    assert usages[-1] == whole.usage
    assert {usage.prompt_tokens for usage in usages if usage} == {whole.usage.prompt_tokens}


def test_a_picture_of_an_earlier_turn_is_routed_by_the_last_question(
    sdk: openai.OpenAI, ask_body: Body
) -> None:
    picture, first = ask_body("What is it?")["messages"][0]["content"]
    turns: list[Any] = [
        {"role": "user", "content": [picture, first]}, plain_turn("a dog"), AND_THEN
    ]  # fmt: skip
    shown_last: list[Any] = [AND_THEN, {"role": "user", "content": [picture]}]
    for messages in (turns, shown_last):
        reply = sdk.chat.completions.create(model="m3-auto", messages=messages, max_tokens=4)
        routing = reply.routing  # type: ignore[attr-defined]
        assert (routing["scale"], routing["reason"]) == (36, "predicted")
        assert reply.usage is not None
        assert reply.usage.model_dump()["prompt_tokens_details"]["image_tokens"] == 36
