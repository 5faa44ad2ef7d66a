"""Several answers, log-probabilities, stop, seed and token counts, with the real openai SDK."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

Body = Callable[..., dict[str, Any]]
WARM = {"temperature": 1.5, "seed": 5}
LONG = "what color is the star? " * 170  # tokenised aside


@pytest.fixture(scope="module")
def sdk(running: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def processor(tiny_model: Path) -> Any:
    from m3model import M3Processor

    return M3Processor.from_pretrained(tiny_model)


def ask(sdk: openai.OpenAI, body: dict[str, Any]) -> Any:
    return sdk.chat.completions.create(**body)


def texts(reply: Any) -> list[str]:
    assert [choice.index for choice in reply.choices] == list(range(len(reply.choices)))
    return [choice.message.content for choice in reply.choices]


def raw_of(tokens: Any) -> bytes:
    return b"".join(bytes(token.bytes or ()) for token in tokens)


def token_counts(usage: Any) -> dict[str, Any]:
    """What a repeated request costs again; what is cached of it changes."""
    told = dict(usage.model_dump())
    told["prompt_tokens_details"].pop("cached_tokens")
    return told


def test_several_answers_share_a_prompt(sdk: openai.OpenAI, ask_body: Body, running: Any) -> None:
    one = ask(sdk, ask_body(**WARM, logprobs=True))
    before = _visual_tokens(running)
    three = ask(sdk, ask_body(n=3, **WARM, logprobs=True))
    assert _visual_tokens(running) == before + 36
    assert texts(three)[:1] == texts(one)
    assert len(set(texts(three))) == 3
    assert texts(ask(sdk, ask_body(n=3, **WARM))) == texts(three)
    assert texts(ask(sdk, ask_body(n=5, **WARM)))[:3] == texts(three)
    assert not set(texts(ask(sdk, ask_body(n=3, temperature=1.5, seed=6)))) & set(texts(three))
    assert three.usage.prompt_tokens == one.usage.prompt_tokens
    listed = [len(choice.logprobs.content) for choice in three.choices]
    ends = sum(choice.finish_reason == "stop" for choice in three.choices)
    assert three.usage.completion_tokens == sum(listed) + ends  # the end token is none of the text
    assert len(set(texts(ask(sdk, ask_body(n=4))))) == 1  # greedy: the same, as often as asked
    assert len(set(texts(ask(sdk, ask_body(n=4, temperature=1.5))))) > 1


def _visual_tokens(running: Any) -> float:
    lines = httpx2.get(f"{running.url}/metrics").text.splitlines()
    return float(next(x for x in lines if x.startswith("m3_visual_tokens_total ")).split()[1])


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_carries_every_answer(sdk: openai.OpenAI, ask_body: Body, n: int) -> None:
    body = ask_body(n=n, **WARM | {"max_tokens": 15}, logprobs=True, top_logprobs=2)
    whole = ask(sdk, body)
    options = {"include_usage": True}
    chunks = list(ask(sdk, body | {"stream": True, "stream_options": options}))
    for index, choice in enumerate(whole.choices):
        mine = [part for chunk in chunks for part in chunk.choices if part.index == index]
        assert mine[0].delta.role == "assistant"
        assert not any(part.delta.role for part in mine[1:])
        assert "".join(part.delta.content or "" for part in mine) == choice.message.content
        assert [part.finish_reason for part in mine if part.finish_reason] == [choice.finish_reason]
        assert mine[-1].finish_reason
        told = [token for part in mine if part.logprobs for token in part.logprobs.content]
        assert [token.token for token in told] == [t.token for t in choice.logprobs.content]
        for part in mine:
            content = part.logprobs.content if part.logprobs else []
            assert raw_of(content).decode() == (part.delta.content or "")
    with_choice = [chunk for chunk in chunks if chunk.choices]
    routed = [chunk for chunk in with_choice if getattr(chunk, "routing", None)]
    assert routed == [with_choice[0], with_choice[-1]]
    assert token_counts(chunks[-1].usage) == token_counts(whole.usage)


def test_the_sdks_own_accumulator_makes_the_same_answers(
    sdk: openai.OpenAI, ask_body: Body
) -> None:
    body = ask_body(n=2, **WARM, logprobs=True, top_logprobs=1)
    whole = ask(sdk, body)
    with sdk.chat.completions.stream(**body) as stream:
        for _ in stream:
            pass
        final = stream.current_completion_snapshot
    assert texts(final) == texts(whole)
    for mine, theirs in zip(final.choices, whole.choices, strict=True):
        assert mine.logprobs is not None
        assert theirs.logprobs is not None
        assert mine.logprobs.content is not None
        assert [t.token for t in mine.logprobs.content] == [
            t.token for t in theirs.logprobs.content
        ]


def test_what_a_chunk_says_of_usage(running: Any, ask_body: Body) -> None:
    url = f"{running.url}/v1/chat/completions"

    def chunks(**options: bool) -> list[dict[str, Any]]:
        body = ask_body(stream=True, n=2, **({"stream_options": options} if options else {}))
        lines = httpx2.post(url, json=body).text.split("\n\n")
        return [json.loads(x.removeprefix("data: ")) for x in lines if x.startswith("data: {")]

    assert not any("usage" in chunk for chunk in chunks())
    *others, last = chunks(include_usage=True)
    assert all("usage" in chunk and chunk["usage"] is None for chunk in others)
    assert all(chunk["choices"] for chunk in others)
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 12)
    running_counts = [chunk["usage"]["completion_tokens"] for chunk in
                      chunks(continuous_usage_stats=True)]  # fmt: skip
    assert running_counts == sorted(running_counts)
    assert running_counts[-1] == 12
    assert [set(c["delta"]) for chunk in others for c in chunk["choices"]][-1] == set()


@given(
    question=st.sampled_from(["What is it?", "is there a star", "how many", "x", "what word?"]),
    scale=st.sampled_from([1, 9, 36]),
    seed=st.integers(-(2**63), 2**63 - 1),
    warmth=st.sampled_from([0, 0.7, 1.5, 2]),
    top=st.integers(0, 20),
)
@settings(max_examples=20, deadline=None)
def test_bytes_of_the_tokens_are_the_text(
    sdk: openai.OpenAI, ask_body: Body, question: str, scale: int, seed: int, warmth: float,
    top: int,
) -> None:  # fmt: skip
    reply = ask(sdk, ask_body(
        question, model=f"m3-{scale}", seed=seed, temperature=warmth, logprobs=True,
        top_logprobs=top, max_tokens=10,
    ))  # fmt: skip
    (choice,) = reply.choices
    assert choice.logprobs.refusal is None
    assert raw_of(choice.logprobs.content).decode() == choice.message.content
    for token in choice.logprobs.content:
        assert len(token.top_logprobs) == top
        assert -9999 <= token.logprob <= 0
        sure = [each.logprob for each in token.top_logprobs]
        assert sure == sorted(sure, reverse=True)
        assert sum(map(math.exp, sure)) <= 1 + 1e-4
        known = {each.token: each.logprob for each in token.top_logprobs}
        assert known.get(token.token, token.logprob) == token.logprob
        if top and not warmth:
            assert token.top_logprobs[0].token == token.token


def test_without_asking_there_are_none(sdk: openai.OpenAI, ask_body: Body) -> None:
    for more in ({}, {"logprobs": False, "top_logprobs": 0}):
        (choice,) = ask(sdk, ask_body(**more)).choices
        assert choice.logprobs is None
    (choice,) = ask(sdk, ask_body(logprobs=True)).choices
    assert all(token.top_logprobs == [] for token in choice.logprobs.content)


def test_logprobs_are_of_the_model_before_temperature(sdk: openai.OpenAI, ask_body: Body) -> None:
    cold, warm = (
        ask(sdk, ask_body(logprobs=True, top_logprobs=20, max_tokens=1, temperature=t, seed=1))
        for t in (0, 2)
    )
    first = [reply.choices[0].logprobs.content[0].top_logprobs for reply in (cold, warm)]
    assert [each.token for each in first[0]] == [each.token for each in first[1]]
    assert [each.logprob for each in first[1]] == pytest.approx(
        [each.logprob for each in first[0]], abs=1e-4
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_cuts_across_tokens(sdk: openai.OpenAI, ask_body: Body, stream: bool) -> None:
    body = ask_body(model="m3-36", seeds=(3,), max_tokens=20, logprobs=True)
    (whole,) = ask(sdk, body).choices
    pieces = [bytes(token.bytes or ()).decode() for token in whole.logprobs.content]
    text = whole.message.content
    # From the last letter of the third token to the first letter of the fifth.
    begin, end = len("".join(pieces[:3])) - 1, len("".join(pieces[:4])) + 2
    stop = text[begin:end]
    assert text.index(stop) == begin
    for wish in (stop, [stop], ["never", "also never", stop, text[end:] + "?"]):
        if stream:
            parts = [p for c in ask(sdk, body | {"stop": wish, "stream": True}) for p in c.choices]
            said = "".join(part.delta.content or "" for part in parts)
            reason = parts[-1].finish_reason
            told = [token for part in parts if part.logprobs for token in part.logprobs.content]
        else:
            (cut,) = ask(sdk, body | {"stop": wish}).choices
            said, reason, told = cut.message.content, cut.finish_reason, cut.logprobs.content
        assert (said, reason) == (text[:begin], "stop")
        # The token in which the stop string begins is part of the text, those after it are not.
        kept = sum(len("".join(pieces[:i])) < begin for i in range(len(pieces)))
        assert [token.token for token in told] == pieces[:kept]


def test_prompt_and_answer_are_counted_to_the_token(
    sdk: openai.OpenAI, ask_body: Body, tiny_model: Path, picture_bytes: Any, processor: Any
) -> None:
    from PIL import Image

    from m3model import M3ForConditionalGeneration

    model = M3ForConditionalGeneration.from_pretrained(tiny_model).eval()
    for question, max_tokens, n in (("What word?", 6, 1), ("is it red", 40, 2), (LONG, 3, 1)):
        content = [{"type": "image"}, {"type": "text", "text": question.strip()}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}])
        inputs = processor(prompt, Image.open(io.BytesIO(picture_bytes(8))))
        ids = inputs["input_ids"]
        expected = model.generate(**inputs, scale=9, max_new_tokens=max_tokens, do_sample=False)
        body = ask_body(question.strip(), seeds=(8,), model="m3-9", max_tokens=max_tokens, n=n)
        usage = ask(sdk, body).usage
        assert usage.prompt_tokens == ids.shape[1] - 1 + 9
        assert usage.completion_tokens == n * expected.shape[1]
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_cached_tokens_are_those_up_to_the_last_picture(
    sdk: openai.OpenAI, ask_body: Body, processor: Any
) -> None:
    def cached(question: str, seeds: tuple[int, ...], **more: Any) -> int:
        body = ask_body(question, seeds=seeds, model="m3-9", **more)
        return int(ask(sdk, body).usage.prompt_tokens_details.cached_tokens)

    def ahead(n_pictures: int) -> int:
        content = [{"type": "image"}] * n_pictures + [{"type": "text", "text": "x"}]
        ids = processor.prompt_ids([{"role": "user", "content": content}])
        last = len(ids) - ids[::-1].index(processor.image_token_id)
        return last - n_pictures + 9 * n_pictures

    assert cached("What is it?", (971,)) == 0
    assert cached("What is it?", (971,)) == ahead(1)
    assert cached("Is it red?", (971,), n=3, **WARM) == ahead(1)
    assert cached("What is it?", (972,), n=3, **WARM) == 0  # what they share among them is not told
    assert cached("What is it?", (971, 972)) == ahead(1)  # the first picture was there
    assert cached("And now?", (971, 972)) == ahead(2)
    assert cached("What is it?", (971, 973)) == ahead(2) - 9
    assert cached("What is it?", (974, 971)) == 0
    assert cached("hello", ()) == cached("hello", ()) == 0


@pytest.mark.parametrize(
    ("question", "more"),
    [
        ("What is it?", {}),
        ("What is it?", {"model": "m3-144"}),
        ("What is it?", {"seeds": (1, 2, 3)}),
        ("What is it?", {"seeds": (1, 2), "model": "m3-9", "n": 2}),
        ("hello", {"seeds": ()}),
        ("<image> </s> naïve", {"detail": "low"}),
        (LONG, {"model": "m3-1"}),
        ("What is it?", {"before": [{"role": "system", "content": "You are brief. " * 30}]}),
        ("What is it?", {"before": [{"role": "user", "content": "hi"},
                                    {"role": "assistant", "content": "a red star"}]}),
    ],
)  # fmt: skip
def test_route_counts_what_the_answer_will_count(
    running: Any, ask_body: Body, question: str, more: dict[str, Any]
) -> None:
    before = more.pop("before", [])
    body = ask_body(question, **more)
    body["messages"] = before + body["messages"]
    with httpx2.Client(base_url=running.url, timeout=30) as http:
        answered = http.post("/v1/chat/completions", json=body).json()
        routed = http.post("/v1/route", json=body).json()
    told = answered["usage"]
    told["prompt_tokens_details"].pop("cached_tokens")
    names = ("prompt_tokens", "prompt_tokens_details")
    assert routed["usage"] == {name: told[name] for name in names}
    assert routed["routing"]["visual_tokens"] == answered["routing"]["visual_tokens"]


def test_route_refuses_what_chat_refuses(running: Any, ask_body: Body, processor: Any) -> None:
    with httpx2.Client(base_url=running.url, timeout=30) as http:
        one = http.post("/v1/route", json=ask_body("red", model="m3-576")).json()["usage"]
        room = 2048 - one["prompt_tokens"]  # "red" is one token; one is left for the answer
        for words, status in ((room, 200), (room + 1, 400), (3000, 400), (400_000, 400)):
            body = ask_body(" ".join(["red"] * words), model="m3-576")
            replies = [http.post(path, json=body) for path in ("/v1/chat/completions", "/v1/route")]
            assert [reply.status_code for reply in replies] == [status, status], words
            if status == 400:
                errors = [reply.json()["error"] for reply in replies]
                assert {error["code"] for error in errors} == {"context_length_exceeded"}
                assert {error["param"] for error in errors} == {"messages"}
        history = {"role": "system", "content": "red " * 3000}
        body = ask_body("red")
        body["messages"].insert(0, history)
        assert http.post("/v1/route", json=body).json()["error"]["code"] == (
            "context_length_exceeded"
        )
