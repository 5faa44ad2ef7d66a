"""The share of requests that is audited, as a log tells it to the services that write it.

    <log>/audit.json    {"rate": 0.1}; not there: what each service was started with

Knows one small file; knows nothing of who draws.
"""

from __future__ import annotations

import json

from router.log.layout import replace_file
from router.places import Place

AUDIT = "audit.json"


def read_audit_rate(log: Place) -> float | None:
    """Return the share that the log tells; None: it tells none.

    Raises:
        OSError, ValueError: it cannot be read, or is no share.
    """
    try:
        told = (log / AUDIT).read_bytes()
    except FileNotFoundError:
        return None
    try:
        return _checked(json.loads(told)["rate"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{log / AUDIT} tells no rate") from error


def write_audit_rate(log: Place, rate: float | None) -> None:
    """Tell all services that write this log which share to audit; None: what each began with.

    Raises:
        ValueError: it is no share.
    """
    if rate is None:
        (log / AUDIT).unlink(missing_ok=True)
    else:
        replace_file(log / AUDIT, json.dumps({"rate": _checked(rate)}).encode() + b"\n")


def _checked(rate: object) -> float:
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise ValueError(f"the audited share must be from 0 to 1, not {rate!r}")
    return float(rate)
