"""Bad input over HTTP: a 4xx with OpenAI's envelope and a sentence, and the service goes on."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import httpx2
import openai
import pytest

Body = Callable[..., dict[str, Any]]
URL = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def http(running: Any) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=running.url, timeout=30) as client:
        yield client


def with_picture(ask_body: Body, url: Any) -> dict[str, Any]:
    body = ask_body()
    body["messages"][0]["content"][0]["image_url"]["url"] = url
    return body


def encoded(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


@cache
def bomb() -> bytes:
    """A valid 30,000 x 30,000 PNG of one colour, under 400 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(3751) * 1000) for _ in range(30)) + rows.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def check(http: httpx2.Client, reply: httpx2.Response, status: int, ask_body: Body) -> Any:
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/json"
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith(".")
    assert error["type"] == "invalid_request_error"
    assert http.post(URL, json=ask_body()).status_code == 200
    return error


@pytest.mark.parametrize("path", [URL, "/v1/route"])
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("not a picture", "invalid_image"),
        ("truncated", "invalid_image"),
        ("bomb", "image_too_large"),
        ("wrong base64", "invalid_base64"),
        ("remote", "remote_images_unsupported"),
        ("number", "invalid_type"),
    ],
)
def test_bad_pictures(
    http: httpx2.Client, ask_body: Body, picture_bytes: Any, path: str, name: str, code: str
) -> None:
    url: Any = {
        "not a picture": encoded(b"<html>hello</html>"),
        "truncated": encoded(picture_bytes(0)[:3000]),
        "bomb": encoded(bomb()),
        "wrong base64": "data:image/png;base64,@@@=",
        "remote": "https://example.org/cat.png",
        "number": 5,
    }[name]
    for stream in (False, True):
        body = with_picture(ask_body, url) | {"stream": stream}
        error = check(http, http.post(path, json=body), 400, ask_body)
        assert error["code"] == code


@pytest.mark.parametrize(
    ("more", "status", "param"),
    [
        ({"model": "gpt-4o"}, 404, "model"),
        ({"model": "m3-7"}, 404, "model"),
        ({"routing": {"scale": 7}}, 400, "routing.scale"),
        ({"routing": {"scale": 576.0}}, 400, "routing.scale"),
        ({"routing": {"scael": 9}}, 400, "routing.scael"),
        ({"routing": {"max_harm": 0.01}}, 400, "routing.max_harm"),
        ({"question": " \n"}, 400, "messages.0.content"),
        ({"question": 5}, 400, "messages.0.content.1.text"),
        ({"detail": "ultra"}, 400, "messages.0.content.0.image_url.detail"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"max_tokens": "many"}, 400, "max_tokens"),
        ({"stream": 1}, 400, "stream"),
        ({"stop": {"a": 1}}, 400, "stop"),
        ({"messages": {}}, 400, "messages"),
        ({"messages": None}, 400, "messages"),
        ({"messages": [5]}, 400, "messages.0"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, 400,
         "messages.0.content.0"),
        ({"messages": [{"role": "king", "content": "hi"}]}, 400, "messages.0.role"),
        ({"n": 17}, 400, "n"),
        ({"n": 0}, 400, "n"),
        ({"n": True}, 400, "n"),
        ({"n": 2, "routing": {"second_look": True}}, 400, "routing.second_look"),
        ({"logprobs": 5}, 400, "logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs"),
        ({"top_logprobs": 5}, 400, "top_logprobs"),
        ({"stop": list("abcde")}, 400, "stop"),
        ({"stop": [""]}, 400, "stop.0"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"maxtokens": 5}, 400, "maxtokens"),
    ],
)  # fmt: skip
def test_bad_fields(
    http: httpx2.Client, ask_body: Body, more: dict[str, Any], status: int, param: str
) -> None:
    error = check(http, http.post(URL, json=ask_body(**more)), status, ask_body)
    assert error["param"] == param


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"5", b"null", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"a":"\\ud800"}'],
)
def test_bodies_that_are_no_request(http: httpx2.Client, ask_body: Body, body: bytes) -> None:
    check(http, http.post(URL, content=body, headers=JSON), 400, ask_body)


def test_huge_bodies_are_refused_said_or_unsaid(http: httpx2.Client, ask_body: Body) -> None:
    huge = json.dumps(with_picture(ask_body, encoded(bytes(3_000_000)))).encode()
    check(http, http.post(URL, content=huge, headers=JSON), 413, ask_body)

    def in_pieces() -> Iterator[bytes]:
        for start in range(0, len(huge), 100_000):
            yield huge[start : start + 100_000]

    # Still being sent when the limit is passed: read on, so that the sender gets to read why.
    assert http.post(URL, content=in_pieces(), headers=JSON).status_code == 413  # no length said
    assert http.post(URL, json=ask_body()).status_code == 200


def test_a_prompt_beyond_the_context_is_refused(http: httpx2.Client, ask_body: Body) -> None:
    for stream in (False, True):
        body = ask_body("what " * 3000, stream=stream)
        error = check(http, http.post(URL, json=body), 400, ask_body)
        assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")


def test_special_tokens_in_text_are_text(http: httpx2.Client, ask_body: Body) -> None:
    reply = http.post(URL, json=ask_body("<image> <image> </s> <pad> what?"))
    assert reply.status_code == 200
    assert reply.json()["routing"]["visual_tokens"] == 36


def test_unknown_paths_and_methods(http: httpx2.Client, ask_body: Body) -> None:
    check(http, http.get("/v1/nothing"), 404, ask_body)
    check(http, http.get("/pictures/../settings.py"), 404, ask_body)
    check(http, http.get(URL), 405, ask_body)
    check(http, http.get("/v1/models/m3-7"), 404, ask_body)


def test_the_sdk_raises_its_own_errors(running: Any, ask_body: Body) -> None:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="any", max_retries=0) as sdk:
        with pytest.raises(openai.NotFoundError, match="m3-auto"):
            sdk.chat.completions.create(**ask_body(model="gpt-4o"))
        with pytest.raises(openai.BadRequestError, match="Scale it down") as caught:
            sdk.chat.completions.create(**with_picture(ask_body, encoded(bomb())))
        assert caught.value.code == "image_too_large"
