"""Which questions share a sequence, and which sequences a pass of the language model.

Questions that read one picture from the same coarse level share its coarse tokens; each brings its
own fine tokens and its text. Knows lengths; knows nothing of tensors, models or answers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isqrt

from m3model import Focus

MAX_PACKED_TOKENS = 6144  # padded tokens a language-model pass may hold on a CPU core
LEAST_OWN = 128  # tokens behind the shared ones that a sequence may hold whatever it shares

Seen = int | Focus  # what of a picture a question is answered from, as the model knows it


@dataclass(frozen=True)
class Segment:
    """One question about one picture, read one way.

    ``length`` is what it adds behind the shared coarse tokens: own visual tokens, prompt and
    reference.
    """

    picture: int
    question: int
    seen: Seen
    length: int

    @property
    def coarse(self) -> int:
        """The level that all questions of its sequence share."""
        return self.seen.coarse if isinstance(self.seen, Focus) else self.seen


@dataclass(frozen=True)
class Row:
    """One sequence: a picture at a coarse level, and the questions that are answered from there."""

    segments: tuple[Segment, ...]

    @property
    def picture(self) -> int:
        """The picture of all its questions."""
        return self.segments[0].picture

    @property
    def coarse(self) -> int:
        """Their coarse level."""
        return self.segments[0].coarse

    @property
    def length(self) -> int:
        """Tokens of the sequence."""
        return self.coarse + sum(segment.length for segment in self.segments)


def rows_of(segments: Iterable[Segment], hidden_size: int) -> list[Row]:
    """Return the sequences that cost least: every segment in one of them, in its order.

    A longer one shares the coarse tokens among more questions, but every token attends to every
    other, hidden or not. With c coarse tokens, of which w cost in attention what one token costs
    in the rest of a layer, c*(1 + c/w) is shared and n*n/w added by n own tokens: a token costs
    least at n = sqrt(c*(c + w)).
    """
    groups: dict[tuple[int, int], list[list[Segment]]] = {}
    for segment in segments:
        made = groups.setdefault((segment.picture, segment.coarse), [[]])
        most = max(LEAST_OWN, isqrt(segment.coarse * (segment.coarse + 4 * hidden_size)))
        if made[-1] and sum(each.length for each in made[-1]) + segment.length > most:
            made.append([])
        made[-1].append(segment)
    return [Row(tuple(each)) for made in groups.values() for each in made]


def passes_of(rows: Iterable[Row]) -> list[list[Row]]:
    """Return the rows in passes of at most `MAX_PACKED_TOKENS`, those of like length together."""
    passes: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: -row.length):
        # The first row of a pass is its longest: all others are padded to it.
        if not passes or passes[-1][0].length * (len(passes[-1]) + 1) > MAX_PACKED_TOKENS:
            passes.append([])
        passes[-1].append(row)
    return passes
