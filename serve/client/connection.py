"""How the service is reached: address, key, patience and, for other machines, the proxy.

Knows the environment and HTTP settings, which both clients share; knows nothing of requests.

An address of this machine is never reached through a proxy: none leads back. For any other the
usual variables count, and what cannot be reached through one names it.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Any, TypeVar
from urllib.request import getproxies, proxy_bypass

import httpx2

from serve.client.errors import APIConnectionError

Http = TypeVar("Http", httpx2.Client, httpx2.AsyncClient)


@dataclass(frozen=True)
class Proxy:
    """A proxy, and what names it."""

    url: str
    variable: str


def connect(
    kind: Callable[..., Http], base_url: str, api_key: str | None, timeout: float, transport: object
) -> tuple[Http, str | None]:
    """Return the HTTP client, and the variable that names the proxy in between, if any.

    Raises:
        APIConnectionError: the proxy cannot be used.
        ValueError: the key cannot be sent.
    """
    base_url = base_url.rstrip("/").removesuffix("/v1")  # the openai SDK's base_url works too
    settings: dict[str, Any] = {
        "base_url": base_url,
        "headers": {"authorization": f"Bearer {_sendable(api_key)}"} if api_key else {},
        "timeout": httpx2.Timeout(timeout, connect=min(timeout, 5.0)),
        "trust_env": False,  # proxies are chosen here; certificates are the environment's
    }
    if transport is not None:
        return kind(**settings, transport=transport), None
    proxy = proxy_for(httpx2.URL(base_url))
    # Certificates take 20 ms to load. Where nothing needs them, none are: nobody is trusted.
    tls = base_url.startswith("https:") or (proxy is not None and proxy.url.startswith("https:"))
    settings["verify"] = (
        httpx2.create_ssl_context() if tls else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    )
    if proxy is None:
        return kind(**settings), None
    try:
        return kind(**settings, proxy=proxy.url), proxy.variable
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        raise APIConnectionError(
            f"the proxy that {proxy.variable} names cannot be used: {_advice(proxy, error)}",
            proxy=proxy.variable,
        ) from error


def proxy_for(url: httpx2.URL) -> Proxy | None:
    """Return the proxy that the environment wants for an address."""
    named = getproxies()
    found = next((each for each in (url.scheme, "all") if named.get(each)), None)
    if found is None or is_this_machine(url.host) or _passed_by(url, named.get("no", "")):
        return None
    proxy, name = named[found], f"{found}_proxy"
    spelled = (each for each in (name, name.upper()) if os.environ.get(each))
    return Proxy(
        proxy if "://" in proxy else f"http://{proxy}", next(spelled, "the system's settings")
    )


def is_this_machine(host: str) -> bool:
    """Return whether an address leads to this machine and nowhere else; no name is looked up."""
    name = host.lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ip_address(name.strip("[]"))
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_unspecified


def _passed_by(url: httpx2.URL, no_proxy: str) -> bool:
    """Return whether NO_PROXY names the host: a name, its end, an address, a network, or ``*``."""
    host, port = url.host.lower(), url.port or {"https": 443}.get(url.scheme, 80)
    if proxy_bypass(host):
        return True
    for entry in filter(None, (each.strip().lower() for each in no_proxy.split(","))):
        if entry == "*":
            return True
        try:
            if ip_address(host) in ip_network(entry.strip("[]"), strict=False):
                return True
        except ValueError:  # one of them is a name
            end = entry.removesuffix(f":{port}").removeprefix("*").lstrip(".")
            if host == end or host.endswith(f".{end}"):
                return True
    return False


def _sendable(api_key: str) -> str:
    if not api_key.isascii() or not api_key.isprintable() or api_key != api_key.strip():
        raise ValueError(
            "the API key has characters that no HTTP header can hold (a line's end, a space at its "
            "end, or a letter outside ASCII); copy it again"
        )
    return api_key


def _advice(proxy: Proxy, error: Exception) -> str:
    if isinstance(error, ImportError):
        return "SOCKS needs the package socksio; install it, or unset the variable"
    scheme = proxy.url.partition("://")[0]
    if scheme not in ("http", "https", "socks5", "socks5h"):
        return f"it is of the kind {scheme}, not http, https, socks5 or socks5h"
    return "it is not an address"
