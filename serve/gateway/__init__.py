"""One request, from the parsed body to the logged decision.

`question` reads what is wanted, `gateway` has it answered, `escalation` looks a second time,
`request_trace` remembers what happened; `replies` tell the caller, `request_log` the log.
"""

from serve.gateway.gateway import Gateway

__all__ = ["Gateway"]
