"""An S3 server on this machine, all of it in memory: moto's, one request at a time.

Its own threads would tell two writers that both came first; here a condition is looked at and the
object written before the next request is. Prints its port and serves until it is killed.

    python tests/whole/s3_server.py [port]
"""

import sys
import threading
from collections.abc import Iterable
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "bucket"
turn = threading.Lock()
moto = DomainDispatcherApplication(create_backend_app)


class Silent(WSGIRequestHandler):
    """Keeps connections open, and tells nothing."""

    protocol_version = "HTTP/1.1"

    def log(self, *_: Any) -> None:
        """Do nothing."""


def one_at_a_time(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answer one request."""
    with turn:
        return [b"".join(moto(environ, start_response))]


server = make_server(
    "127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else 0, one_at_a_time, threaded=True,
    request_handler=Silent,
)  # fmt: skip
sys.stdout.write(f"{server.server_port}\n")
sys.stdout.flush()
server.serve_forever()
