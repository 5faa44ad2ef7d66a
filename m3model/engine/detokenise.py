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
    `n_shown` tokens so far stand, in whole or part, in what was handed out.
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
        self._ends: list[tuple[int, int]] = []  # in what is held: (where a piece ends, tokens then)
        self.n_shown = 0

    def push(self, token_id: int) -> tuple[str, bool]:
        """The text this token makes certain, and whether a stop string ended the answer.

        The stop string itself is not part of the text.
        """
        self._ids.append(token_id)
        before, now = self._decode(self._done), self._decode(len(self._ids))
        if len(now) > len(before) and not now.endswith("\ufffd"):
            self._held += now[len(before) :]
            self._ends.append((len(self._held), len(self._ids)))
            self._from, self._done = self._done, len(self._ids)
        ends = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if ends:
            text = self._hand_out(min(ends))
            self._held = ""
            self._from = self._done = len(self._ids)
            return text, True
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        return self._hand_out(len(self._held) - keep), False

    def say(self, token_id: int, *, ends: bool, is_last: bool) -> tuple[str, str | None, int]:
        """The text this token makes certain, why the answer ends with it, if so, and `n_shown`.

        Args:
            ends: it is an end token, which is no text.
            is_last: there is room for no other.
        """
        delta, stopped = self.push(token_id)
        reason = "stop" if stopped or ends else "length" if is_last else None
        if reason is not None and not stopped:
            delta += self.flush()
        return delta, reason, self.n_shown - int(reason == "stop" and not stopped)

    def flush(self) -> str:
        """What was held back, once no further token will come."""
        rest = self._decode(len(self._ids))[len(self._decode(self._done)) :]
        text, self._held = self._held + rest, ""
        self._from = self._done = self.n_shown = len(self._ids)
        return text

    def _hand_out(self, cut: int) -> str:
        start = 0
        for end, n_tokens in self._ends:
            if start < cut:
                self.n_shown = n_tokens
            start = end
        self._ends = [(end - cut, n_tokens) for end, n_tokens in self._ends if end > cut]
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def _decode(self, end: int) -> str:
        return self._tokenizer.decode(self._ids[self._from : end], skip_special_tokens=True)


def text_until(
    tokenizer: Decoder, token_ids: Sequence[int], stop: Sequence[str]
) -> tuple[str, bool]:
    """The text of an answer's ids as they come one by one, and whether a stop string ended it."""
    stream = TextStream(tokenizer, stop)
    text = ""
    for token_id in token_ids:
        delta, stopped = stream.push(token_id)
        text += delta
        if stopped:
            return text, True
    return text + stream.flush(), False


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a true beginning of `stop`."""
    return next(
        (n for n in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-n:])), 0
    )
