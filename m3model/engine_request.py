"""One request inside an engine: checked against the model, and the way its tokens go back.

It knows the limits of a model's config and one reader's event loop; nothing of generation.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

import torch

from m3model.config import M3Config
from m3model.engine import Sampling, TokenEvent
from m3model.errors import BadRequest, EngineError, PromptTooLong
from m3model.pictures import token_counts


@dataclass(eq=False)
class EngineRequest:
    """A request in flight.

    `events` is read in the caller's loop; `deliver` may be called from any thread.
    """

    request_id: str
    prompt_ids: list[int]
    visual_tokens: list[torch.Tensor]
    sampling: Sampling
    max_new_tokens: int
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[TokenEvent | EngineError] = field(default_factory=asyncio.Queue)
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def visual_count(self) -> int:
        """Visual tokens of all its pictures."""
        return sum(len(tokens) for tokens in self.visual_tokens)

    def deliver(self, item: TokenEvent | EngineError) -> None:
        """Hands one event, or the error that ends the request, to its reader."""
        try:
            self.loop.call_soon_threadsafe(self.events.put_nowait, item)
        except RuntimeError:  # the event loop was closed: nobody is left to read the rest
            self.cancelled.set()


def checked_request(
    config: M3Config,
    max_length: int,
    request_id: str,
    prompt_ids: list[int],
    visual_tokens: list[torch.Tensor],
    sampling: Sampling,
) -> EngineRequest:
    """The request, bound to the running event loop; its answer ends where the context does.

    Raises:
        BadRequest: ids outside the vocabulary, or pictures that do not fit the prompt or model.
        PromptTooLong: no room for even one answer token.
    """
    rows = int(config.text_config.vocab_size)
    outside = [i for i in prompt_ids if not 0 <= i < rows]
    if outside or not prompt_ids:
        raise BadRequest(f"prompt ids must lie in 0..{rows - 1}, got {outside[:5] or 'none'}")
    marks = prompt_ids.count(config.image_token_id)
    if marks != len(visual_tokens):
        raise BadRequest(f"{len(visual_tokens)} pictures for {marks} image tokens in the prompt")
    try:
        counts = token_counts(config, visual_tokens)
    except ValueError as error:
        raise BadRequest(str(error)) from error
    length = len(prompt_ids) - marks + sum(counts)
    if length >= max_length:
        raise PromptTooLong(length, max_length - 1)
    return EngineRequest(
        request_id,
        prompt_ids,
        visual_tokens,
        sampling,
        max_new_tokens=min(sampling.max_new_tokens, max_length - length),
        loop=asyncio.get_running_loop(),
    )
