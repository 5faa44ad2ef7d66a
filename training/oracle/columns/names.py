"""Texts of many rows in little memory: names that repeat as numbers, metadata unread.

Knows texts; knows nothing of what they name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

_AT_ONCE = 4096


@dataclass(frozen=True, eq=False)
class Names:
    """(n,) texts of which most stand in several rows; numpy takes them for an array of them.

    Attributes:
        table: the different ones, sorted.
        codes: (n,) where each row's stands in the table.
    """

    table: NDArray[np.str_]
    codes: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.codes)

    def __iter__(self) -> Iterator[str]:
        return iter(self.tolist())

    def __getitem__(self, key: Any, /) -> Any:
        """Return the text of a number, or the names of a choice of rows."""
        if isinstance(key, (int, np.integer)):
            return self.table[self.codes[key]]
        return Names(self.table, self.codes[key])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.str_]:
        return self.table[self.codes]

    def __eq__(self, other: object) -> NDArray[np.bool_]:  # type: ignore[override]
        same: NDArray[np.bool_] = np.asarray(self) == other
        return same

    def tolist(self) -> list[str]:
        """Return the text of every row."""
        texts: list[str] = np.asarray(self).tolist()
        return texts


Texts = NDArray[np.str_] | Names


def numbered(texts: Texts) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """Return the different texts, sorted, and (n,) which of them each row's is."""
    if isinstance(texts, Names):
        kept, inverse = np.unique(texts.codes, return_inverse=True)
        return texts.table[kept], inverse.astype(np.int64)
    names, inverse = np.unique(texts, return_inverse=True)
    return names, inverse.astype(np.int64)


@dataclass
class Coding:
    """Texts that come row by row; the same text gets the same number."""

    known: dict[str, int] = field(default_factory=dict)
    pieces: list[NDArray[np.int32]] = field(default_factory=list)

    def add(self, texts: Iterable[str]) -> list[int]:
        """Take the texts of further rows; return their numbers."""
        known = self.known
        codes = [known.setdefault(text, len(known)) for text in texts]
        self.pieces.append(np.array(codes, np.int32))
        return codes

    @property
    def codes(self) -> NDArray[np.int32]:
        """Return (n,) the numbers, in the order in which texts came first."""
        return np.concatenate([np.zeros(0, np.int32), *self.pieces])

    def done(self) -> Names:
        """Return the names of all rows."""
        texts = np.array(list(self.known), np.str_)
        order = np.argsort(texts, kind="stable")
        place = np.empty(len(texts), np.int32)
        place[order] = np.arange(len(texts))
        return Names(texts[order], place[self.codes])


class Facts(Sequence[dict[str, Any]]):
    """(n,) metadata, parsed when a row is looked at.

    Args:
        texts: all JSON that was read, an Arrow column.
        rows: (n,) which of it these are.
    """

    def __init__(self, texts: Any, rows: NDArray[np.int64]) -> None:
        self._texts, self._rows = texts, rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, key: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, key: slice | NDArray[Any]) -> Facts: ...
    def __getitem__(self, key: Any) -> Any:
        """Return the metadata of one row, or those of a choice of rows."""
        if isinstance(key, (int, np.integer)):
            return _parsed(self._texts[int(self._rows[key])].as_py())
        return Facts(self._texts, self._rows[key])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for start in range(0, len(self), _AT_ONCE):
            for text in self._texts.take(self._rows[start : start + _AT_ONCE]).to_pylist():
                yield _parsed(text)

    def telling(self, key: str) -> dict[int, Any]:
        """Return by row what the metadata say under a key, of the rows that say it."""
        import pyarrow.compute as pc

        named = pc.match_substring(self._texts, f'"{key}"').to_numpy()[self._rows]
        places = np.flatnonzero(named.astype(bool)).tolist()
        found = {place: self[place] for place in places}
        return {place: facts[key] for place, facts in found.items() if key in facts}


def _parsed(text: str | None) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(text) if text else {}
    return facts
