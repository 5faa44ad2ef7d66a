"""Fields of a chat request that are not honoured: which are harmless, which must be refused.

Knows OpenAI's field names; knows nothing of models, routers or HTTP.
"""

from __future__ import annotations

from typing import Any

from serve.protocol import ChatRequest

# Fields that never change an answer: accepted, and that is all.
HARMLESS = frozenset(
    {"metadata", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "user"}
)
# Fields that are not honoured, with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (None,),
    "frequency_penalty": (None, 0),
    "function_call": (None, "none"),
    "functions": (None, []),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "modalities": (None, ["text"]),
    "n": (None, 1),
    "parallel_tool_calls": (None, True, False),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "reasoning_effort": (None,),
    "response_format": (None, {"type": "text"}),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "tool_choice": (None, "none"),
    "tools": (None, []),
    "top_logprobs": (None, 0),
    "verbosity": (None,),
    "web_search_options": (None,),
}


def refused_knob(request: ChatRequest) -> tuple[str, str] | None:
    """Return (field, sentence) for the first field that would be ignored, or None."""
    for field, value in (request.model_extra or {}).items():
        if field in HARMLESS:
            continue
        if field not in NEUTRAL:
            return field, f"Unknown field '{field}'. Remove it."
        # `1 == True` in Python, not in JSON: compare the types as well.
        if not any(value == ok and isinstance(value, bool) == isinstance(ok, bool)
                   for ok in NEUTRAL[field]):  # fmt: skip
            return field, f"'{field}' is not supported by this service. Remove it."
    if request.stream_options is not None and not request.stream:
        return "stream_options", "'stream_options' needs 'stream': true. Remove one of the two."
    both = request.max_tokens, request.max_completion_tokens
    if None not in both and both[0] != both[1]:
        return "max_tokens", "'max_tokens' and 'max_completion_tokens' differ. Send one of them."
    return None
