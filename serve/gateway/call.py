"""What is known of a request besides its body: who asks, how long it is, how long it may take.

Knows plain values; whoever stands in front fills them in.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from serve.errors import BadRequest

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
        timeout_s: how long its caller waits; None: as long as it takes.
        arrived: when, by `time.perf_counter`.
    """

    request_id: str
    n_bytes: int = 0
    tenant: str = ""
    budget: Budget | None = None
    traceparent: str | None = None
    timeout_s: float | None = None
    arrived: float = field(default_factory=time.perf_counter)

    @property
    def left_s(self) -> float:
        """Seconds that its caller still waits; infinite where nothing was said."""
        if self.timeout_s is None:
            return math.inf
        return self.timeout_s - (time.perf_counter() - self.arrived)


def timeout_of(header: str | None) -> float | None:
    """Return the seconds that a ``timeout`` header gives, None without one.

    Raises:
        BadRequest: it is no number of seconds above zero.
    """
    if header is None:
        return None
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not 0.0 < seconds < math.inf:
        raise BadRequest(
            f"The timeout header is '{header[:100]}'. Send seconds above zero, such as 30 or 2.5, "
            "or leave it out.", "timeout",
        )  # fmt: skip
    return seconds
