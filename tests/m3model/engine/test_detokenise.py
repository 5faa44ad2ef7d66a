"""Answers as text, piece by piece."""

from __future__ import annotations

from m3model.engine.detokenise import TextStream


class Letters:
    """A decoder whose tokens are bytes, so that characters may span tokens."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return bytes(token_ids).decode("utf-8", errors="replace")


def stream(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    """The pieces handed out for `text`, one byte a token, and whether it was stopped."""
    out = TextStream(Letters(), stop)
    pieces: list[str] = []
    for byte in text.encode():
        piece, stopped = out.push(byte)
        pieces.append(piece)
        if stopped:
            return pieces, True
    return [*pieces, out.flush()], False


def test_text_streams_whole_characters() -> None:
    pieces, stopped = stream("aé€z")
    assert "".join(pieces) == "aé€z"
    assert not any("\ufffd" in piece for piece in pieces)
    assert not stopped


def test_stop_strings_are_never_shown_in_part() -> None:
    pieces, stopped = stream("one\n\ntwo", ("\n\n",))
    assert ("".join(pieces), stopped) == ("one", True)
    pieces, stopped = stream("one\ntwo ST", ("\n\n", "STOP"))
    assert ("".join(pieces), stopped) == ("one\ntwo ST", False)
    assert "".join(pieces[:-1]) == "one\ntwo "
