"""`Engine`: requests in, tokens out, for asyncio. What the service needs of any text generator.

Pictures arrive as visual tokens, any number of them; vision tower, pooling, scale and focus are the
caller's affair. Implementations are `m3model.engine.local` and `m3model.engine.vllm`; importing
this module is light.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from m3model.errors import BadRequest

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Temperature 0 is greedy; `stop` strings end the answer and are not part of it. Every event tells
    the `top_logprobs` most probable tokens of its place.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise BadRequest(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not self.temperature >= 0.0 or not 0.0 < self.top_p <= 1.0:
            raise BadRequest(
                f"temperature must be >= 0 and top_p within (0, 1], "
                f"got {self.temperature} and {self.top_p}"
            )
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise BadRequest(f"seed must fit 64 bits, got {self.seed}")
        if isinstance(self.stop, str) or any(not stop for stop in self.stop):
            raise BadRequest(f"stop is a tuple of non-empty strings, got {self.stop!r}")
        if self.top_logprobs < 0:
            raise BadRequest(f"top_logprobs must not be negative, got {self.top_logprobs}")


@dataclass(frozen=True)
class TokenEvent:
    """One token of an answer.

    `logprob` is the natural logarithm of the model's own probability (temperature 1, nothing
    filtered). `text_delta` is the text made certain by this token. `finish_reason` is None until
    the last event: "stop" or "length". `top` holds the most probable tokens of this place with
    their log-probabilities, where the request asked for them. `n_shown` of the answer's tokens so
    far stand, in whole or part, in the text handed out so far: not the end token, nor those of a
    stop string. `cached_tokens` of the prompt were not read: their keys and values lay ready.
    `queued_s`, on the first event of an engine that tells it: how long the request waited before a
    pass began to read it.
    """

    token_id: int
    logprob: float
    text_delta: str
    finish_reason: str | None = None
    top: tuple[tuple[int, float], ...] = ()
    n_shown: int = 0
    cached_tokens: int = 0
    queued_s: float | None = None


@dataclass(frozen=True)
class EngineStats:
    """What an engine is doing.

    Requests, prompt tokens in flight (waiting and running), seconds since the last sign of life;
    pages of the key-value cache in all, in use, and holding prefixes for later questions; the kind
    of attention, the device, the dtype and the library of products that it works with ("" where it
    does not tell).
    """

    running: int
    waiting: int
    visual_tokens: int
    text_tokens: int
    heartbeat_s: float
    alive: bool = True
    kv_pages: int = 0
    kv_pages_used: int = 0
    kv_pages_kept: int = 0
    attention: str = ""
    device: str = ""
    dtype: str = ""
    products: str = ""


class Engine(Protocol):
    """What the service needs of anything that generates; `max_length` is the longest prompt plus
    answer, in tokens.
    """

    max_length: int

    def submit(
        self,
        request_id: str,
        prompt_ids: list[int],
        visual_tokens: torch.Tensor | Sequence[torch.Tensor],
        sampling: Sampling,
    ) -> AsyncIterator[TokenEvent]:
        """The answer's tokens as they come; leaving the iteration cancels the request.

        Raises:
            EngineBusy, EngineClosed, BadRequest, PromptTooLong: at once.
            RequestCancelled, RequestFailed, EngineClosed: while iterating.
        """
        ...

    def cancel(self, request_id: str) -> bool:
        """Whether such a request was in flight; it ends, and its cache is free, within one step."""
        ...

    def stats(self) -> EngineStats:
        """What the engine is doing now."""
        ...

    def close(self) -> None:
        """Takes no more work; requests in flight get `EngineClosed`."""
        ...
