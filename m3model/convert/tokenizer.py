"""The tokenizer of an official checkpoint, with `<image>` added. It knows no weights."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from transformers import AddedToken, AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import generate_merges

from m3model.errors import ConversionError
from m3model.processing import IMAGE_TOKEN

_COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
_KEPT = (
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
    "legacy",
    "add_prefix_space",
    "model_max_length",
)


def load_tokenizer(source: Path, image_token_id: int) -> PreTrainedTokenizerBase | None:
    """The tokenizer with `<image>` at `image_token_id`, or None when the folder has none.

    Reads `tokenizer.json`, else a SentencePiece `tokenizer.model` (parsed here: no further
    library is needed).

    Raises:
        ConversionError: `<image>` would get another id, that is, tokenizer and vocabulary differ
            in size.
    """
    if (source / "tokenizer.json").is_file():
        # Copied aside: next to an official config.json transformers would look for a model type
        # it does not know.
        with tempfile.TemporaryDirectory() as aside:
            for name in _COPIED:
                if (source / name).is_file():
                    shutil.copy(source / name, aside)
            tokenizer = AutoTokenizer.from_pretrained(aside)
    elif (source / "tokenizer.model").is_file():
        tokenizer = _from_sentencepiece(source)
    else:
        return None
    if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) in (None, tokenizer.unk_token_id):
        tokenizer.add_tokens(
            [AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True
        )
    got = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if got != image_token_id:
        raise ConversionError(
            f"the tokenizer gives {IMAGE_TOKEN} the id {got}, the vocabulary has {image_token_id} "
            "rows: tokenizer and weights do not belong together"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def _from_sentencepiece(source: Path) -> LlamaTokenizer:
    pieces = list(_pieces((source / "tokenizer.model").read_bytes()))
    if not pieces:
        raise ConversionError(f"{source / 'tokenizer.model'} holds no SentencePiece vocabulary")
    vocabulary = {piece: index for index, (piece, _) in enumerate(pieces)}
    settings = _json(source / "tokenizer_config.json") | _json(source / "special_tokens_map.json")
    kept = {}
    for name in _KEPT:
        value = settings.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if value is not None:
            kept[name] = value
    return LlamaTokenizer(vocab=vocabulary, merges=generate_merges(vocabulary), **kept)


def _json(path: Path) -> dict[str, object]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _pieces(blob: bytes) -> Iterator[tuple[str, int]]:
    """(piece, type) of each entry of a SentencePiece model.

    Field 1 of its protocol buffer, fields 1 and 3 of each entry.
    """
    for number, value in _fields(blob):
        if number == 1 and isinstance(value, bytes):
            entry = dict(_fields(value))
            text, kind = entry.get(1, b""), entry.get(3, 1)
            if isinstance(text, bytes) and isinstance(kind, int):
                yield text.decode("utf-8"), kind


def _fields(blob: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Field number and value of each field of one protocol-buffer message."""
    at = 0
    try:
        while at < len(blob):
            key, at = _varint(blob, at)
            kind = key & 7
            if kind == 0:
                value, at = _varint(blob, at)
                yield key >> 3, value
                continue
            size = {1: 8, 5: 4}.get(kind)
            if kind == 2:
                size, at = _varint(blob, at)
            if size is None or at + size > len(blob):
                raise IndexError
            yield key >> 3, blob[at : at + size]
            at += size
    except IndexError as error:
        raise ConversionError("tokenizer.model is not a SentencePiece model") from error


def _varint(blob: bytes, at: int) -> tuple[int, int]:
    value, shift = 0, 0
    while True:
        byte = blob[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
