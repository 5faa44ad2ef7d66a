"""Requests whose heads do not end: refused before they fill the memory.

uvicorn's fast parser keeps every header that comes, without a limit; its slow one has its own.
Knows uvicorn's protocol; knows nothing of what headers say.
"""

from __future__ import annotations

from typing import Any

# More than any head that is meant; one read may hold a head and the beginning of its body.
MAX_HEAD_BYTES = 2**19

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError:  # httptools is not installed, so uvicorn takes its slow parser
    PROTOCOL: Any = "auto"
else:

    class BoundedHeads(HttpToolsProtocol):
        """The fast parser, which answers 400 to a head that is too long."""

        _head_bytes = 0
        _in_head = True

        def data_received(self, data: bytes) -> None:
            """Take what came."""
            if self._in_head:
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES:
                    self._unset_keepalive_if_required()
                    self.send_400_response("The request's head is too long.")
                    return
            super().data_received(data)

        def on_headers_complete(self) -> None:
            """The head is over."""
            self._in_head, self._head_bytes = False, 0
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            """The next head may come."""
            self._in_head = True
            super().on_message_complete()

    PROTOCOL = BoundedHeads
