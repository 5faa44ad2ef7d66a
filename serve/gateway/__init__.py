"""One request, from the parsed body to the logged decision.

`admission` lets it in, `question` reads what is wanted, `gateway` has it answered, `escalation`
looks a second time, `request_trace` remembers what happened; `replies` tell the caller,
`request_log` the log; `health` says how the parts are.
"""

from serve.gateway.gateway import Gateway

__all__ = ["Gateway"]
