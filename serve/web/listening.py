"""The port: taken before anything slow starts, so that a port in use is known at once.

Knows sockets, and that an address others reach asks for keys.
"""

from __future__ import annotations

import socket
from ipaddress import ip_address

from serve.errors import ServeSetupError
from serve.settings import API_KEYS_VARIABLE


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; port 0 takes a free one.

    Raises:
        ServeSetupError: the address is in use or not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(256)
    except OSError as error:
        listening.close()
        why = error.strerror or str(error)
        raise ServeSetupError(
            f"cannot listen on {host}:{port}: {why}; choose another with --port"
        ) from error
    return listening


def is_loopback(host: str) -> bool | None:
    """Return whether only this machine reaches an address; None for a name that leads nowhere."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return None
    return bool(found) and all(ip_address(each[4][0]).is_loopback for each in found)


def check_exposure(host: str, *, has_keys: bool) -> None:
    """Return if only this machine reaches an address, or callers need a key.

    Raises:
        ServeSetupError: others reach it, and need none.
    """
    if not has_keys and is_loopback(host) is False:
        raise ServeSetupError(
            f"{host} can be reached from other machines, and no API keys are set: set "
            f"{API_KEYS_VARIABLE} to one or several, separated by commas, give a file of them with "
            "--api-keys-file (the setting api_keys_file), or listen on 127.0.0.1"
        )


def url_of(host: str, listening: socket.socket) -> str:
    """Return the address at which callers find it."""
    port = listening.getsockname()[1]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
