"""One request inside an engine: checked against the model, its row in a pass, its way back.

It knows the limits of a model's config, a row's place in the pool and one reader's event loop;
nothing of threads or of how a pass is computed.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
import traceback
from array import array
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from m3model.config import M3Config
from m3model.engine.detokenise import TextStream
from m3model.engine.interface import Sampling, TokenEvent
from m3model.engine.kv_pool import PAGE_TOKENS, Extent, Prefix
from m3model.engine.passes.chunks import Chunk
from m3model.errors import BadRequest, EngineError, PromptTooLong, RequestCancelled
from m3model.prompt.visual_tokens import token_counts

if TYPE_CHECKING:
    from m3model.engine.passes.sampling import Draw


@dataclass(eq=False)
class EngineRequest:
    """A request in flight.

    `prompt_tokens` counts its visual tokens too; `prefix` is None without pictures. `events` is
    read in the caller's loop; `deliver` may be called from any thread.
    """

    request_id: str
    prompt_ids: list[int]
    visual_tokens: list[torch.Tensor]
    sampling: Sampling
    prompt_tokens: int
    max_new_tokens: int
    prefix: Prefix | None
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[TokenEvent | EngineError] = field(default_factory=asyncio.Queue)
    cancelled: threading.Event = field(default_factory=threading.Event)
    submitted: float = field(default_factory=time.monotonic)

    @property
    def visual_count(self) -> int:
        """Visual tokens of all its pictures."""
        return sum(len(tokens) for tokens in self.visual_tokens)

    def deliver(self, item: TokenEvent | EngineError) -> None:
        """Hands one event, or the error that ends the request, to its reader."""
        deliver_all([(self, item)])

    def cancellation(self) -> RequestCancelled:
        """The error that its reader gets when it was cancelled."""
        return RequestCancelled(f"request {self.request_id} was cancelled")


def forget_frames(error: BaseException) -> None:
    """Lets go of what the frames of an error hold, activations above all: its reader keeps it."""
    traceback.clear_frames(error.__traceback__)
    error.__traceback__ = None


def deliver_all(items: Iterable[tuple[EngineRequest, TokenEvent | EngineError]]) -> None:
    """Hands events of several requests to their readers, waking each event loop once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[EngineRequest, TokenEvent | EngineError]]]
    by_loop = {}
    for job, item in items:
        by_loop.setdefault(job.loop, []).append((job, item))
    for loop, ours in by_loop.items():
        try:
            loop.call_soon_threadsafe(_put, ours)
        except RuntimeError:  # the event loop was closed: nobody is left to read the rest
            for job, _ in ours:
                job.cancelled.set()


def _put(items: list[tuple[EngineRequest, TokenEvent | EngineError]]) -> None:
    for job, item in items:
        job.events.put_nowait(item)


def checked_request(
    config: M3Config,
    max_length: int,
    request_id: str,
    prompt_ids: list[int],
    visual_tokens: torch.Tensor | Sequence[torch.Tensor] | None,
    sampling: Sampling,
) -> EngineRequest:
    """The request, bound to the running event loop; its answer ends where the context does.

    Raises:
        BadRequest: ids outside the vocabulary, or pictures that do not fit the prompt or model.
        PromptTooLong: no room for even one answer token.
    """
    if isinstance(visual_tokens, torch.Tensor):
        visual_tokens = [visual_tokens]
    visual_tokens = list(visual_tokens or ())
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
        prompt_tokens=length,
        max_new_tokens=min(sampling.max_new_tokens, max_length - length),
        prefix=_prefix(prompt_ids, visual_tokens, counts, config.image_token_id),
        loop=asyncio.get_running_loop(),
    )


def _prefix(
    prompt_ids: list[int], pictures: list[torch.Tensor], counts: Sequence[int], image_id: int
) -> Prefix | None:
    """What a later question about the same pictures would begin with as well.

    The key holds the first and last token of each picture only: hashing all of a picture takes
    milliseconds, comparing it, once something looks like a hit, a fraction of one.
    """
    if not pictures:
        return None
    marks = [at for at, token in enumerate(prompt_ids) if token == image_id]
    texts = tuple(
        tuple(prompt_ids[after + 1 : mark])
        for after, mark in zip([-1, *marks[:-1]], marks, strict=True)
    )
    start = hashlib.blake2b(array("q", texts[0]).tobytes(), digest_size=16)
    start.update(f"{pictures[0].dtype}".encode() + _bytes_of(pictures[0][:1]))
    key = hashlib.blake2b(array("q", prompt_ids[: marks[-1] + 1]).tobytes(), digest_size=16)
    for tokens in pictures:
        key.update(f"{tuple(tokens.shape)} {tokens.dtype}".encode() + _bytes_of(tokens[[0, -1]]))
    length = sum(map(len, texts)) + sum(counts)
    if marks[-1] == len(prompt_ids) - 1:
        length -= 1  # somebody has to read the last token
    if not length:
        return None
    return Prefix(key.digest(), start.digest(), texts, tuple(pictures), length)


def _bytes_of(tokens: torch.Tensor) -> bytes:
    return tokens.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


@dataclass(eq=False)
class Row:
    """One request with room in the pool.

    `read` tokens have their keys and values there, `cached` of them did before it began; `draw` is
    how its tokens are drawn. `embeds` (prompt - cached, D) are there while the prompt is being
    read. `top` are the most probable next tokens, where it asks for them; `over`, that it left.
    """

    job: EngineRequest
    extent: Extent
    text: TextStream
    draw: Draw | None = None
    embeds: torch.Tensor | None = None
    read: int = 0
    cached: int = 0
    top: tuple[tuple[int, float], ...] = ()
    ids: list[int] = field(default_factory=list)
    admitted: float = field(default_factory=time.monotonic)
    over: bool = False

    @property
    def left(self) -> int:
        """Prompt tokens not read yet."""
        return max(self.job.prompt_tokens - self.read, 0)

    def chunk(self, new: int) -> Chunk:
        """The next `new` tokens as attention needs them."""
        return Chunk(self.extent.start, self.read, new, self.extent.pages * PAGE_TOKENS)

    def next_embeds(self, new: int) -> torch.Tensor:
        """(new, D): of the prompt's next `new` tokens."""
        at = self.read - self.cached
        assert self.embeds is not None
        return self.embeds[at : at + new]

    def say(self, token_id: int, logprob: float, end_ids: Collection[int]) -> TokenEvent:
        """Takes the next token; the event has a finish reason when it is the last."""
        self.ids.append(token_id)
        is_last = len(self.ids) >= self.job.max_new_tokens
        delta, reason, shown = self.text.say(token_id, ends=token_id in end_ids, is_last=is_last)
        queued_s = self.admitted - self.job.submitted if len(self.ids) == 1 else None
        return TokenEvent(token_id, logprob, delta, reason, self.top, shown, self.cached, queued_s)


def next_chunks(rows: Sequence[Row], prompt_budget: int) -> list[tuple[Row, int]]:
    """How many tokens each row reads in the next pass.

    Every row that has begun to answer reads its last token: no prompt holds up an answer. Prompts
    share `prompt_budget` tokens, first come first served; what does not fit waits for a later pass.
    """
    chunks = []
    for row in rows:
        if row.left:
            new = min(row.left, prompt_budget)
            prompt_budget -= new
        else:
            new = 1
        if new:
            chunks.append((row, new))
    return chunks
