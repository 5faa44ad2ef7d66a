"""What is known of a request besides its body: who asks, and how long its body was.

Knows plain values; whoever stands in front fills them in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serve.tenants.budgets import Budget


@dataclass(frozen=True)
class Call:
    """One request as it arrived.

    Attributes:
        request_id: names it in replies, the log and complaints.
        n_bytes: length of its body, which it holds while it is worked on.
        tenant: name of the key it carries; "" where none is asked for.
        budget: what that tenant may have read; None where nothing limits it.
        traceparent: what the caller says its own span is, unchecked; None: nothing.
    """

    request_id: str
    n_bytes: int = 0
    tenant: str = ""
    budget: Budget | None = None
    traceparent: str | None = None
