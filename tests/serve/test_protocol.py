"""The wire: what is honoured, what is refused, and how a request's wishes add up."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion as SDKCompletion
from openai.types.chat import ChatCompletionChunk as SDKChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from pydantic import ValidationError

from router.decision import Reason
from serve import protocol
from serve.errors import BadRequest, ServiceError, UnknownModel, as_sentence
from serve.gateway.question import parse_request, refused_knob
from serve.protocol import ChatRequest, RoutingRequest, model_ids
from serve.settings import ServeSettings

SCALES = (1, 9, 36, 144, 576)
PLAIN = {"messages": [{"role": "user", "content": "hi"}]}
Body = Callable[..., dict[str, Any]]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("top_logprobs", 5),
        ("tools", [{"type": "function"}]), ("functions", [{}]), ("function_call", {"name": "f"}),
        ("tool_choice", "required"), ("tool_choice", {"type": "function"}), ("verbosity", "low"),
        ("response_format", {"type": "json_object"}), ("logit_bias", {"5": 1}),
        ("frequency_penalty", 0.5), ("presence_penalty", -1), ("store", True),
        ("modalities", ["text", "audio"]), ("reasoning_effort", "high"), ("temprature", 0.5),
        ("stream_options", {"include_usage": True}), ("reasoning_effort", "minimal"),
        ("stream_options", {"continuous_usage_stats": True}), ("max_completion_tokens", 7),
    ],
)  # fmt: skip
def test_a_knob_that_would_be_ignored_is_refused_by_name(field: str, value: Any) -> None:
    more = {"max_tokens": 6} if field == "max_completion_tokens" else {}
    refused = refused_knob(ChatRequest.model_validate(PLAIN | more | {field: value}))
    assert refused is not None
    assert refused[0] in (field, "max_tokens")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 1), ("n", 2), ("logprobs", True), ("top_logprobs", 0),
        ("logprobs", False), ("logprobs", None), ("tools", []), ("store", False),
        ("response_format", {"type": "text"}), ("frequency_penalty", 0), ("presence_penalty", 0.0),
        ("user", "somebody"), ("metadata", {"a": "b"}), ("tool_choice", "none"),
        ("tool_choice", "auto"), ("function_call", "auto"), ("verbosity", "medium"),
        ("reasoning_effort", "none"), ("stop", []), ("logit_bias", {}), ("stream_options", {}),
        ("stream_options", {"include_usage": False, "continuous_usage_stats": False}),
        ("parallel_tool_calls", True), ("modalities", ["text"]), ("seed", 5),
        ("stop", ["a", "b"]), ("top_p", 0.5),
    ],
)  # fmt: skip
def test_a_knob_that_asks_for_nothing_or_is_honoured_passes(field: str, value: Any) -> None:
    assert refused_knob(ChatRequest.model_validate(PLAIN | {field: value})) is None


def test_fields_of_other_services_pass_where_the_operator_says_so() -> None:
    unknown = ChatRequest.model_validate(PLAIN | {"top_k": 40})
    assert refused_knob(unknown) == ("top_k", "Unknown field 'top_k'. Remove it.")
    assert refused_knob(unknown, strict=False) is None
    known = ChatRequest.model_validate(PLAIN | {"logit_bias": {"5": 1}})
    assert refused_knob(known, strict=False) == refused_knob(known)  # it would change the answer
    settings = ServeSettings(unknown_fields="ignore")
    assert parse_request(unknown, SCALES, settings) == parse_request(
        ChatRequest.model_validate(PLAIN), SCALES, settings
    )


def test_obfuscated_streams_are_refused_by_name() -> None:
    body = PLAIN | {"stream": True, "stream_options": {"include_obfuscation": True}}
    refused = refused_knob(ChatRequest.model_validate(body))
    assert refused is not None
    assert refused[0] == "stream_options.include_obfuscation"
    body = PLAIN | {"stream": True, "stream_options": {"include_obfuscation": False}}
    assert refused_knob(ChatRequest.model_validate(body)) is None


@pytest.mark.parametrize("value", [0, 0.0, 1, "false"])
def test_false_is_not_zero(value: object) -> None:
    body = PLAIN | {"stream": True, "stream_options": {"include_obfuscation": value}}
    with pytest.raises(ValidationError):
        ChatRequest.model_validate(body)


def test_null_means_not_given_for_every_field_that_the_sdk_knows() -> None:
    fields = CompletionCreateParamsStreaming.__annotations__.keys() - {"messages"}
    assert len(fields) > 30
    request = ChatRequest.model_validate_json(json.dumps(PLAIN | dict.fromkeys(fields)))
    assert refused_knob(request) is None
    assert request == ChatRequest.model_validate(PLAIN)


def test_null_means_not_given_within_objects(ask_body: Body) -> None:
    plain = ask_body(stream=True, stream_options={}, routing={"scale": 9})
    nulls = json.loads(json.dumps(plain))
    nulls["stream_options"] = dict.fromkeys(protocol.StreamOptions.model_fields)
    nulls["routing"] = dict.fromkeys(RoutingRequest.model_fields) | {"scale": 9}
    message = nulls["messages"][0]
    message["name"] = message["content"][0]["image_url"]["detail"] = None
    assert ChatRequest.model_validate_json(json.dumps(nulls)) == ChatRequest.model_validate(plain)
    told = {"request_id": "a", "score": 0.5, "reference": None}
    assert protocol.FeedbackRequest.model_validate(told).reference is None


@pytest.mark.parametrize(
    "more",
    [
        {"messages": []}, {"messages": "hi"}, {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user"}]}, {"messages": [{"role": "user", "content": None}]},
        {"model": 5}, {"temperature": "0"}, {"temperature": 2.5}, {"temperature": float("nan")},
        {"max_tokens": 0}, {"max_tokens": 1.5}, {"max_tokens": True}, {"top_p": 0},
        {"stop": ""}, {"stop": ["a"] * 5}, {"stop": 5}, {"seed": 2**63}, {"stream": "yes"},
        {"routing": {"scale": "9"}}, {"routing": {"scales": 9}}, {"routing": 9},
        {"routing": {"max_visual_tokens": 0}}, {"routing": {"max_harm": 1.0}},
        {"routing": {"focus": "yes"}}, {"routing": {"focus": 1}}, {"routing": {"focus": {}}},
    ],
)  # fmt: skip
def test_wrong_types_and_ranges_are_errors(more: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ChatRequest.model_validate(PLAIN | more)


# Worked out by hand from the precedence: routing.scale > model id > detail > cap and policy.
@pytest.mark.parametrize(
    ("model", "detail", "routing", "pinned", "reason"),
    [
        ("m3-auto", None, None, None, Reason.predicted),
        ("m3-auto", "auto", None, None, Reason.predicted),
        ("m3-auto", "low", None, 9, Reason.detail),
        ("m3-auto", "high", None, 144, Reason.detail),
        ("m3-auto", "original", None, 576, Reason.detail),
        ("m3-36", "low", None, 36, Reason.pinned),
        ("m3-36", "low", {"scale": 1}, 1, Reason.pinned),
        ("m3-auto", "high", {"scale": 9}, 9, Reason.pinned),
        ("m3-auto", None, {"max_visual_tokens": 50}, None, Reason.predicted),
    ],
)
def test_precedence_of_wishes(
    ask_body: Body, model: str, detail: str | None, routing: dict[str, Any] | None,
    pinned: int | None, reason: Reason,
) -> None:  # fmt: skip
    body = ask_body(detail=detail, model=model, routing=routing)
    found = parse_request(ChatRequest.model_validate(body), SCALES, ServeSettings()).constraints
    assert (found.pinned, found.reason) == (pinned, reason)
    assert found.max_visual_tokens == (routing or {}).get("max_visual_tokens")


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"routing": {"scale": 10}}, "unknown_scale", "routing.scale"),
        ({"model": "m3-576", "routing": {"max_visual_tokens": 100}}, "budget_too_small",
         "routing.max_visual_tokens"),
        ({"seeds": (0, 1, 2), "routing": {"max_visual_tokens": 2}}, "budget_too_small",
         "routing.max_visual_tokens"),
        ({"routing": {"max_harm": 0.01}, "seeds": (0, 1)}, "not_certified", "routing.max_harm"),
        ({"routing": {"max_harm": 0.01, "scale": 36}}, "not_certified", "routing.max_harm"),
        ({"routing": {"max_harm": 0.01}, "detail": "low"}, "not_certified", "routing.max_harm"),
        ({"question": "  "}, "empty_question", "messages.0.content"),
        ({"n": 2, "routing": {"second_look": True}}, "no_second_look", "routing.second_look"),
        ({"routing": {"focus": True, "scale": 36}}, "no_focus", "routing.focus"),
        ({"routing": {"focus": True}, "model": "m3-36"}, "no_focus", "routing.focus"),
        ({"routing": {"focus": True}, "detail": "low"}, "no_focus", "routing.focus"),
        ({"routing": {"focus": True}, "seeds": (0, 1)}, "no_focus", "routing.focus"),
        ({"seeds": tuple(range(9))}, "too_many_images", "messages"),
    ],
)  # fmt: skip
def test_impossible_wishes_are_refused(
    ask_body: Body, more: dict[str, Any], code: str, param: str
) -> None:
    request = ChatRequest.model_validate(ask_body(**more))
    with pytest.raises(BadRequest) as caught:
        parse_request(request, SCALES, ServeSettings())
    assert (caught.value.code, caught.value.param) == (code, param)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("more", "allowed"),
    [
        ({}, True),
        ({"routing": {"focus": None}}, True),
        ({"routing": {"focus": True, "max_visual_tokens": 50}, "detail": "auto"}, True),
        ({"routing": {"focus": True}, "seeds": ()}, True),  # nothing to read forbids nothing
        ({"routing": {"focus": False}}, False),
        ({"routing": {"focus": False, "scale": 9}}, False),
        ({"routing": {"focus": False}, "seeds": (0, 1)}, False),
    ],
)
def test_a_focus_may_be_declined(ask_body: Body, more: dict[str, Any], allowed: bool) -> None:
    request = ChatRequest.model_validate(ask_body(**more))
    assert parse_request(request, SCALES, ServeSettings()).constraints.focus is allowed


def test_unknown_models_are_named_with_the_known_ones() -> None:
    with pytest.raises(UnknownModel, match="m3-auto, m3-1, m3-9, m3-36, m3-144, m3-576"):
        parse_request(
            ChatRequest.model_validate(PLAIN | {"model": "gpt-5"}), SCALES, ServeSettings()
        )


def test_a_detail_is_its_own_pictures(ask_body: Body) -> None:
    body = ask_body(seeds=(0, 1, 2))
    parts = body["messages"][0]["content"]
    parts[0]["image_url"]["detail"] = "low"
    parts[1]["image_url"]["detail"] = "auto"
    request = ChatRequest.model_validate(body)
    found = parse_request(request, SCALES, ServeSettings()).constraints
    assert (found.pins, found.reason.value) == ((9, None, None), "predicted")
    parts[1]["image_url"]["detail"] = "original"
    parts[2]["image_url"]["detail"] = "high"
    request = ChatRequest.model_validate(body)
    found = parse_request(request, SCALES, ServeSettings()).constraints
    assert (found.pins, found.reason.value) == ((9, 576, 144), "detail")
    moved = ServeSettings(detail_scales={"low": 1})
    assert parse_request(request, SCALES, moved).constraints.pins == (1, 576, 144)
    capped = ChatRequest.model_validate(body | {"routing": {"max_visual_tokens": 728}})
    with pytest.raises(BadRequest, match="raise the cap to at least 729") as refused:
        parse_request(capped, SCALES, ServeSettings())
    assert (refused.value.param, refused.value.code) == (
        "routing.max_visual_tokens", "budget_too_small",
    )  # fmt: skip
    pinned = ChatRequest.model_validate(body | {"model": "m3-36"})
    assert parse_request(pinned, SCALES, ServeSettings()).constraints.pinned == 36


def test_pictures_belong_to_users(ask_body: Body) -> None:
    body = ask_body()
    body["messages"] = [{**body["messages"][0], "role": "system"}, *PLAIN["messages"]]
    with pytest.raises(BadRequest, match="user messages"):
        parse_request(ChatRequest.model_validate(body), SCALES, ServeSettings())


def test_conversations_keep_their_order(ask_body: Body) -> None:
    body = ask_body("first", seeds=(3,))
    body["messages"].insert(0, {"role": "developer", "content": "be brief"})
    body["messages"] += [
        {"role": "assistant", "content": "a dog"}, {"role": "user", "content": "second"},
    ]  # fmt: skip
    parsed = parse_request(ChatRequest.model_validate(body), SCALES, ServeSettings())
    assert [m["role"] for m in parsed.messages] == ["system", "user", "assistant", "user"]
    assert parsed.messages[1]["content"][0] == {"type": "image"}
    assert (parsed.question, len(parsed.pictures)) == ("second", 1)


def text_turn(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


REPLY = {"role": "assistant", "content": "a dog"}


@pytest.mark.parametrize(
    ("turns", "question"),
    [
        (["picture and who?", REPLY, text_turn("where?")], "where?"),
        (["picture", text_turn("who?")], "who?"),
        (["picture", REPLY, text_turn("who?")], "who?"),
        ([text_turn("who?"), "picture"], "who?"),
        ([text_turn("why?"), REPLY, text_turn("who?"), REPLY, "picture"], "who?"),
        ([text_turn("who?"), REPLY, text_turn("  "), "picture"], "who?"),
        (["picture and who?", REPLY, "picture"], "who?"),
        (["picture and who?", REPLY, "picture and where?"], "where?"),
    ],
)
def test_the_question_may_stand_in_another_turn_than_the_picture(
    ask_body: Body, turns: list[Any], question: str
) -> None:
    picture = ask_body()["messages"][0]["content"][0]
    body = {"messages": []}
    for turn in turns:
        if isinstance(turn, str):
            text = turn.removeprefix("picture").removeprefix(" and ")
            parts = [picture, *([{"type": "text", "text": text}] if text else [])]
            turn = {"role": "user", "content": parts}
        body["messages"].append(turn)
    parsed = parse_request(ChatRequest.model_validate(body), SCALES, ServeSettings())
    assert parsed.question == question
    assert len(parsed.pictures) == sum(isinstance(turn, str) for turn in turns)
    assert len(parsed.messages) == len(turns)


@pytest.mark.parametrize(
    "turns",
    [
        [{"role": "system", "content": "who?"}, "picture"], ["picture", REPLY, "picture"],
        ["picture and who?", REPLY, text_turn(" ")],
    ],
)  # fmt: skip
def test_a_conversation_without_a_question_is_refused(ask_body: Body, turns: list[Any]) -> None:
    content = ask_body()["messages"][0]["content"]
    filled = {"picture": content[:1], "picture and who?": content}
    messages = [
        {"role": "user", "content": filled[turn]} if isinstance(turn, str) else turn
        for turn in turns
    ]
    request = ChatRequest.model_validate({"messages": messages})
    with pytest.raises(BadRequest) as caught:
        parse_request(request, SCALES, ServeSettings())
    param = f"messages.{len(turns) - 1}.content"
    assert (caught.value.code, caught.value.param) == ("empty_question", param)


def test_our_replies_are_the_sdks_types() -> None:
    routing = protocol.Routing(
        scale=9, scales=[9], visual_tokens=9, reason="predicted", p_suffices={"1": 0.5},
        router_version="x", latency_ms=1.0,
    )  # fmt: skip
    usage = protocol.Usage(
        prompt_tokens=10, completion_tokens=2, total_tokens=12,
        prompt_tokens_details=protocol.PromptTokensDetails(
            image_tokens=9, text_tokens=1, cached_tokens=9
        ),
    )  # fmt: skip
    whole = protocol.ChatCompletion(
        id="a", created=1, model="m3-auto", usage=usage, routing=routing,
        choices=[
            protocol.Choice(
                index=0, message=protocol.AnswerMessage(content="x"), finish_reason="stop"
            )
        ],
    )  # fmt: skip
    assert SDKCompletion.model_validate_json(whole.model_dump_json()).usage is not None
    assert "explain" not in whole.model_dump_json()
    chunk = protocol.ChatChunk(
        id="a", created=1, model="m3-auto",
        choices=[protocol.ChunkChoice(index=0, delta=protocol.Delta(content="x"))],
    )  # fmt: skip
    assert SDKChunk.model_validate_json(chunk.model_dump_json()).choices[0].delta.content == "x"
    assert "usage" not in chunk.model_dump()


def test_errors_survive_the_way_between_processes() -> None:
    # What Ray does with an exception of a replica, by the same protocol.
    for kind in (BadRequest, UnknownModel):
        error = kind("Do this.", "model", "some_code", 3)
        function, arguments, *_ = error.__reduce_ex__(2)
        again = function(*arguments)
        assert isinstance(again, ServiceError)
        assert (again.message, again.param, again.code, again.retry_after_s) == (
            "Do this.", "model", "some_code", 3,
        )  # fmt: skip


def test_routing_wishes_reject_unknown_keys() -> None:
    with pytest.raises(ValidationError):
        RoutingRequest.model_validate({"tau": 0.5})
    assert list(model_ids((1, 4))) == ["m3-auto", "m3-1", "m3-4"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("max_visual_tokens=9 is too small", "max_visual_tokens=9 is too small."),
        ("unknown detail 'x'", "Unknown detail 'x'."),
        ("Whole.", "Whole."),
        ("", "."),
    ],
)
def test_errors_become_sentences_and_fields_keep_their_names(said: str, told: str) -> None:
    assert as_sentence(ValueError(said)) == told


@pytest.mark.parametrize(
    "bad", [{"port": 8000}, {"audit_rate": 1.5}, {"log_images": "yes"}, {"encoder": {"replica": 2}}]
)
def test_settings_refuse_what_they_do_not_know(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ServeSettings.model_validate(bad)


def test_settings_come_from_yaml_values() -> None:
    settings = ServeSettings.model_validate({"model": "a/b", "encoder": {"replicas": 2}})
    assert settings.model == Path("a/b")
    assert settings.encoder.replicas == 2


def test_nobody_imports_serve_by_its_bare_name() -> None:
    # `import serve` would hide ray's submodule of that name in whoever does it.
    root = Path(protocol.__file__).parent
    for path in root.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not any(name.name.split(".")[0] == "serve" for name in node.names), path
    stdlib = sys.stdlib_module_names
    assert not [path for path in root.glob("*.py") if path.stem in stdlib]
