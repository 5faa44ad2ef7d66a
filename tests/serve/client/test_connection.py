"""The way to the service: proxies of the environment, and keys that no header can hold."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, ClassVar

import httpx2
import pytest

from serve.client import APIConnectionError, AsyncM3Client, M3Client
from serve.client.connection import is_this_machine, proxy_for
from serve.client.errors import InternalServerError, Tries

ELSEWHERE = "http://m3.example"
DEAD = "http://127.0.0.1:9"
PROXIES = [
    {"ALL_PROXY": "socks5://127.0.0.1:1080"},
    {"all_proxy": "socks5h://127.0.0.1:1080"},
    {"HTTP_PROXY": DEAD},
    {"http_proxy": DEAD, "HTTP_PROXY": DEAD, "https_proxy": "nonsense://x", "NO_PROXY": "[::"},
]
Environment = Callable[[dict[str, str]], None]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Environment:
    """Sets variables where none names a proxy."""
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)

    def change(variables: dict[str, str]) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return change


@pytest.mark.parametrize("proxies", PROXIES)
def test_this_machine_is_reached_past_every_proxy(
    running: Any, environment: Environment, command: Any, proxies: dict[str, str]
) -> None:
    environment(proxies)

    async def models() -> list[str]:
        async with AsyncM3Client(running.url, max_retries=0) as client:
            return await client.models()

    with M3Client(running.url, max_retries=0) as client:
        assert client.models() == asyncio.run(models())
    done = command("m3-serve", "status", "--url", running.url)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_this_machine() -> None:
    here = ["localhost", "LOCALHOST.", "m3.localhost", "127.0.0.1", "127.8.8.8", "::1", "0.0.0.0",
            "::ffff:127.0.0.1"]  # fmt: skip
    elsewhere = ["m3.example", "localhost.example", "10.0.0.1", "128.0.0.1", "fe80::1", ""]
    assert [host for host in here if not is_this_machine(host)] == []
    assert [host for host in elsewhere if is_this_machine(host)] == []


@pytest.mark.parametrize(
    ("proxies", "names"),
    [
        ({"ALL_PROXY": "socks4://127.0.0.1:1080"}, "ALL_PROXY"),
        ({"http_proxy": "nonsense://x", "ALL_PROXY": DEAD}, "http_proxy"),
        ({"HTTP_PROXY": "http://x:port"}, "HTTP_PROXY"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named(
    environment: Environment, command: Any, proxies: dict[str, str], names: str
) -> None:
    environment(proxies)
    for kind in (M3Client, AsyncM3Client):
        with pytest.raises(APIConnectionError, match=names):
            kind(ELSEWHERE)
    done = command("m3-serve", "status", "--url", ELSEWHERE)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert names in done.stderr
    assert "m3-serve up" not in done.stderr


def test_socks_without_its_package_is_advice(python: Any) -> None:
    code = (
        "import os, sys; sys.modules['socksio'] = None; os.environ['ALL_PROXY'] = 'socks5://x:1'\n"
        "from serve.client import APIConnectionError, M3Client\n"
        f"try: M3Client({ELSEWHERE!r})\n"
        "except APIConnectionError as error: print(error)"
    )
    done = python("-c", code)
    assert "ALL_PROXY" in done.stdout, done.stderr
    assert "socksio" in done.stdout


def test_a_proxy_that_does_not_answer_is_named(environment: Environment, command: Any) -> None:
    environment({"HTTP_PROXY": DEAD})
    with M3Client(ELSEWHERE, max_retries=0) as client:
        for ask in (client.models, client.health):
            with pytest.raises(APIConnectionError, match="HTTP_PROXY") as caught:
                ask()
            assert caught.value.proxy == "HTTP_PROXY"
    done = command("m3-serve", "status", "--url", ELSEWHERE)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "HTTP_PROXY" in done.stderr


@pytest.fixture
def real_proxy() -> Iterator[tuple[str, list[str]]]:
    """A proxy that answers itself, and the addresses that it was asked for."""

    class Handler(BaseHTTPRequestHandler):
        asked: ClassVar[list[str]] = []

        def do_GET(self) -> None:
            self.asked.append(self.path)
            body = json.dumps({"data": [{"id": "m3-auto"}]}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}", Handler.asked
        server.shutdown()
        thread.join()


def test_other_machines_are_reached_through_the_proxy(
    environment: Environment, real_proxy: tuple[str, list[str]]
) -> None:
    address, asked = real_proxy
    environment({"ALL_PROXY": address})  # without http://, as many write it
    with M3Client(f"{ELSEWHERE}/v1", max_retries=0) as client:
        assert client.models() == ["m3-auto"]
    assert asked == [f"{ELSEWHERE}/v1/models"]


@pytest.mark.parametrize(
    ("url", "no_proxy", "goes_through"),
    [
        ("http://m3.example", "", True), ("http://m3.example", "*", False),
        ("http://m3.example", "other, m3.example", False), ("http://m3.example", ".example", False),
        ("http://m3.example", "*.example", False), ("http://m3.example", "3.example", True),
        ("http://m3.example:81", "m3.example:81", False),
        ("http://m3.example:81", "m3.example:82", True),
        ("http://10.1.2.3", "10.0.0.0/8", False), ("http://11.1.2.3", "10.0.0.0/8", True),
        ("http://[fd00::5]", "fd00::/8", False), ("https://m3.example", "", False),
    ],
)  # fmt: skip
def test_no_proxy_is_heeded(
    environment: Environment, url: str, no_proxy: str, goes_through: bool
) -> None:
    environment({"HTTP_PROXY": DEAD, "NO_PROXY": no_proxy})
    assert (proxy_for(httpx2.URL(url)) is not None) == goes_through


@pytest.mark.parametrize(
    "key", ["m3\n", "m3\nb", "schlüssel", "m3\r", "\u200bm3", "m3-key ", "m3\x00"]
)
def test_a_key_that_no_header_can_hold_is_refused_at_once(key: str, command: Any) -> None:
    for kind in (M3Client, AsyncM3Client):
        with pytest.raises(ValueError, match="API key") as caught:
            kind(api_key=key)
        assert key not in str(caught.value)
    done = command("m3-serve", "status", "--api-key", key)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_a_reply_that_forbids_another_try_gets_none() -> None:
    tries = Tries(max_retries=2)
    assert tries.after_reply(503, b"", {"retry-after": "3"}) == 3.0
    with pytest.raises(InternalServerError):
        tries.after_reply(503, b"", {"retry-after": "3", "x-should-retry": "false"})
