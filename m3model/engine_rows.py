"""The requests that are being answered: what each has read and said, and what the next pass reads.

It knows prompts, answers and text; nothing of threads, queues or the model.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch
from transformers import LogitsProcessor

from m3model.detokenise import TextStream
from m3model.engine import TokenEvent
from m3model.engine_request import EngineRequest
from m3model.kv_pool import Extent
from m3model.packed_attention import Chunk


@dataclass(eq=False)
class Row:
    """One request with room in the pool.

    `read` tokens have their keys and values there; `draw` turns logits into scores whose argmax is
    the next token. `embeds` (prompt, D) are there while the prompt is being read.
    """

    job: EngineRequest
    extent: Extent
    text: TextStream
    draw: Sequence[LogitsProcessor] = ()
    embeds: torch.Tensor | None = None
    read: int = 0
    ids: list[int] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Prompt tokens not read yet."""
        return max(self.job.prompt_tokens - self.read, 0)

    def chunk(self, new: int) -> Chunk:
        """The next `new` tokens as attention needs them."""
        return Chunk(self.extent.start, self.read, new)

    def say(self, token_id: int, logprob: float, end_ids: Collection[int]) -> TokenEvent:
        """Takes the next token; the event has a finish reason when it is the last."""
        self.ids.append(token_id)
        delta, stopped = self.text.push(token_id)
        reason = None
        if stopped or token_id in end_ids:
            reason = "stop"
        elif len(self.ids) >= self.job.max_new_tokens:
            reason = "length"
        if reason is not None and not stopped:
            delta += self.text.flush()
        return TokenEvent(token_id, logprob, delta, reason)


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
