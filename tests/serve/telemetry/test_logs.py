"""Lines of the log: whose request they are about, and that they quote nothing of it."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from router.log import read_log
from serve import in_process
from serve.settings import API_KEYS_VARIABLE, ServeSettings
from serve.telemetry import logs
from serve.web.listening import bind

Body = Callable[..., dict[str, Any]]
CHAT = "/v1/chat/completions"
PROMPT, KEY, NAME = "which zebra hides the wombat", "sk-tapir-4711", "asked-by-name"


class Written:
    """All that a process writes: the lines of every logger, as text and as JSON, and stdout."""

    def __init__(self) -> None:
        self.text, self.json = io.StringIO(), io.StringIO()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.json.getvalue().splitlines()]


@pytest.fixture
def written() -> Iterator[Written]:
    kept, root = Written(), logging.getLogger()
    handlers, level = [], root.level
    for stream, form in ((kept.text, logging.Formatter()), (kept.json, logs.JsonLines())):
        handlers.append(logging.StreamHandler(stream))
        handlers[-1].setFormatter(form)
        root.addHandler(handlers[-1])
    root.setLevel(logging.DEBUG)
    yield kept
    root.setLevel(level)
    for handler in handlers:
        root.removeHandler(handler)


@pytest.fixture
def serving(
    tiny_model: Path, make_router: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """A service of its own, to be broken; its log and limits are the defaults."""
    import uvicorn

    monkeypatch.setenv(API_KEYS_VARIABLE, KEY)
    monkeypatch.setattr("serve.gateway.gateway.RETRY_WAIT_S", 0.005)
    make_router(tmp_path / "router", 36)
    settings = ServeSettings(
        model=tiny_model, router=tmp_path / "router", registry=None, log_dir=tmp_path / "log"
    )
    service = in_process.compose(settings)
    server = uvicorn.Server(in_process.server_config(service.api, settings))
    socket = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, args=([socket],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield service, f"http://127.0.0.1:{socket.getsockname()[1]}"
    server.should_exit = True
    thread.join(20)
    asyncio.run(service.stop())
    socket.close()


def test_nothing_of_a_request_is_written_anywhere(
    serving: Any, written: Written, ask_body: Body, tmp_path: Path,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, picture_url: Any,
) -> None:  # fmt: skip
    served, url = serving
    body, stream = ask_body(PROMPT, seeds=(66,)), ask_body(PROMPT, seeds=(66,), stream=True)
    picture = picture_url(66)[100:200]
    cut = ask_body(PROMPT)
    cut["messages"][0]["content"][0]["image_url"]["url"] = picture_url(66)[: 22 + 4000]
    key = {"authorization": f"Bearer {KEY}"}

    async def broken(self: Any, *asked: Any) -> Any:
        raise ValueError(f"no good: {asked!r}") from RuntimeError(repr(asked))

    async def broken_parts(self: Any, request: Any) -> AsyncIterator[Any]:
        raise KeyError(str(request))
        yield

    with httpx2.Client(base_url=url, headers=key, timeout=60) as http:

        def post(status: int, said: Any, path: str = CHAT, **headers: str) -> httpx2.Response:
            reply = http.post(path, json=said, headers=headers)
            assert reply.status_code == status, reply.text
            return reply

        post(200, body)
        post(200, stream)
        post(200, body, "/v1/route")
        post(400, cut)
        post(400, [PROMPT])
        post(400, body | {"messages": [{"role": PROMPT, "content": PROMPT}]})
        post(400, body | {"logit_bias": {PROMPT: 1}})
        post(404, body | {"model": "nothing"})
        post(401, body, authorization=f"Bearer {KEY}x")
        post(400, ask_body(f"{PROMPT} " * 2000))
        spoiled = PROMPT.encode() + b"\xff{"
        json_type = {"content-type": "application/json"}
        assert http.post(CHAT, content=spoiled, headers=json_type).status_code == 400
        with http.stream("POST", CHAT, json=stream | {"max_tokens": 1000, "model": "m3-576"}):
            pass  # the caller leaves
        with monkeypatch.context() as patch:
            patch.setattr(type(served.encoder), "encode_and_route", broken)
            named = post(500, body, **{"x-request-id": NAME})
            post(500, stream)
            post(500, body, "/v1/route")
        with monkeypatch.context() as patch:
            patch.setattr(type(served.generator), "generate", broken_parts)
            post(500, body)
            post(500, stream)
        with monkeypatch.context() as patch:
            patch.setattr("serve.stages.vision.Vision.features", _quoting)
            assert (
                post(200, body, **{"x-request-id": "f"}).json()["routing"]["reason"] == "fallback"
            )
        with monkeypatch.context() as patch:  # behind the gateway's own care
            patch.setattr("serve.web.answers._json", _quoting_all)
            post(500, body)
    assert NAME in named.json()["error"]["message"]
    asyncio.run(served.gateway.drain())

    everything = [written.text.getvalue(), written.json.getvalue(), *capfd.readouterr()]
    for path in tmp_path.rglob("*"):
        if path.is_file():
            everything.append(path.read_bytes().decode("latin-1"))
    decisions = read_log(tmp_path / "log").decisions
    assert decisions.num_rows > 10
    everything.append(str(decisions.to_pylist()))
    raw = repr(base64.b64decode(picture_url(66).partition(",")[2])[40:60])[2:-1]
    for text in everything:
        assert not [secret for secret in (PROMPT, picture, raw, KEY) if secret in text]
    assert "ValueError" in written.text.getvalue()  # what was to be kept secret was really raised
    assert "RuntimeError" in written.text.getvalue()
    about = [line["request_id"] for line in written.lines() if line["logger"].startswith("serve")]
    assert NAME in about
    assert "f" in about  # from a thread of the encoder
    assert len(set(about)) == 7  # each failure under a name of its own


def _quoting(self: Any, pictures: Any, question: str, *more: Any) -> Any:
    raise ValueError(question)


def _quoting_all(*_: Any) -> Any:
    raise ValueError(f"{PROMPT} {KEY}")


def test_words_are_shown_where_prompts_may_be_logged() -> None:
    first, second = PROMPT, KEY
    try:
        try:
            raise KeyError(first)
        except KeyError as inner:
            raise ValueError(second) from inner
    except ValueError as error:
        silent, told = logs.failure(error, words=False), logs.failure(error, words=True)
    assert first in told
    assert second in told
    assert first not in silent
    assert second not in silent
    assert silent.index("KeyError: (") < silent.index("ValueError: (")  # as Python orders them
    assert "test_logs.py" in silent


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device", "/secret"), "OSError: No space left on device"),
        (AttributeError("'A' object has no attribute 'b'"), "no attribute 'b'"),
    ],
)
def test_what_the_system_says_is_told(error: Exception, said: str) -> None:
    told = logs.failure(error, words=False)
    assert said in told
    assert "/secret" not in told


def test_groups_and_circles_of_errors_end() -> None:
    one, two = ValueError("one"), KeyError("two")
    one.__cause__, two.__cause__ = two, one
    told = logs.failure(ExceptionGroup("both", [one, two]), words=False)
    assert told.count("ValueError: ") == 1
    assert told.count("KeyError: ") == 1


def test_requests_side_by_side_keep_their_names() -> None:
    async def work(name: str) -> str:
        logs.begin_request()
        await asyncio.to_thread(logs.name_request, name)  # as FastAPI runs a dependency
        await asyncio.sleep(0)
        return await asyncio.create_task(asyncio.to_thread(logs.request_id))

    async def both() -> list[str]:
        return await asyncio.gather(work("a"), work("b"))

    assert asyncio.run(both()) == ["a", "b"]
    assert logs.request_id() == ""


def test_a_line_of_text_names_its_request_once() -> None:
    form = logs.TextLines("%(message)s")

    async def lines() -> list[str]:
        logs.begin_request()
        logs.name_request("r7")
        return [form.format(logging.makeLogRecord({"msg": m})) for m in ("a\nb", "r7 failed\nb")]

    assert asyncio.run(lines()) == ["a [request r7]\nb", "r7 failed\nb"]


@pytest.mark.slow
def test_every_line_of_a_service_is_json(tiny_model: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "serve.cli", "up", "--in-process", "--port", "0",
        "--log-format", "json", "--model", str(tiny_model), "--log-dir", str(tmp_path / "log"),
        "--registry", str(tmp_path / "registry"),
    ]  # fmt: skip
    with subprocess.Popen(command, text=True, stdout=-1, stderr=-1) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("m3-serve is ready at")
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line["message"] for line in lines] == [
        "loading the model", "no router: every picture is read at the finest scale allowed"
    ]  # fmt: skip
    assert {"time", "level", "logger"} <= lines[0].keys()
