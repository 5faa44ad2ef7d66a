"""Token ids to text, piece by piece, with stop strings. It knows a tokenizer's `decode` only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Decoder(Protocol):
    """What is needed of a Hugging Face tokenizer."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str: ...


class TextStream:
    """The text of one growing answer.

    Nothing is handed out that a later token could still change: half a character waits for its
    other half, and text that may be the beginning of a stop string waits until that is settled.
    """

    def __init__(self, tokenizer: Decoder, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._from = (
            0  # decoding starts here, one handed-out piece back, so that word joints come out right
        )
        self._done = 0
        self._held = ""

    def push(self, token_id: int) -> tuple[str, bool]:
        """The text this token makes certain, and whether a stop string ended the answer.

        The stop string itself is not part of the text.
        """
        self._ids.append(token_id)
        before, now = self._decode(self._done), self._decode(len(self._ids))
        if len(now) > len(before) and not now.endswith("\ufffd"):
            self._held += now[len(before) :]
            self._from, self._done = self._done, len(self._ids)
        ends = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if ends:
            text, self._held = self._held[: min(ends)], ""
            self._from = self._done = len(self._ids)
            return text, True
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text, False

    def flush(self) -> str:
        """What was held back, once no further token will come."""
        rest = self._decode(len(self._ids))[len(self._decode(self._done)) :]
        text, self._held = self._held + rest, ""
        self._from = self._done = len(self._ids)
        return text

    def _decode(self, end: int) -> str:
        return self._tokenizer.decode(self._ids[self._from : end], skip_special_tokens=True)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a true beginning of `stop`."""
    return next(
        (n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0
    )
