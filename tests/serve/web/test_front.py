"""What stands before the paths: hosts, origins, forms of a path, types and sizes of bodies."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any, ClassVar

import httpx2
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from serve.settings import API_KEYS_VARIABLE
from serve.web.api import create_api
from serve.web.body import parse_body, read_body
from serve.web.front import host_name, hosts_of, straight
from serve.web.listening import is_loopback

URL = "/v1/chat/completions"


@pytest.fixture(scope="module")
def http(running: Any) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=running.url, timeout=30) as client:
        yield client


@pytest.fixture
def served(running: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., httpx2.Client]:
    """Returns a function from settings to a client of the same gateway under them."""

    def under(keys: str = "", **settings: Any) -> Any:
        if keys:
            monkeypatch.setenv(API_KEYS_VARIABLE, keys)
        gateway = running.service.gateway
        monkeypatch.setattr(gateway, "settings", gateway.settings.model_copy(update=settings))
        return create_api(gateway)

    return under


def asked(app: Any, method: str, path: str, **more: Any) -> httpx2.Response:
    async def ask() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path, **more)

    return asyncio.run(ask())


def is_envelope(reply: httpx2.Response, status: int, code: str) -> str:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    return str(error["message"])


@pytest.mark.parametrize("path", ["/v1/models/", "//v1/models", "/v1//models//", "/health/"])
def test_a_path_is_answered_in_place_however_its_slashes_stand(
    running: Any, http: httpx2.Client, path: str
) -> None:
    reply = http.get(running.url + path, headers={"x-forwarded-proto": "https"})
    assert reply.status_code == 200, reply.headers
    assert http.post(URL + "/", json={}).status_code == 400  # the path was found, the body is wrong


def test_an_upload_that_is_broken_off_is_no_error_of_the_service(
    running: Any, caplog: pytest.LogCaptureFixture
) -> None:
    address = httpx2.URL(running.url)
    log = running.service.gateway.log
    written: list[str] = []

    def seen() -> None:
        log._log.flush()
        rows = pq.read_table(running.log_dir / "decisions").to_pylist()
        written[:] = [row["status"] for row in rows if row["request_id"] == "broken-off"]

    with socket.create_connection((address.host, address.port)) as raw:
        raw.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nx-request-id: broken-off\r\n"
            b"content-type: application/json\r\ncontent-length: 5000\r\n\r\n{"
        )
    deadline = time.monotonic() + 20
    while not written:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        seen()
    assert written == ["cancelled"]
    assert not [each for each in caplog.records if each.levelname == "ERROR"], caplog.text


def test_a_head_without_end_is_refused_and_others_are_as_they_were(running: Any) -> None:
    import threading

    import uvicorn

    from serve.in_process import server_config
    from serve.web.heads import MAX_HEAD_BYTES
    from serve.web.listening import bind

    config = server_config(running.service.api, running.service.gateway.settings)
    config.lifespan = "off"
    server, listening = uvicorn.Server(config), bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        for line in (b"x: " + b"a" * MAX_HEAD_BYTES, b"a: b\r\n" * (MAX_HEAD_BYTES // 5)):
            with socket.create_connection(listening.getsockname()) as raw:
                raw.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n")
                with suppress(ConnectionError):
                    raw.sendall(line)
                    assert raw.recv(100).startswith(b"HTTP/1.1 400")
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with httpx2.Client(base_url=url) as client:  # one connection, heads count anew
            for _ in range(3):
                headers = {"x-long": "a" * (MAX_HEAD_BYTES // 2)}
                assert client.get("/health/live", headers=headers).status_code == 200
                body = {"messages": "a" * 2 * MAX_HEAD_BYTES}
                assert client.post(URL, json=body).status_code == 400
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()


def test_straight_leaves_other_paths_alone() -> None:
    for path in ("/", "/v1/models", "/pictures/a.png"):
        assert straight(path) == path
    assert straight("//") == "/"


@pytest.mark.parametrize(
    "path",
    ["/health", "/health/live", "/health/ready", "/v1/models", "/", "/metrics", "/openapi.json",
     "/pictures/scene-00.png"],
)  # fmt: skip
def test_head_is_get_without_a_body(http: httpx2.Client, path: str) -> None:
    got, head = http.get(path), http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == got.headers["content-type"]


def test_head_of_what_is_not_there_or_not_allowed(http: httpx2.Client, served: Any) -> None:
    assert http.head("/nowhere").status_code == 404
    assert http.head(URL).status_code == 405
    assert asked(served(keys="k"), "HEAD", "/v1/models").status_code == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example"])
def test_without_keys_a_foreign_name_is_not_answered(http: httpx2.Client, ask_body, host) -> None:
    reply = http.post(URL, json=ask_body(), headers={"host": host})
    assert "allowed_hosts" in is_envelope(reply, 421, "unknown_host")
    for path in ("/health", "/health/live", "/health/ready"):
        assert http.get(path, headers={"host": host}).status_code == 200


def test_which_hosts_are_answered() -> None:
    loopback = hosts_of(None, has_keys=False)
    assert loopback is not None
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1:8000", "[::1]:9", "[::1]"):
        assert host_name(host) in loopback
    assert hosts_of(None, has_keys=True) is None
    assert hosts_of(["*"], has_keys=False) is None
    assert hosts_of(["m3.example"], has_keys=True) == {"m3.example"}
    assert host_name("localhost.:80") == "localhost"


def test_hosts_and_origins_are_taken_as_people_write_them() -> None:
    from serve.settings import ServeSettings

    hosts = ["Chat.example:8000", "::1", "[::1]:9", "127.0.0.2", "m3.example."]
    settings = ServeSettings(allowed_hosts=hosts, cors_origins=["https://Chat.example/", "*"])
    assert settings.allowed_hosts == ["chat.example", "[::1]", "[::1]", "127.0.0.2", "m3.example"]
    assert settings.cors_origins == ["https://chat.example", "*"]
    for wrong in ({"allowed_hosts": ["http://a"]}, {"cors_origins": ["chat.example"]}):
        with pytest.raises(ValueError, match="is not a"):
            ServeSettings(**wrong)


@pytest.mark.parametrize("origin", ["http://[bad", "http://x]y", "http://", "://", "x"])
def test_an_origin_that_is_none_is_refused(http: httpx2.Client, ask_body, origin: str) -> None:
    reply = http.post(URL, json=ask_body(), headers={"origin": origin})
    is_envelope(reply, 403, "foreign_origin")


def test_a_hosts_name_has_no_case(http: httpx2.Client, ask_body) -> None:
    port = http.base_url.port
    headers = {"host": f"localhost:{port}", "origin": f"http://LOCALHOST:{port}"}
    assert http.post(URL, json=ask_body(), headers=headers).status_code == 200


def test_pages_of_other_sites_may_not_ask(http: httpx2.Client, ask_body, served: Any) -> None:
    for origin in ("http://evil.example", "null", "http://localhost:5173"):
        reply = http.post(URL, json=ask_body(), headers={"origin": origin})
        assert "cors_origins" in is_envelope(reply, 403, "foreign_origin")
    own = f"http://{http.base_url.netloc.decode()}"
    assert http.post(URL, json=ask_body(), headers={"origin": own}).status_code == 200


def test_a_named_origin_may_ask_and_read_the_reply(ask_body, served: Any) -> None:
    site = "http://localhost:5173"
    app = served(keys="secret", cors_origins=[site])
    wish = {
        "origin": site,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    }
    reply = asked(app, "OPTIONS", URL, headers=wish)
    assert reply.status_code == 200  # a browser sends no key with it
    assert "x-stainless-lang" in reply.headers["access-control-allow-headers"]
    for key, status in (("secret", 200), ("wrong", 401)):
        headers = {"origin": site, "authorization": f"Bearer {key}"}
        reply = asked(app, "POST", URL, json=ask_body(), headers=headers)
        assert reply.status_code == status, reply.text
        assert reply.headers["access-control-allow-origin"] == site
        exposed = reply.headers["access-control-expose-headers"].lower()
        assert all(name in exposed for name in ("x-request-id", "x-m3-scale", "retry-after"))
    refused = asked(app, "POST", URL, json={}, headers={"origin": "http://evil.example"})
    assert "access-control-allow-origin" not in refused.headers


def test_without_the_setting_the_preflight_names_it(http: httpx2.Client) -> None:
    reply = http.options(URL, headers={"origin": "http://localhost:5173"})
    assert "cors_origins" in is_envelope(reply, 405, "method_not_allowed")


def test_nobody_puts_the_console_in_a_frame(http: httpx2.Client) -> None:
    headers = http.get("/").headers
    assert headers["content-security-policy"] == "frame-ancestors 'none'"


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json"]
)
def test_a_body_must_say_that_it_is_json(http: httpx2.Client, ask_body, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    reply = http.post(URL, content=json.dumps(ask_body()).encode(), headers=headers)
    assert "application/json" in is_envelope(reply, 415, "unsupported_media_type")


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/problem+json"])
def test_json_may_say_more(http: httpx2.Client, ask_body, kind: str) -> None:
    content = json.dumps(ask_body()).encode()
    assert http.post(URL, content=content, headers={"content-type": kind}).status_code == 200


@pytest.mark.parametrize("coding", ["gzip", "zstd", "br", "gzip, identity"])
def test_compressed_bodies_are_refused_by_that_name(http: httpx2.Client, ask_body, coding) -> None:
    content = gzip.compress(json.dumps(ask_body()).encode())
    headers = {"content-type": "application/json", "content-encoding": coding}
    reply = http.post(URL, content=content, headers=headers)
    assert "Content-Encoding" in is_envelope(reply, 415, "unsupported_media_type")
    assert reply.headers["accept-encoding"] == "identity"


def test_many_values_are_refused_before_they_are_parsed(http: httpx2.Client) -> None:
    for inner in (b"0," * 400_000 + b"0", b"[" * 100_001 + b"]" * 100_001):
        raw = b'{"messages":[' + inner + b"]}"
        reply = http.post(URL, content=raw, headers={"content-type": "application/json"})
        is_envelope(reply, 400, "too_many_values")


@pytest.mark.parametrize(
    "raw",
    [
        b'{"messages":[' + b"0," * 90_000 + b"0]}",
        b'{"messages":[{"role":"user","content":[' + b"0," * 90_000 + b"0]}]}",
    ],
)
def test_validation_ends_at_the_first_mistake(raw: bytes) -> None:
    """90,000 wrong messages or parts make a handful of complaints, not 90,000."""
    from serve.protocol import ChatRequest

    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate_json(raw)
    assert caught.value.error_count() <= 3  # of one place; content may be of two types
    with pytest.raises(Exception, match=r"messages\.0") as told:
        asyncio.run(parse_body(raw, ChatRequest))
    assert told.value.status == 400


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "what is this?", "cache_control": {"type": "ephemeral"}},
        {"type": "image_url", "image_url": {"url": "data:,"}, "cache_control": {"type": "x"}},
    ],
)
def test_an_extra_key_in_a_part_is_named_itself(http: httpx2.Client, part) -> None:
    reply = http.post(URL, json={"messages": [{"role": "user", "content": [part]}]})
    error = reply.json()["error"]
    assert error["param"] == "messages.0.content.0.cache_control"
    assert "Remove it" in error["message"]


def test_a_sender_of_too_much_gets_to_read_why(running: Any) -> None:
    """Without a content length, and still sending when the limit is passed."""
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as caller:
        head = (
            f"POST {URL} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
            "transfer-encoding: chunked\r\n\r\n"
        )
        caller.sendall(head.encode())
        piece = b" " * 100_000
        for _ in range(80):  # 8 MB where 3 are allowed
            caller.sendall(b"%x\r\n" % len(piece) + piece + b"\r\n")
        caller.sendall(b"0\r\n\r\n")
        reply = caller.recv(65536)
    assert reply.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"request_too_large"' in reply.replace(b": ", b":")


def test_a_body_that_only_trickles_is_given_up() -> None:
    """Never idle for long, and never done: the deadline of the whole body ends it."""

    class Trickling:
        def __init__(self) -> None:
            self.headers: dict[str, str] = {}
            self.pieces = 0

        async def stream(self) -> Any:
            while self.pieces < 1_000:
                self.pieces += 1
                yield b" "
                await asyncio.sleep(0.01)

    caller, taken = Trickling(), list[int]()
    with pytest.raises(Exception, match=r"did not arrive within 0\.1 s") as caught:
        asyncio.run(read_body(caller, 10_000, 0.1, taken.append))  # type: ignore[arg-type]
    assert sum(taken) == caller.pieces
    assert caught.value.status == 408
    assert 0 < caller.pieces < 1_000


def test_a_body_that_pauses_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Pausing:
        headers: ClassVar[dict[str, str]] = {}

        async def stream(self) -> Any:
            yield b"{"
            await asyncio.Event().wait()

    monkeypatch.setattr("serve.web.body.IDLE_S", 0.01)
    with pytest.raises(Exception, match=r"or paused for 0\.01 s") as caught:
        asyncio.run(read_body(Pausing(), 1000, 3600.0, print))  # type: ignore[arg-type]
    assert caught.value.status == 408


def test_bodies_are_counted_before_they_are_read(running: Any) -> None:
    from serve.errors import QueueFull

    gateway = running.service.gateway
    limit = gateway.settings.max_inflight_bytes
    with gateway.admission.reading(limit - 10):
        with gateway.admission.reading(10):
            pass
        with pytest.raises(QueueFull), gateway.admission.reading(11):
            pass
    with gateway.admission.reading(limit):
        pass


def test_a_body_counts_as_it_comes_whatever_it_announces(running: Any) -> None:
    from serve.errors import QueueFull

    gateway = running.service.gateway
    limit = gateway.settings.max_inflight_bytes
    with ExitStack() as held:
        half_sent = [held.enter_context(gateway.admission.reading(0, limit)) for _ in range(200)]
        half_sent[0](limit - 10)
        with pytest.raises(QueueFull):
            held.enter_context(gateway.admission.reading(0, 11))
        half_sent[1](10)
        with pytest.raises(QueueFull):
            half_sent[2](1)
        half_sent[0](-1)
        half_sent[2](1)
    with gateway.admission.reading(limit):
        pass


@pytest.mark.parametrize("announces", [True, False])
def test_who_is_refused_while_sending_reads_why(running: Any, announces: bool) -> None:
    gateway = running.service.gateway
    body = b"[" + b" " * 900_000 + b"]"

    def pieces() -> Iterator[bytes]:
        yield from (body[start : start + 50_000] for start in range(0, len(body), 50_000))

    content = body if announces else pieces()
    headers = {"content-type": "application/json"}
    with gateway.admission.reading(gateway.settings.max_inflight_bytes - 300_000):
        reply = httpx2.post(running.url + URL, content=content, headers=headers)
    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "queue_full")
    assert httpx2.post(running.url + URL, content=body, headers=headers).status_code == 400


@pytest.mark.parametrize("said", ["", " ", ",", " , "])
def test_an_empty_secret_lets_nobody_in(command, monkeypatch, said: str) -> None:
    monkeypatch.setenv(API_KEYS_VARIABLE, said)
    done = command("m3-serve", "up", "--in-process", "--port", 0)
    assert (done.returncode, done.stdout) == (2, "")
    assert "holds no key" in done.stderr


def test_keys_that_are_handed_over_count_whatever_the_environment_says(
    running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from serve.tenants.keys import environment_keys
    from serve.tenants.live_keys import LiveKeys

    monkeypatch.setenv(API_KEYS_VARIABLE, "secret")
    keys = environment_keys()
    monkeypatch.delenv(API_KEYS_VARIABLE)
    assert keys is not None
    app = create_api(running.service.gateway, keys=LiveKeys(keys, running.service.gateway.metrics))
    assert asked(app, "GET", "/v1/models").status_code == 401
    for key, status in (("secret", 200), (keys[0].sha256, 401)):
        headers = {"authorization": f"Bearer {key}"}
        assert asked(app, "GET", "/v1/models", headers=headers).status_code == status


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.9.9.9", True),
     ("0.0.0.0", False), ("::", False), ("192.168.1.7", False), ("no.such.host.invalid", None)],
)  # fmt: skip
def test_which_addresses_only_this_machine_reaches(host: str, alone: bool | None) -> None:
    assert is_loopback(host) is alone


@pytest.mark.parametrize("way", [[], ["--in-process"]])
def test_other_machines_need_a_key(command, monkeypatch, tmp_path, way: list[str]) -> None:
    monkeypatch.delenv(API_KEYS_VARIABLE, raising=False)
    folders = ("--log-dir", tmp_path / "log", "--registry", tmp_path / "registry")
    done = command("m3-serve", "up", "--host", "0.0.0.0", "--port", 0, *way, *folders)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "M3_API_KEYS" in done.stderr
    assert done.stderr.count("\n") == 1
