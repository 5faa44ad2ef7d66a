"""Continuous batching of requests with any number of visual tokens each.

`interface` is what callers know, `local` the engine behind it: requests become rows (`request`), a
pass runs rows of any length together (`forward`, `attention`) over their places in one cache
(`kv_pool`), and what it gives becomes tokens and text (`sampling`, `detokenise`).
The room `vllm` holds another behind the same interface.
This package is light; torch comes with `m3model.LocalEngine`.
"""

from m3model.engine.interface import (
    Engine,
    EngineStats,
    Sampling,
    TokenEvent,
)

__all__ = ["Engine", "EngineStats", "Sampling", "TokenEvent"]
