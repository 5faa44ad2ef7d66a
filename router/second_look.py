"""The second look: after a coarse answer its own confidence decides whether to read more, once.

For a first action s and each action k >= s of the space a gate tells P(right at k) from three log
odds: what the router predicted for k and for s, and the confidence of the answer given at s.
Escalating goes to the action with the greatest gate - price x cost, where staying costs nothing
more. Only actions that take more tokens of this picture than the first one are looked at.
Knows numbers; knows nothing of LightGBM, files, language models or HTTP.
Notation: n questions, A actions in the order of their space.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from router.actions import ActionSpace, Plan, Reading

_LEAST = 1e-6  # probabilities are kept this far from 0 and 1
_CLOSED = math.inf  # the cost of what may not be read


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
    """Whether an answer is good enough, and what to read if it is not.

    Attributes:
        actions: (A,) their names, in the order of the space.
        gates: for each first action but the last, A - s gates: of itself and of the later ones.
        start_price: the price of the first choice, in place of the policy's.
        price: of escalating: quality that one unit of cost must buy.
        facts: JSON facts about the fit; they decide nothing.
    """

    actions: tuple[str, ...]
    gates: tuple[tuple[Gate, ...], ...]
    start_price: float
    price: float
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = list(range(len(self.actions), 1, -1))
        if [len(row) for row in self.gates] != wanted:
            raise ValueError(f"{len(self.actions)} actions need gates in rows of {wanted}")
        if len(set(self.actions)) != len(self.actions):
            raise ValueError(f"two actions of one name: {', '.join(self.actions)}")
        numbers = [self.start_price, self.price]
        for gate in (gate for row in self.gates for gate in row):
            numbers += [gate.finer, gate.first, gate.confidence, gate.offset]
        if not all(map(math.isfinite, numbers)) or self.price < 0:
            raise ValueError("gates and prices must be finite numbers, the price not negative")

    def p_right(self, values: np.ndarray, start: int, confidence: np.ndarray) -> np.ndarray:
        """Return (n, A - start) probabilities of being right from the first action on.

        Args:
            values: (n, A) predicted P(right) before any answer.
            start: index of the first action, not the last one.
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
        self,
        p_right: np.ndarray,
        costs: Sequence[float] | np.ndarray,
        price: float | None = None,
    ) -> np.ndarray:
        """Return (n,) how many actions later the last answer is: 0 stays.

        Ties stay, and go to the earlier action.

        Args:
            p_right: (n, M) from `p_right`.
            costs: (M,) of the same actions, or (n, M); the first is paid already, and what may not
                be read costs inf.
            price: another than one's own.
        """
        one = self.price if price is None else price
        more = np.array(costs, dtype=np.float64)
        more[..., 0] = 0.0
        open_to = more < _CLOSED
        more = np.multiply(more, one, where=open_to, out=more)  # a price of 0 opens nothing
        ends: np.ndarray = np.argmax(p_right - more, axis=1)
        return ends

    def escalate(
        self, values: Sequence[float], start: int, confidence: float, costs: Sequence[float]
    ) -> int | None:
        """Return the index of the action worth asking again, or None to keep the answer.

        Args:
            values: (A,) predicted P(right).
            start: index of the action of the first answer.
            confidence: product of the answer's token probabilities, its end token included.
            costs: (A - start,) of one look, from `costs_after`.
        """
        if start == len(self.actions) - 1:
            return None
        p = self.p_right(np.array([values], float), start, np.array([confidence], float))
        more = int(self.ends(p, costs)[0])
        return start + more if more else None

    def opened(
        self,
        values: Sequence[float],
        start: int,
        tokens: Sequence[int],
        costs: Sequence[float],
        space: ActionSpace,
        plan: Plan | None = None,
        cap: int | None = None,
    ) -> "OpenLook | None":
        """Return what decides after the answer, or None where nothing is left to read.

        Args:
            values: (A,) predicted P(right).
            start: index of the action of the first answer.
            tokens, costs: (A,) of this picture and question, costs inf where an action is closed.
            space: of the actions.
            plan: what they read.
            cap: most visual tokens of both looks together.
        """
        after = costs_after(start, tokens, costs, cap)
        if not any(cost < _CLOSED for cost in after[1:]):
            return None
        return OpenLook(self, tuple(values), start, after, space, plan)

    def to_bytes(self) -> bytes:
        """Return the JSON text of second_look.json."""
        rows = {
            first: {
                name: [gate.finer, gate.first, gate.confidence, gate.offset]
                for name, gate in zip(self.actions[start:], self.gates[start], strict=True)
            }
            for start, first in enumerate(self.actions[:-1])
        }
        # Scales alone are told as they were before there was anything else.
        scales = [int(name) for name in self.actions if name.isdecimal()]
        uniform = len(scales) == len(self.actions)
        stored = {
            **({"scales": scales} if uniform else {"actions": list(self.actions)}),
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
        names = stored["actions"] if "actions" in stored else stored["scales"]
        actions = tuple(str(name) for name in names)
        gates = tuple(
            tuple(Gate(*map(float, stored["gates"][first][name])) for name in actions[start:])
            for start, first in enumerate(actions[:-1])
        )
        return cls(
            actions,
            gates,
            float(stored["start_price"]),
            float(stored["price"]),
            dict(stored["facts"]),
        )


@dataclass(frozen=True)
class OpenLook:
    """The second look that may follow the answer of one request.

    Attributes:
        look: decides.
        values: (A,) predicted P(right).
        start: index of the action of the first answer.
        costs: (A - start,) of this picture and question, inf where an action is closed.
        space: of the actions.
        plan: what they read; None where no focus may be read.
    """

    look: SecondLook
    values: tuple[float, ...]
    start: int
    costs: tuple[float, ...]
    space: ActionSpace
    plan: Plan | None = None

    def escalate(self, confidence: float) -> Reading | None:
        """Return what is worth asking again, or None; see `SecondLook.escalate`."""
        index = self.look.escalate(self.values, self.start, confidence, self.costs)
        return None if index is None else self.space.reading(index, self.plan)


def costs_after(
    start: int, tokens: Sequence[int], costs: Sequence[float], cap: int | None = None
) -> tuple[float, ...]:
    """Return the costs (A - start,) of what may be read after action ``start``, the others inf.

    A second look must read more of the picture than the first did, and both must fit the cap.

    Args:
        start: index of the action of the first answer.
        tokens, costs: (A,).
        cap: most visual tokens of both looks together.
    """
    first = tokens[start]
    later = zip(tokens[start + 1 :], costs[start + 1 :], strict=True)
    return (
        costs[start],
        *(
            cost if first < count and (cap is None or first + count <= cap) else _CLOSED
            for count, cost in later
        ),
    )


def log_odds(p: np.ndarray) -> np.ndarray:
    """Return the log odds of probabilities, any shape; 0 and 1 count as a millionth off."""
    kept = np.clip(np.asarray(p, dtype=np.float64), _LEAST, 1.0 - _LEAST)
    odds: np.ndarray = np.log(kept) - np.log1p(-kept)
    return odds
