"""A small request again and again, while others do what they do: python probe.py HOST PORT FILE.

A process of its own, so that whoever sends the abuse does not hold it up. Each line of the file is
when it began (the machine's monotonic clock), what was asked, the milliseconds and the status.
"""

from __future__ import annotations

import base64
import http.client
import json
import sys
import time
from pathlib import Path

PAUSE_S = 0.01
PICTURE = Path(__file__).parents[2] / "serve" / "pictures" / "scene-00.png"


def main(host: str, port: int, file: Path) -> None:
    """Ask until somebody ends this process."""
    url = "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "what colour is the biggest shape?"},
    ]
    body = {"messages": [{"role": "user", "content": parts}], "routing": {"second_look": False}}
    raw, headers = json.dumps(body).encode(), {"content-type": "application/json"}
    connection = http.client.HTTPConnection(host, port, timeout=60)
    with file.open("w", buffering=1, encoding="utf-8") as lines:
        while True:
            for what, ask in (
                ("small", ("POST", "/v1/chat/completions", raw, headers)),
                ("live", ("GET", "/health/live")),
            ):
                began = time.monotonic()
                try:
                    connection.request(*ask)  # type: ignore[arg-type]
                    reply = connection.getresponse()
                    reply.read()
                    status = reply.status
                except (OSError, http.client.HTTPException):
                    connection.close()
                    status = 0
                ms = 1000 * (time.monotonic() - began)
                lines.write(f"{began:.6f} {what} {ms:.3f} {status}\n")
                time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
