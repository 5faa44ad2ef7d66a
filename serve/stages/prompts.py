"""Conversations as token ids, and whether they fit the context; the same wherever they are counted.

Knows the processor and how long a prompt may be; knows no pictures, no engine and no routing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from m3model.errors import PromptTooLong
from serve.errors import BadRequest, as_sentence, too_much_text

if TYPE_CHECKING:
    from m3model import M3Config, M3Processor

# More text than this is tokenised in a thread: it would hold up every other request meanwhile.
MOST_CHARACTERS_AT_ONCE = 4_000
# At most: a character's bytes, and what a template writes around a turn and before all of them.
TOKENS_A_CHARACTER, TOKENS_A_TURN = 4, 64


class Prompts:
    """The prompts of one checkpoint.

    Args:
        processor: makes the ids.
        max_length: tokens of the longest prompt plus answer.
    """

    def __init__(self, processor: M3Processor, max_length: int) -> None:
        self._processor, self._max_length = processor, max_length
        self._most_characters = processor.most_characters(max_length)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="m3-prompts")

    async def ids(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Return the ids of a conversation, one for each picture; long text is read in a thread.

        Raises:
            BadRequest: the text cannot fit, whatever its tokens are.
        """
        characters = _n_characters(messages)
        if characters > self._most_characters:
            raise too_much_text(characters, self._most_characters)
        if characters <= MOST_CHARACTERS_AT_ONCE:
            return self._processor.prompt_ids(messages)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._processor.prompt_ids, messages)

    def check(self, n_tokens: int) -> None:
        """Return if a prompt of so many tokens, visual ones included, leaves room for an answer.

        Raises:
            BadRequest: it does not.
        """
        if n_tokens > self.most_tokens:
            raise too_long(PromptTooLong(n_tokens, self.most_tokens))

    @property
    def most_tokens(self) -> int:
        """Tokens of the longest prompt, which leaves room for one of the answer."""
        return self._max_length - 1

    def surely_fit(self, messages: Sequence[dict[str, Any]], visual_tokens: int) -> bool:
        """Return whether so many visual tokens fit beside a conversation, however it is written.

        A guess on the safe side that costs nothing, so that most prompts are tokenised only once.
        """
        text = TOKENS_A_CHARACTER * _n_characters(messages) + TOKENS_A_TURN * (len(messages) + 1)
        return text + visual_tokens <= self.most_tokens

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(wait=False)


def context_tokens(config: M3Config, kv_tokens: int | None) -> int:
    """Return the longest prompt plus answer that an engine with such a cache takes."""
    from m3model.engine.kv_pool import pool_tokens

    longest = int(config.text_config.max_position_embeddings)
    return longest if kv_tokens is None else min(longest, pool_tokens(kv_tokens))


def too_long(error: PromptTooLong) -> BadRequest:
    """Return what the caller is told whose prompt has more tokens than the model reads."""
    return BadRequest(as_sentence(error), "messages", "context_length_exceeded")


def _n_characters(messages: Sequence[dict[str, Any]]) -> int:
    n = 0
    for message in messages:
        content = message.get("content") or ()
        if isinstance(content, str):
            n += len(content)
        else:
            n += sum(len(part.get("text") or "") for part in content)
    return n
