"""What stands before the paths: forms of a path, heads, hosts, origins, keys and addresses."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx2
import pytest

from serve.settings import API_KEYS_VARIABLE
from serve.web.api import create_api
from serve.web.front import host_name, hosts_of, straight
from serve.web.listening import is_loopback

from .conftest import is_envelope

URL = "/v1/chat/completions"


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


@pytest.mark.parametrize("path", ["/v1/models/", "//v1/models", "/v1//models//", "/health/"])
def test_a_path_is_answered_in_place_however_its_slashes_stand(
    running: Any, http: httpx2.Client, path: str
) -> None:
    reply = http.get(running.url + path, headers={"x-forwarded-proto": "https"})
    assert reply.status_code == 200, reply.headers
    assert http.post(URL + "/", json={}).status_code == 400  # the path was found, the body is wrong


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
