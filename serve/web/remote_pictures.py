"""Pictures that a request names by address: fetched from hosts that are allowed, nothing else.

Whoever may send a request must not make this machine ask others in its place: https only, hosts of
a list, one look-up whose address is the one that is connected to, addresses of the public internet
only, every redirect held to the same, no proxy, bounds on time and bytes. Knows the network and
data URLs; what a picture may be is checked as for any other, when it is here.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import httpx2

from serve.errors import BadRequest
from serve.protocol import ChatRequest, ImagePart
from serve.settings import RemotePictureSettings

Resolve = Callable[[str, int], Awaitable[list[str]]]
MAX_REDIRECTS = 3
MAX_AT_ONCE = 16
# Parts of 2000::/3 that lead elsewhere: IETF's own (Teredo among them), documentation, 6to4.
_NOT_PUBLIC = [IPv6Network(net) for net in ("2001::/23", "2001:db8::/32", "2002::/16")]
_PUBLIC = IPv6Network("2000::/3")


class RemotePictures:
    """Puts the pictures that requests name into them.

    Args:
        settings: which hosts, how long, how much.
        resolve: a host's name and port to addresses.
        allowed: whether an address may be connected to.
        tls: trusted certificates; None: the environment's.
    """

    def __init__(
        self,
        settings: RemotePictureSettings,
        resolve: Resolve | None = None,
        allowed: Callable[[str], bool] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="m3-names")
        self._resolve, self._allowed = resolve or self._look_up, allowed or is_public
        self._tls = tls
        self._http: httpx2.AsyncClient | None = None

    def count(self, body: ChatRequest) -> int:
        """Return how many pictures of a request are to be fetched; none where that is off."""
        return len(_named(body)) if self._settings.hosts else 0

    async def put_in(self, body: ChatRequest) -> int:
        """Return how many bytes were fetched; the request holds them as data URLs now.

        Raises:
            BadRequest: an address that may not be asked, or that gives no picture in time.
        """
        named = _named(body) if self._settings.hosts else []
        tasks = [asyncio.create_task(self._fetch(part.image_url.url, at)) for at, part in named]
        try:
            fetched = await asyncio.gather(*tasks)
        finally:  # one that cannot be had ends the request
            for task in tasks:
                task.cancel()
        for (_, part), data in zip(named, fetched, strict=True):
            encoded = await asyncio.to_thread(base64.b64encode, data)
            part.image_url.url = "data:;base64," + encoded.decode()
        return sum(map(len, fetched))

    async def _fetch(self, url: str, param: str) -> bytes:
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                for _ in range(MAX_REDIRECTS + 1):
                    answer = await self._ask(url, param)
                    if isinstance(answer, bytes):
                        return answer
                    url = answer
        except TimeoutError as error:
            raise _refused(
                f"The picture did not arrive within {self._settings.timeout_s:g} s.", param
            ) from error
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, UnicodeError) as error:
            raise _refused("The picture's host did not give it.", param) from error
        raise _refused("The picture's address leads on too often.", param)

    async def _ask(self, url: str, param: str) -> bytes | str:
        """Return the picture's bytes, or the address it was moved to."""
        wanted = httpx2.URL(url)
        host = wanted.raw_host.decode().lower().rstrip(".")  # as it is looked up: xn--...
        if wanted.scheme != "https" or wanted.userinfo or not _listed(host, self._settings.hosts):
            raise _refused("Pictures are fetched from hosts that this service lists, by https.",
                           param, "remote_host_not_allowed")  # fmt: skip
        addresses = await self._resolve(host, wanted.port or 443)
        # One of several that leads inside is reason enough: names are not to be tried out here.
        if not addresses or not all(map(self._allowed, addresses)):
            raise _refused("The picture's host did not give it.", param)
        # The address that was checked is the one that is asked, under the name it was asked for.
        there = wanted.copy_with(host=addresses[0])
        headers = {"host": wanted.netloc.decode(), "accept": "image/*"}
        headers["accept-encoding"] = "identity"
        async with self._client().stream(
            "GET", there, headers=headers, extensions={"sni_hostname": host}
        ) as reply:
            if reply.has_redirect_location:
                return str(wanted.join(reply.headers["location"]))
            if reply.status_code != 200:
                raise _refused("The picture's host did not give it.", param)
            return await self._read(reply, param)

    async def _read(self, reply: httpx2.Response, param: str) -> bytes:
        """Return the body as it is sent; nothing is unpacked, so nothing can swell."""
        if reply.headers.get("content-encoding", "identity").lower() != "identity":
            raise _refused("The picture's host sends it packed, which is not read.", param)
        data = bytearray()
        async for chunk in reply.aiter_raw():
            data += chunk
            if len(data) > self._settings.max_bytes:
                raise _refused(
                    f"The picture has more than {self._settings.max_bytes:,} bytes.", param
                )
        return bytes(data)

    def _client(self) -> httpx2.AsyncClient:
        if self._http is None:
            # No connection is kept: one to an address must not serve another name there. Nor is a
            # cookie.
            self._http = httpx2.AsyncClient(
                trust_env=False, follow_redirects=False,
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
                verify=self._tls or httpx2.create_ssl_context(),
                limits=httpx2.Limits(max_connections=MAX_AT_ONCE, max_keepalive_connections=0),
            )  # fmt: skip
        return self._http

    async def _look_up(self, host: str, port: int) -> list[str]:
        def look() -> list[str]:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            return [str(each[4][0]) for each in found]

        return await asyncio.get_running_loop().run_in_executor(self._threads, look)


def is_public(address: str) -> bool:
    """Return whether an address lies in the public internet, however it is written."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is None:
            return found in _PUBLIC and not any(found in net for net in _NOT_PUBLIC)
        found = found.ipv4_mapped
    assert isinstance(found, IPv4Address)
    return found.is_global and not found.is_multicast and not found.is_reserved


def _named(body: ChatRequest) -> list[tuple[str, ImagePart]]:
    """Return where a request names pictures by address, and the parts that do."""
    return [
        (f"messages.{i}.content.{j}.image_url.url", part)
        for i, message in enumerate(body.messages)
        if not isinstance(message.content, str)
        for j, part in enumerate(message.content)
        if isinstance(part, ImagePart) and part.image_url.url[:8].lower().startswith(
            ("http://", "https://")
        )
    ]  # fmt: skip


def _listed(host: str, hosts: Sequence[str]) -> bool:
    """Return whether a host is one of the list, or lies under an entry such as *.example.com."""
    return any(host == each or (each[:2] == "*." and host.endswith(each[1:])) for each in hosts)


def _refused(sentence: str, param: str, code: str = "remote_image_unreachable") -> BadRequest:
    return BadRequest(f"{sentence} Send it as a data URL: data:image/png;base64,...", param, code)
