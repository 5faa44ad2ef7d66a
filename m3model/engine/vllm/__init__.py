"""vLLM behind the `Engine` protocol, in a process and a Python environment of its own.

`engine` is what callers use, `process` starts the process and keeps the socket to it, `folder`
lays out what it loads. `m3_vllm` is what runs over there: it sees nothing of this package.
"""
