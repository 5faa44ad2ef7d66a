"""What single tokens of an answer say: as text, and as the bytes that make the answer's text.

It knows tokenizers; nothing of requests or probabilities.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers.convert_slow_tokenizer import bytes_to_unicode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ONE_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Piece:
    r"""A token's text, in which bytes that are no whole character read \xNN, and its bytes.

    `raw` is None for tokens that are no text, such as the end token.
    """

    text: str
    raw: bytes | None


class Pieces:
    """The pieces of one tokenizer.

    The first token of an answer may say less than anywhere else: some tokenizers write the space
    before a word into its token, and drop it there.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        marked = (token_id for token_id, token in added.items() if token.special)
        self._special = frozenset([*tokenizer.all_special_ids, *marked])
        self._known: dict[tuple[int, bool], Piece] = {}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        byte_level = "ByteLevel" in repr(getattr(backend, "decoder", None))
        self._bytes = {c: b for b, c in bytes_to_unicode().items()} if byte_level else {}

    def of(self, token_id: int, before: int | None) -> Piece:
        """The piece of a token.

        Args:
            before: the token of the answer before it that is text; None: there is none.
        """
        key = token_id, before is None
        piece = self._known.get(key)
        if piece is None:
            piece = self._known[key] = self._piece(token_id, before)
        return piece

    def _piece(self, token_id: int, before: int | None) -> Piece:
        name = str(self._tokenizer.convert_ids_to_tokens(token_id) or "")
        if token_id in self._special or not name:
            return Piece(name, None)
        raw = self._raw(name)
        if raw is None:
            context = [] if before is None else [before]
            lead = self._tokenizer.decode(context)
            raw = self._tokenizer.decode([*context, token_id])[len(lead) :].encode()
        return Piece(raw.decode(errors="backslashreplace"), raw)

    def _raw(self, name: str) -> bytes | None:
        """The bytes that a token's name spells, or None where only decoding tells."""
        if (one := ONE_BYTE.fullmatch(name)) is not None:
            return bytes([int(one[1], 16)])
        if self._bytes and set(name) <= self._bytes.keys():
            return bytes(self._bytes[c] for c in name)
        return None
