"""Tokens as text and bytes: the bytes of an answer's tokens are the bytes of its text."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from m3model.engine.detokenise import TextStream
from m3model.engine.pieces import Piece, Pieces
from m3model.prompt.vocabulary import build_tokenizer


@cache
def tokenizer(kind: str) -> Any:
    """The embedded model's kind, or one as Llama's or GPT's: `<s>` 0, `</s>` 1, `<unk>` 2 first."""
    if kind == "words":
        return build_tokenizer(["red", "blue", "star", "is"])
    special = ["<s>", "</s>", "<unk>"]
    if kind == "llama":
        spelt = [f"<0x{byte:02X}>" for byte in range(256)]
        names = [*special, *spelt, "▁", "▁a", "▁red", "ish", "é", "▁été", "star", "▁▁", "."]
        inner = Tokenizer(
            models.BPE(names_to_ids(names), [], unk_token="<unk>", byte_fallback=True)
        )
        inner.decoder = decoders.Sequence([
            decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ])  # fmt: skip
    else:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        names = [*special, *letters, "Ġred", "ish", "Ċ", "Ã©t"]
        inner = Tokenizer(models.BPE(names_to_ids(names), []))
        inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def names_to_ids(names: list[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(dict.fromkeys(names))}


def pieces_of(kind: str, ids: list[int]) -> list[Piece]:
    """The pieces of an answer, each in its place."""
    pieces, out, before = Pieces(tokenizer(kind)), list[Piece](), None
    for token_id in ids:
        out.append(pieces.of(token_id, before))
        if out[-1].raw is not None:
            before = token_id
    return out


def ids_of(kind: str, *names: str) -> list[int]:
    return [tokenizer(kind).convert_tokens_to_ids(name) for name in names]


KINDS = pytest.mark.parametrize("kind", ["words", "llama", "bytes"])


@KINDS
@given(data=st.data())
def test_bytes_put_together_are_the_text(kind: str, data: st.DataObject) -> None:
    size = len(tokenizer(kind))
    first = 259 if kind == "llama" else 0  # its bytes alone: below
    ids = data.draw(st.lists(st.integers(first, size - 1), max_size=12))
    told = pieces_of(kind, ids)
    raw = b"".join(piece.raw or b"" for piece in told)
    text = tokenizer(kind).decode(ids, skip_special_tokens=True)
    assert raw.decode(errors="replace") == text
    stream = TextStream(tokenizer(kind))
    assert "".join([stream.push(token_id)[0] for token_id in ids]) + stream.flush() == text
    special = tokenizer(kind).all_special_ids
    assert [piece.raw is None for piece in told] == [token_id in special for token_id in ids]


@given(text=st.text(min_size=1, max_size=8).filter(lambda text: text[0] != " "))
@settings(max_examples=40)
def test_spelt_characters_have_their_true_bytes(text: str) -> None:
    spelt = [f"<0x{byte:02X}>" for byte in text.encode()]
    told = pieces_of("llama", ids_of("llama", *spelt))
    assert b"".join(piece.raw or b"" for piece in told) == text.encode()
    assert [piece.raw for piece in told] == [bytes([byte]) for byte in text.encode()]


def test_pieces_worked_by_hand() -> None:
    ids = ids_of("llama", "▁red", "▁red", "ish", "<0xC3>", "<0xA9>", "</s>")
    assert pieces_of("llama", ids) == [
        Piece("red", b"red"), Piece(" red", b" red"), Piece("ish", b"ish"),
        Piece("\\xc3", b"\xc3"), Piece("\\xa9", b"\xa9"), Piece("</s>", None),
    ]  # fmt: skip
    # The end before the first word takes nothing from it: it is the first text all the same.
    assert pieces_of("llama", ids_of("llama", "<unk>", "▁red"))[1] == Piece("red", b"red")
    assert pieces_of("bytes", ids_of("bytes", "Ġred", "Ã", "©", "Ã©t", "Ċ")) == [
        Piece(" red", b" red"), Piece("\\xc3", b"\xc3"), Piece("\\xa9", b"\xa9"),
        Piece("ét", "ét".encode()), Piece("\n", b"\n"),
    ]  # fmt: skip
    assert pieces_of("words", ids_of("words", "red", "##s", ".", "star")) == [
        Piece("red", b"red"), Piece("s", b"s"), Piece(".", b"."), Piece(" star", b" star"),
    ]  # fmt: skip


@given(
    text=st.text("ab\n€é", max_size=12),
    stop=st.lists(st.text("ab\n€", min_size=1, max_size=4), max_size=3),
)
def test_shown_tokens_are_those_whose_text_begins_before_the_stop(
    text: str, stop: list[str]
) -> None:
    ids = ids_of("llama", *[f"<0x{byte:02X}>" for byte in text.encode()])
    stream, out, ended = TextStream(tokenizer("llama"), tuple(stop)), "", False
    for token_id in ids:
        piece, ended = stream.push(token_id)
        out += piece
        assert stream.n_shown == len(out.encode())  # one token a byte
        if ended:
            break
    out += "" if ended else stream.flush()
    # The stop string that is whole first, and of those that end together the longest.
    whole = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    assert ended == bool(whole)
    assert out == (text[: min(whole)[1]] if whole else text)
    assert stream.n_shown == len(out.encode())
