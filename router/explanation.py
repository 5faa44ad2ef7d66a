"""An explanation as a value: the same in the router, in a reply's JSON and in the Python client.

Knows numbers and how to put them into lines of text; computes nothing and imports only the standard
library, so that the light client may have it. Attribute docstrings are the API's descriptions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

_DESCRIBED = {"use_attribute_docstrings": True}  # for pydantic, where a reply's schema is made


@dataclass(frozen=True)
class Switch:
    """A price at which the router's choice changes, and what it changes to."""

    __pydantic_config__ = _DESCRIBED

    price: float
    """Quality that one unit of cost would have to buy."""
    scale: int | str
    """What would be chosen: a scale, or the name of a focus."""


@dataclass(frozen=True)
class Comparison:
    """What speaks for what was chosen rather than a neighbour: differences of log odds.

    ``base`` and ``contributions`` add up to the difference of the log odds of both.
    """

    __pydantic_config__ = _DESCRIBED

    scale: int | str
    """The neighbour: a scale, or the name of a focus."""
    base: float
    """Difference of the two bases."""
    contributions: dict[str, float]
    """Feature group -> difference of log odds."""


@dataclass(frozen=True)
class RelevanceMap:
    """How strongly each patch of one picture answers to the words of the question."""

    __pydantic_config__ = _DESCRIBED

    side: int
    """Patches along each side of the picture, padded to a square."""
    values: tuple[int, ...]
    """Row by row, 0 (not at all) to 255; the router's features were computed from this map."""


@dataclass(frozen=True)
class Explanation:
    """What the decision was made of: argmax of value - price x cost, and why.

    Scales are called by their number, foci by their name; foci are told where one could be read.
    """

    __pydantic_config__ = _DESCRIBED

    scale: int | str
    """What the router chose; with a pinned scale, what it would have chosen. Before a second look,
    its first choice."""
    values: dict[int | str, float]
    """Scale or focus -> predicted quality."""
    costs: dict[int | str, float]
    """Scale or focus -> relative cost, for this picture and question."""
    price: float
    """Quality that one unit of cost had to buy."""
    base: dict[int | str, float]
    """Scale or focus -> log odds (before calibration) of an average question."""
    contributions: dict[int | str, dict[str, float]]
    """Scale or focus -> feature group -> what the group added to the log odds (TreeSHAP); base and
    groups add up to the log odds of this question about this picture."""
    coarser: Comparison | None
    """Against the next coarser scale, or focus with fewer tokens."""
    finer: Comparison | None
    """Against the next finer scale, or focus with more tokens."""
    below: Switch | None
    """Just below this price the router would choose this dearer one instead."""
    at_or_above: Switch | None
    """From this price on the router would choose this cheaper one instead."""
    sentence: str
    """What would change the choice, in words."""
    relevance: tuple[RelevanceMap, ...] = ()
    """For each picture, the patches that the question's words point to."""
    pictures: tuple[Explanation, ...] = ()
    """Of several pictures each one's explanation, in order, the others taken as they are; beside
    them stands that of the picture read finest, the first of these. Empty for one picture."""

    def before_second_look(self, confidence: float, scale: int | str) -> Explanation:
        """Return the explanation of a first choice whose answer was asked for again.

        Args:
            confidence: of the first answer.
            scale: what was read then, as a number or in words.
        """
        chosen = self.sentence.replace("The router chose", "The router first chose", 1)
        sure = f"{100 * confidence:.0f} % sure"
        again = f"The answer given there was {sure}, and a second look read {scale}."
        return replace(self, sentence=f"{chosen} {again}")

    def lines(self) -> list[str]:
        """Return the explanation as lines of text, 100 columns at most for usual numbers."""
        if self.pictures:
            return [line for picture in self.pictures for line in picture.lines()]
        wide = max(7, *(len(str(key)) for key in self.values))
        told = [f"{'scale':>{wide + 1}} {'value':>7} {'cost':>7} {'value - price x cost':>21}"]
        for key, value in self.values.items():
            cost = self.costs[key]
            mark = "*" if key == self.scale else " "
            told.append(
                f"{mark}{key:>{wide}} {value:7.3f} {cost:7.3f} {value - self.price * cost:21.3f}"
            )
        columns = {str(self.scale): self.contributions[self.scale]}
        for other in (self.coarser, self.finer):
            if other is not None:
                columns[f"against {other.scale}"] = other.contributions
        heading = " ".join(f"{name:>12}" for name in columns)
        told.append(f"{'log odds that it suffices':26} {heading}")
        for group in self.contributions[self.scale]:
            numbers = [
                f"{column.get(group, 0.0):+{max(12, len(name))}.2f}"
                for name, column in columns.items()
            ]
            told.append(f"  {group:24} " + " ".join(numbers))
        return [*told, self.sentence]


def sentence(
    chose: str,
    price: float,
    below: Switch | None,
    at_or_above: Switch | None,
    words: Mapping[int | str, str] | None = None,
) -> str:
    """Return what was chosen, in the words of ``chose``, and what would have to change.

    Args:
        chose: as it is to be told.
        price: that was decided at.
        below, at_or_above: where the choice changes.
        words: what the switches' scales and foci are called; None calls them by their keys.
    """

    def called(switch: Switch) -> str:
        return str(switch.scale) if words is None else words[switch.scale]

    turns = []
    if below is not None:
        turns.append(f"{called(below)} if the price were below {below.price:.3g}")
    if at_or_above is not None:
        subject = "it" if turns else "the price"
        turns.append(f"{called(at_or_above)} if {subject} were {at_or_above.price:.3g} or above")
    if not turns:
        return f"{chose} at the price {price:.3g}; no other price changes that."
    return f"{chose} at the price {price:.3g}; it would be {', and '.join(turns)}."
