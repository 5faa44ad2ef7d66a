"""Pictures by address: a real HTTPS server, and everything that must not be asked for."""

import asyncio
import datetime
import http.server
import ssl
import threading
from collections.abc import Iterator
from typing import Any, ClassVar

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import ValidationError

from serve.errors import BadRequest
from serve.protocol import ChatRequest
from serve.received_pictures import bytes_of_data_url
from serve.settings import RemotePictureSettings
from serve.web.api import create_api
from serve.web.remote_pictures import RemotePictures, is_public

HOST = "img.example"
PICTURE = b"\x89PNG not looked at here"


class Host(http.server.BaseHTTPRequestHandler):
    """Gives a picture, redirects, swells, dawdles; remembers under which names it was asked."""

    asked: ClassVar[list[str]] = []
    cookies: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        self.asked.append(f"{self.headers['host']}{self.path}")
        self.cookies.append(self.headers["cookie"])
        port = self.server.server_address[1]
        moved = {
            "/moved": f"https://other.example:{port}/a.png",
            "/inside": "https://169.254.169.254/latest/meta-data",
            "/plain": "http://img.example/a.png",
            "/unlisted": "https://evil.test/a.png",
            "/round": "/round",
        }.get(self.path)
        if moved is not None:
            self.send_response(302)
            self.send_header("location", moved)
            self.end_headers()
            return
        body = {"/large": b"x" * 5000}.get(self.path, PICTURE)
        self.send_response({"/none": 404, "/nowhere": 302, "/unchanged": 304}.get(self.path, 200))
        self.send_header("set-cookie", "seen=1")
        if self.path == "/packed":
            self.send_header("content-encoding", "gzip")
        self.end_headers()
        if self.path == "/slow":
            threading.Event().wait(3)
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, ssl.SSLContext]]:
    """A server with a certificate for *.example names; its port, and who trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName(each) for each in (HOST, "other.example", "xn--fiqs8s.example")]
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), False).sign(key, hashes.SHA256())
    )  # fmt: skip
    file = tmp_path_factory.mktemp("tls") / "host.pem"
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    file.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
        + certificate.public_bytes(pem)
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1], ssl.create_default_context(cafile=str(file))
    server.shutdown()
    server.server_close()


def naming(url: str) -> ChatRequest:
    """Return a request with one picture."""
    part = {"type": "image_url", "image_url": {"url": url}}
    return ChatRequest.model_validate({"messages": [{"role": "user", "content": [part]}]})


def fetch(
    url: str, trusted: ssl.SSLContext | None = None, *,
    addresses: tuple[str, ...] = ("127.0.0.1",), loopback: bool = True, **settings: object,
) -> bytes:  # fmt: skip
    """Return what is put in for one picture; names lead to ``addresses``."""
    hosts = ["*.img.example", HOST, "other.example", "third.example"]
    said = {"hosts": hosts, "timeout_s": 2.0, "max_bytes": 2048} | settings

    async def resolve(name: str, port: int) -> list[str]:
        return list(addresses)

    def allowed(address: str) -> bool:
        return (loopback and address == "127.0.0.1") or is_public(address)

    remote = RemotePictures(RemotePictureSettings(**said), resolve, allowed, trusted)  # type: ignore[arg-type]
    body = naming(url)
    assert remote.count(body) == 1
    n_bytes = asyncio.run(remote.put_in(body))
    data = bytes_of_data_url(body.messages[0].content[0].image_url.url, "url")  # type: ignore[union-attr]
    assert n_bytes == len(data)
    return data


def test_a_picture_is_fetched_under_its_own_name(host: tuple[int, ssl.SSLContext]) -> None:
    port, trusted = host
    Host.asked.clear()
    assert fetch(f"https://{HOST}:{port}/a.png", trusted) == PICTURE
    assert fetch(f"https://{HOST}:{port}/moved", trusted) == PICTURE
    assert Host.asked == [f"{HOST}:{port}/a.png", f"{HOST}:{port}/moved",
                          f"other.example:{port}/a.png"]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/inside", "hosts that this service lists"),
        ("/plain", "by https"),
        ("/unlisted", "hosts that this service lists"),
        ("/round", "leads on too often"),
        ("/none", "did not give it"),
        ("/nowhere", "did not give it"),
        ("/unchanged", "did not give it"),
        ("/large", "more than 2,048 bytes"),
        ("/packed", "packed"),
    ],
)
def test_what_is_not_taken(host: tuple[int, ssl.SSLContext], path: str, says: str) -> None:
    port, trusted = host
    with pytest.raises(BadRequest, match=says) as refused:
        fetch(f"https://{HOST}:{port}{path}", trusted)
    assert (refused.value.status, refused.value.param) == (
        400, "messages.0.content.0.image_url.url",
    )  # fmt: skip


def test_no_cookie_is_kept(host: tuple[int, ssl.SSLContext]) -> None:
    async def local(*_: object) -> list[str]:
        return ["127.0.0.1"]

    async def ask_twice() -> None:
        settings = RemotePictureSettings(hosts=[HOST, "other.example"])
        remote = RemotePictures(settings, local, lambda _: True, host[1])
        for name in (HOST, "other.example"):  # at one address, as behind a network of servers
            await remote.put_in(naming(f"https://{name}:{host[0]}/a.png"))

    Host.cookies.clear()
    asyncio.run(ask_twice())
    assert Host.cookies == [None, None]


def test_names_in_other_scripts_are_listed_as_they_are_sent(
    host: tuple[int, ssl.SSLContext],
) -> None:
    listed = {"hosts": ["xn--fiqs8s.example"]}
    for url in (f"https://中国.example:{host[0]}/a", f"https://xn--fiqs8s.example:{host[0]}/a"):
        assert fetch(url, host[1], **listed) == PICTURE


def test_a_host_that_dawdles_is_left(host: tuple[int, ssl.SSLContext]) -> None:
    port, trusted = host
    with pytest.raises(BadRequest, match=r"did not arrive within 0\.2 s"):
        fetch(f"https://{HOST}:{port}/slow", trusted, timeout_s=0.2)


def test_a_certificate_for_another_name_is_not_trusted(host: tuple[int, ssl.SSLContext]) -> None:
    port, trusted = host
    with pytest.raises(BadRequest, match="did not give it"):
        fetch(f"https://third.example:{port}/a.png", trusted)
    with pytest.raises(BadRequest, match="did not give it"):
        fetch(f"https://{HOST}:{port}/a.png")  # nobody trusts it


@pytest.mark.parametrize("proxy", ["HTTPS_PROXY", "ALL_PROXY"])
def test_no_proxy_of_the_environment_is_asked(
    host: tuple[int, ssl.SSLContext], proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    assert fetch(f"https://{HOST}:{host[0]}/a.png", host[1]) == PICTURE


@pytest.mark.parametrize(
    "url",
    ["http://img.example/a.png", "https://img.example.evil.test/a", "https://example/a",
     "https://user:pw@img.example/a", "https://127.0.0.1/a", "https://[::1]/a", "https://2130706433/a",
     "https:///a", "https://evil.test#@img.example/a"],
)  # fmt: skip
def test_other_hosts_are_not_asked(url: str) -> None:
    with pytest.raises(BadRequest):
        fetch(url, addresses=())


@pytest.mark.parametrize(
    "addresses",
    [("127.0.0.1",), ("10.0.0.7",), ("8.8.8.8", "192.168.1.1"), ("::ffff:127.0.0.1",), ("odd",)],
)  # fmt: skip
def test_names_that_lead_inside_are_not_asked(addresses: tuple[str, ...]) -> None:
    with pytest.raises(BadRequest, match="did not give it"):
        fetch("https://img.example/a.png", addresses=addresses, loopback=False)


# By IANA's registries of special addresses, IPv4 and IPv6.
INSIDE = """
0.0.0.0 10.1.2.3 100.64.0.1 127.0.0.1 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.1
192.0.2.1 192.168.0.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1
255.255.255.255 :: ::1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 64:ff9b::7f00:1 64:ff9b:1::1
100::1 2001::1 2001:db8::1 2002:7f00:1::1 fc00::1 fd12::1 fe80::1 fe80::1%eth0 fec0::1 ff02::1
localhost 1.2.3 0x7f.1
"""
OUTSIDE = "1.1.1.1 8.8.8.8 93.184.216.34 172.32.0.1 ::ffff:8.8.8.8 2606:4700::1111 2a00:1450::1"


@pytest.mark.parametrize("name", ["a" * 70, "a.", ".", "a." * 130 + "a"])
def test_names_that_no_look_up_takes_are_refused(name: str) -> None:
    remote = RemotePictures(RemotePictureSettings(hosts=["*.img.invalid"]))
    with pytest.raises(BadRequest) as refused:
        asyncio.run(remote.put_in(naming(f"https://{name}.img.invalid/a.png")))
    assert refused.value.code == "remote_image_unreachable"


def test_public_addresses_are_those_of_the_registries() -> None:
    assert [each for each in INSIDE.split() if is_public(each)] == []
    assert [each for each in OUTSIDE.split() if not is_public(each)] == []


def test_it_is_off_where_no_host_is_named() -> None:
    body = naming("https://img.example/a.png")
    off = RemotePictures(RemotePictureSettings())
    assert (off.count(body), asyncio.run(off.put_in(body))) == (0, 0)


@pytest.mark.parametrize("name", ["*", "127.0.0.1", "https://img.example", "*.1.2", "a b.example"])
def test_only_names_of_hosts_are_listed(name: str) -> None:
    with pytest.raises(ValidationError, match="is not a host's name"):
        RemotePictureSettings(hosts=[name])


def test_callers_are_told_which_picture_cannot_be_had(
    running: Any, ask_body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = running.service.gateway
    remote = RemotePictureSettings(hosts=["img.invalid"])  # a name that leads nowhere (RFC 2606)
    settings = gateway.settings.model_copy(update={"remote_pictures": remote})
    monkeypatch.setattr(gateway, "settings", settings)
    app = create_api(gateway)
    body = ask_body()

    async def ask(url: str) -> tuple[int, str, str]:
        body["messages"][0]["content"].insert(1, {"type": "image_url", "image_url": {"url": url}})
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            reply = await http.post("/v1/chat/completions", json=body)
        del body["messages"][0]["content"][1]
        error = reply.json()["error"]
        return reply.status_code, error["code"], error["param"]

    param = "messages.0.content.1.image_url.url"
    for url, code in [
        ("https://img.invalid/a.png", "remote_image_unreachable"),
        ("https://elsewhere.example/a.png", "remote_host_not_allowed"),
        ("ftp://img.invalid/a.png", "invalid_image"),
    ]:
        assert asyncio.run(ask(url)) == (400, code, param)
