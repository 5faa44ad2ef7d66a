"""What is known of a request besides its body: who asks, and how long its body was.

Knows plain values; whoever stands in front fills them in.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Call:
    """One request as it arrived.

    Attributes:
        request_id: names it in replies, the log and complaints.
        n_bytes: length of its body, which it holds while it is worked on.
    """

    request_id: str
    n_bytes: int = 0
