"""The second look: after a coarse answer its own confidence decides whether to look finer, once.

For a first scale s and each scale k >= s a gate tells P(right at k) from three log odds: what the
router predicted for k and for s, and the confidence of the answer given at s. Escalating goes to
the scale with the greatest gate - price x cost, where staying costs nothing more.
Knows numbers; knows nothing of LightGBM, files, language models or HTTP.
Notation: n questions, K scales ascending.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from router.actions import Reading

_LEAST = 1e-6  # probabilities are kept this far from 0 and 1


@dataclass(frozen=True)
class Gate:
    """P(right at k) after an answer at s: a logistic regression on log odds, plain numbers."""

    finer: float
    first: float
    confidence: float
    offset: float

    def odds(self, finer: np.ndarray, first: np.ndarray, confidence: np.ndarray) -> np.ndarray:
        """Return the log odds (n,), from log odds (n,)."""
        said: np.ndarray = (
            self.finer * finer + self.first * first + self.confidence * confidence + self.offset
        )
        return said


@dataclass(frozen=True)
class SecondLook:
    """Whether an answer is good enough, and where to look again if it is not.

    Attributes:
        scales: (K,) ascending.
        gates: for each first scale but the finest, K - s gates: of itself and of the finer ones.
        start_price: the price of the first choice, in place of the policy's.
        price: of escalating: quality that one unit of cost must buy.
        facts: JSON facts about the fit; they decide nothing.
    """

    scales: tuple[int, ...]
    gates: tuple[tuple[Gate, ...], ...]
    start_price: float
    price: float
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = list(range(len(self.scales), 1, -1))
        if [len(row) for row in self.gates] != wanted:
            raise ValueError(f"{len(self.scales)} scales need gates in rows of {wanted}")
        if list(self.scales) != sorted(set(self.scales)):
            raise ValueError(f"scales must ascend, got {self.scales}")
        numbers = [self.start_price, self.price]
        for gate in (gate for row in self.gates for gate in row):
            numbers += [gate.finer, gate.first, gate.confidence, gate.offset]
        if not all(map(math.isfinite, numbers)) or self.price < 0:
            raise ValueError("gates and prices must be finite numbers, the price not negative")

    def p_right(self, values: np.ndarray, start: int, confidence: np.ndarray) -> np.ndarray:
        """Return (n, K - start) probabilities of being right from the first scale on.

        Args:
            values: (n, K) predicted P(right) before any answer.
            start: index of the first scale, not the finest.
            confidence: (n,) of the answers given there.
        """
        before, sure = log_odds(values), log_odds(confidence)
        columns = [
            gate.odds(before[:, start + more], before[:, start], sure)
            for more, gate in enumerate(self.gates[start])
        ]
        said: np.ndarray = 1.0 / (1.0 + np.exp(-np.stack(columns, axis=1)))
        return said

    def ends(
        self, p_right: np.ndarray, costs: Sequence[float], price: float | None = None
    ) -> np.ndarray:
        """Return (n,) how many scales finer the last answer is: 0 stays.

        Ties stay, and go to the coarser scale.

        Args:
            p_right: (n, M) from `p_right`.
            costs: (M,) of the same scales; the first is paid already.
            price: another than one's own.
        """
        more = np.array([0.0, *costs[1:]]) * (self.price if price is None else price)
        ends: np.ndarray = np.argmax(p_right - more, axis=1)
        return ends

    def escalate(
        self,
        values: Sequence[float],
        scale: int,
        confidence: float,
        costs: Sequence[float],
        cap: int | None = None,
    ) -> int | None:
        """Return the finer scale worth asking again, or None to keep the answer.

        Args:
            values: (K,) predicted P(right).
            scale: of the first answer.
            confidence: product of the answer's token probabilities, its end token included.
            costs: (K,) of one look.
            cap: most visual tokens of both looks together.

        Raises:
            ValueError: ``scale`` is not one of the scales.
        """
        start, within = self.scales.index(scale), self._within(scale, cap)
        if within <= start + 1:
            return None
        p = self.p_right(np.array([values], float), start, np.array([confidence], float))
        more = int(self.ends(p[:, : within - start], costs[start:within])[0])
        return self.scales[start + more] if more else None

    def opened(
        self, values: Sequence[float], scale: int, costs: Sequence[float], cap: int | None = None
    ) -> "OpenLook | None":
        """Return what decides after the answer, or None where no finer scale is left."""
        if self._within(scale, cap) <= self.scales.index(scale) + 1:
            return None
        return OpenLook(self, tuple(values), scale, tuple(costs), cap)

    def _within(self, first: int, cap: int | None) -> int:
        """Return how many scales a second look may still read after the first."""
        return sum(cap is None or first + each <= cap for each in self.scales)

    def to_bytes(self) -> bytes:
        """Return the JSON text of second_look.json."""
        rows = {
            str(first): {
                str(scale): [gate.finer, gate.first, gate.confidence, gate.offset]
                for scale, gate in zip(self.scales[start:], self.gates[start], strict=True)
            }
            for start, first in enumerate(self.scales[:-1])
        }
        stored = {
            "scales": list(self.scales),
            "start_price": self.start_price,
            "price": self.price,
            "gates": rows,
            "facts": self.facts,
        }
        return (json.dumps(stored, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "SecondLook":
        """Return the second look of `to_bytes`.

        Raises:
            ValueError, KeyError, TypeError: it is damaged.
        """
        scales = tuple(int(scale) for scale in stored["scales"])
        gates = tuple(
            tuple(
                Gate(*map(float, stored["gates"][str(first)][str(scale)]))
                for scale in scales[start:]
            )
            for start, first in enumerate(scales[:-1])
        )
        return cls(
            scales,
            gates,
            float(stored["start_price"]),
            float(stored["price"]),
            dict(stored["facts"]),
        )


@dataclass(frozen=True)
class OpenLook:
    """The second look that may follow the answer of one request."""

    look: SecondLook
    values: tuple[float, ...]
    scale: int
    costs: tuple[float, ...]
    cap: int | None = None

    def escalate(self, confidence: float) -> Reading | None:
        """Return what is worth asking again, or None; see `SecondLook.escalate`."""
        finer = self.look.escalate(self.values, self.scale, confidence, self.costs, self.cap)
        return None if finer is None else Reading.uniform(finer)


def log_odds(p: np.ndarray) -> np.ndarray:
    """Return the log odds of probabilities, any shape; 0 and 1 count as a millionth off."""
    kept = np.clip(np.asarray(p, dtype=np.float64), _LEAST, 1.0 - _LEAST)
    odds: np.ndarray = np.log(kept) - np.log1p(-kept)
    return odds
