"""The client against hand-written replies: what it sends, retries, parses and raises."""

import asyncio
import base64
import io
import json

import httpx2
import numpy as np
import openai
import pytest
from PIL import Image

from serve import client as client_module
from serve.client import APIConnectionError, APIError, APIStatusError, AsyncM3Client, M3Client
from serve.client.errors import Tries, status_error
from serve.client.wire import chat_body, data_url
from serve.gateway.question import refused_knob
from serve.protocol import ChatRequest, FeedbackRequest

ROUTING = {
    "scale": 36,
    "visual_tokens": 36,
    "reason": "predicted",
    "p_suffices": {"1": 0.1, "36": 0.9},
    "router_version": "abc",
    "latency_ms": 1.5,
}
COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m3-auto",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "seven"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 50, "completion_tokens": 2, "total_tokens": 52},
    "routing": ROUTING,
}
PIXELS = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, format="PNG")
    return buffer.getvalue()


def replying(*replies):
    """Return a transport that gives the replies in turn, and the list of requests it received."""
    waiting, received = list(replies), []

    def handler(request):
        received.append(request)
        reply = waiting.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    return httpx2.MockTransport(handler), received


def completion():
    return httpx2.Response(200, json=COMPLETION, headers={"x-request-id": "r1"})


def failing(status, **headers):
    error = {"error": {"message": "why", "type": "t", "param": "model", "code": "c"}}
    return httpx2.Response(status, json=error, headers={"retry-after": "0.001", **headers})


def events(*chunks, breaks=False):
    class Stream(httpx2.SyncByteStream, httpx2.AsyncByteStream):
        def __iter__(self):
            for chunk in chunks:
                data = chunk if isinstance(chunk, str) else json.dumps(chunk)
                yield f"data: {data}\n\n".encode()
            if breaks:
                raise httpx2.ReadError("peer is gone")

        async def __aiter__(self):
            for piece in self:
                yield piece

    headers = {"content-type": "text/event-stream", "x-request-id": "r2"}
    return httpx2.Response(200, stream=Stream(), headers=headers)


def chunk(text=None, **fields):
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": fields.pop("finish", None)}
    return {"id": "chatcmpl-2", "model": "m3-auto", "choices": [choice], **fields}


STREAM = (
    chunk(None, routing=ROUTING),
    chunk("se"),
    chunk("ven", finish="stop", routing=ROUTING),
    {"choices": [], "usage": {"prompt_tokens": 50, "completion_tokens": 2}},
    "[DONE]",
)


def test_ask_sends_what_the_service_reads_and_returns_every_field():
    transport, received = replying(completion())
    with M3Client("http://m3.test/v1", api_key="k", transport=transport) as client:
        answer = client.ask(PIXELS, "how many?", max_visual_tokens=100, explain=True)
    request = received[0]
    assert str(request.url) == "http://m3.test/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer k"
    body = ChatRequest.model_validate_json(request.content)
    assert refused_knob(body) is None
    assert body.routing.max_visual_tokens == 100
    assert body.routing.explain is True
    url = body.messages[0].content[0].image_url.url
    sent = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
    assert np.array_equal(np.asarray(sent), PIXELS)
    assert (answer.text, answer.scale, answer.visual_tokens) == ("seven", 36, 36)
    assert answer.p_suffices == {1: 0.1, 36: 0.9}
    assert (answer.reason, answer.router_version, answer.latency_ms) == ("predicted", "abc", 1.5)
    assert (answer.request_id, answer.finish_reason, answer.model) == ("r1", "stop", "m3-auto")
    assert (answer.prompt_tokens, answer.completion_tokens) == (50, 2)
    assert answer.total_ms > 0


def test_pictures_of_every_kind_become_the_same_pixels(tmp_path):
    path = tmp_path / "p.png"
    path.write_bytes(png())
    for picture in (path, str(path), png(), Image.fromarray(PIXELS), PIXELS):
        header, _, payload = data_url(picture).partition(",")
        assert header == "data:image/png;base64"
        decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(payload))))
        assert np.array_equal(decoded, PIXELS)
    assert data_url("data:image/png;base64,AA==") == "data:image/png;base64,AA=="
    with pytest.raises(TypeError, match="uint8"):
        data_url(PIXELS.astype(np.float32))
    with pytest.raises(TypeError, match="a picture is"):
        data_url(3)


def test_options_are_sent_only_when_set_and_unknown_ones_are_refused():
    assert "routing" not in chat_body(None, "q", {})
    assert chat_body(None, "q", {"scale": 9})["routing"] == {"scale": 9}
    several = chat_body([png(), png()], "q", {"detail": "low"})["messages"][0]["content"]
    assert [part["type"] for part in several] == ["image_url", "image_url", "text"]
    assert several[0]["image_url"]["detail"] == "low"
    with pytest.raises(TypeError, match="unknown option 'scales'"):
        M3Client().ask(None, "q", scales=9)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
def test_passing_failures_are_tried_again(status):
    transport, received = replying(failing(status), failing(status), completion())
    assert M3Client(transport=transport).ask(None, "q").text == "seven"
    assert len(received) == 3


def test_a_wrong_request_is_not_tried_again():
    transport, received = replying(failing(400, **{"x-request-id": "r9"}))
    with pytest.raises(client_module.BadRequestError, match="why") as caught:
        M3Client(transport=transport).ask(None, "q")
    assert len(received) == 1
    assert (caught.value.code, caught.value.param) == ("c", "model")
    assert (caught.value.status_code, caught.value.request_id) == (400, "r9")


def test_connection_errors_are_tried_again_then_named(monkeypatch):
    monkeypatch.setattr("serve.client.errors.FIRST_DELAY_S", 0.001)
    refused = httpx2.ConnectError("refused")
    transport, received = replying(refused, completion())
    assert M3Client(transport=transport).ask(None, "q").text == "seven"
    transport, received = replying(refused, refused, httpx2.ReadTimeout("slow"))
    with pytest.raises(client_module.APITimeoutError, match="slow"):
        M3Client(transport=transport).ask(None, "q")
    assert len(received) == 3


def test_error_names_and_statuses_are_the_openai_sdks():
    named = [name for name in client_module.__all__ if name.endswith("Error")]
    statuses = []
    for name in named:
        theirs, ours = getattr(openai, name), getattr(client_module, name)
        expected = {base.__name__ for base in theirs.__mro__} & set(named)
        assert {base.__name__ for base in ours.__mro__} & set(named) == expected
        if status := vars(theirs).get("status_code"):
            assert type(status_error(status, b"{}", {})) is ours
            statuses.append(status)
    assert statuses == [401, 400, 409, 404, 403, 429, 422]
    assert type(status_error(502, b"<html>bad gateway", {})) is client_module.InternalServerError
    assert type(status_error(413, b"", {})) is APIStatusError


def test_waits_grow_from_half_a_second_to_eight_unless_told():
    tries = Tries(8)
    waits = [tries.after_reply(503, b"", {}) for _ in range(8)]
    for wait, whole in zip(waits, [0.5, 1, 2, 4, 8, 8, 8, 8], strict=True):
        assert 0.75 * whole <= wait <= whole
    with pytest.raises(client_module.InternalServerError):
        tries.after_reply(503, b"", {})
    assert Tries(1).after_reply(429, b"", {"retry-after": "7"}) == 7
    assert Tries(1).after_reply(429, b"", {"retry-after": "86400"}) <= 0.5


def test_stream_gives_pieces_and_then_the_answer():
    transport, received = replying(failing(503), events(*STREAM))
    with M3Client(transport=transport).stream(png(), "q") as stream:
        with pytest.raises(APIError, match="iterate"):
            _ = stream.answer
        assert list(stream) == ["se", "ven"]
    assert len(received) == 2
    assert json.loads(received[1].content)["stream_options"] == {"include_usage": True}
    answer = stream.answer
    assert (answer.text, answer.scale, answer.finish_reason) == ("seven", 36, "stop")
    assert (answer.request_id, answer.prompt_tokens) == ("r2", 50)


@pytest.mark.parametrize(
    "reply", [events(*STREAM[:2], breaks=True), events(*STREAM[:2])], ids=["broken", "cut short"]
)
def test_a_stream_that_began_is_never_asked_for_again(reply):
    transport, received = replying(reply, events(*STREAM))
    pieces = []
    with pytest.raises(APIConnectionError, match="broke off"):  # noqa: PT012
        for piece in M3Client(transport=transport).stream(None, "q"):
            pieces.append(piece)
    assert pieces == ["se"]
    assert len(received) == 1


def test_an_error_inside_a_stream_is_raised():
    transport, _ = replying(events(chunk("se"), {"error": {"message": "replica died"}}))
    with pytest.raises(APIError, match="replica died"):
        list(M3Client(transport=transport).stream(None, "q"))


def test_the_small_verbs():
    transport, received = replying(
        httpx2.Response(200, json={"status": "recorded"}),
        httpx2.Response(200, json={"object": "list", "data": [{"id": "m3-auto"}, {"id": "m3-1"}]}),
        httpx2.Response(200, json={"model": "m3-auto", "routing": ROUTING}),
        httpx2.Response(503, json={"status": "stalled"}),
        httpx2.Response(502, text="bad gateway"),
    )
    client = M3Client(transport=transport)
    client.feedback("r1", reference="seven")
    said = FeedbackRequest.model_validate_json(received[0].content)
    assert (said.request_id, said.reference) == ("r1", "seven")
    assert client.models() == ["m3-auto", "m3-1"]
    assert client.route(png(), "q").scale == 36
    assert client.health() == {"status": "stalled"}
    with pytest.raises(client_module.InternalServerError, match="bad gateway"):
        client.health()
    assert len(received) == 5
    with pytest.raises(ValueError, match="reference"):
        client.feedback("r1")


def test_feedback_on_an_answer_names_it_as_every_gateway_knows_it():
    recorded = httpx2.Response(200, json={"status": "recorded"})
    transport, received = replying(completion(), recorded, events(*STREAM), recorded)
    client = M3Client(transport=transport)
    answer = client.ask(png(), "q")
    assert (answer.request_id, answer.reply_id) == ("r1", "chatcmpl-1")
    client.feedback(answer, score=1)
    with client.stream(png(), "q") as stream:
        list(stream)
    client.feedback(stream.answer, score=0)
    said = [json.loads(request.content) for request in received]
    assert (said[1]["request_id"], said[3]["request_id"]) == ("chatcmpl-1", stream.answer.reply_id)
    assert stream.answer.reply_id


def test_the_async_twin_does_the_same():
    replies = (
        failing(429),
        completion(),
        events(*STREAM),
        httpx2.Response(200, json={"status": "ok"}),
    )
    transport, received = replying(*replies)

    async def talk():
        async with AsyncM3Client(transport=transport) as client:
            answer = await client.ask(PIXELS, "q", scale=36)
            async with client.stream(png(), "q") as stream:
                pieces = [piece async for piece in stream]
            return answer, pieces, stream.answer, await client.health()

    answer, pieces, streamed, health = asyncio.run(talk())
    assert (answer.text, pieces, streamed.text) == ("seven", ["se", "ven"], "seven")
    assert health == {"status": "ok"}
    assert json.loads(received[1].content)["routing"] == {"scale": 36}


def test_importing_the_client_loads_nothing_heavy(python):
    heavy = {"torch", "ray", "transformers", "lightgbm", "sklearn", "fastapi", "pyarrow",
             "numpy", "PIL", "matplotlib", "pydantic"}  # fmt: skip
    code = f"import sys, serve.client; print(sorted({heavy!r} & set(sys.modules)))"
    done = python("-c", code)
    assert done.stdout.strip() == "[]", done.stderr
