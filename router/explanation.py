"""An explanation as a value: the same in the router, in a reply's JSON and in the Python client.

Knows numbers and how to put them into lines of text; computes nothing and imports only the standard
library, so that the light client may have it. Attribute docstrings are the API's descriptions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

_DESCRIBED = {"use_attribute_docstrings": True}  # for pydantic, where a reply's schema is made


@dataclass(frozen=True)
class Switch:
    """A price at which the router's choice changes, and the scale it changes to."""

    __pydantic_config__ = _DESCRIBED

    price: float
    """Quality that one unit of cost would have to buy."""
    scale: int
    """What would be chosen."""


@dataclass(frozen=True)
class Comparison:
    """What speaks for the chosen scale rather than a neighbour: differences of log odds.

    ``base`` and ``contributions`` add up to the difference of the two scales' log odds.
    """

    __pydantic_config__ = _DESCRIBED

    scale: int
    """The neighbour."""
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
    """What the decision was made of: argmax over scales of value - price x cost, and why."""

    __pydantic_config__ = _DESCRIBED

    scale: int
    """What the router chose; with a pinned scale, what it would have chosen. Before a second look,
    its first choice."""
    values: dict[int, float]
    """Scale -> predicted quality."""
    costs: dict[int, float]
    """Scale -> relative cost."""
    price: float
    """Quality that one unit of cost had to buy."""
    base: dict[int, float]
    """Scale -> log odds (before calibration) of an average question."""
    contributions: dict[int, dict[str, float]]
    """Scale -> feature group -> what the group added to the log odds (TreeSHAP); base and groups
    add up to the log odds of this question about this picture."""
    coarser: Comparison | None
    """Against the next coarser scale."""
    finer: Comparison | None
    """Against the next finer scale."""
    below: Switch | None
    """Just below this price the router would choose this finer scale instead."""
    at_or_above: Switch | None
    """From this price on the router would choose this cheaper scale instead."""
    sentence: str
    """What would change the choice, in words."""
    relevance: tuple[RelevanceMap, ...] = ()
    """For each picture, the patches that the question's words point to."""
    pictures: tuple[Explanation, ...] = ()
    """Of several pictures each one's explanation, in order, the others taken as they are; beside
    them stands that of the picture read finest, the first of these. Empty for one picture."""

    def before_second_look(self, confidence: float, scale: int) -> Explanation:
        """Return the explanation of a first choice whose answer was asked for again, finer."""
        chosen = sentence(f"The router first chose {self.scale}", self.price, self.below,
                          self.at_or_above)  # fmt: skip
        sure = f"{100 * confidence:.0f} % sure"
        again = f"The answer given there was {sure}, and a second look read {scale}."
        return replace(self, sentence=f"{chosen} {again}")

    def lines(self) -> list[str]:
        """Return the explanation as lines of text, 100 columns at most for usual numbers."""
        if self.pictures:
            return [line for picture in self.pictures for line in picture.lines()]
        told = [f"{'scale':>8} {'value':>7} {'cost':>7} {'value - price x cost':>21}"]
        for scale, value in self.values.items():
            cost = self.costs[scale]
            mark = "*" if scale == self.scale else " "
            told.append(
                f"{mark}{scale:>7} {value:7.3f} {cost:7.3f} {value - self.price * cost:21.3f}"
            )
        columns = {str(self.scale): self.contributions[self.scale]}
        for other in (self.coarser, self.finer):
            if other is not None:
                columns[f"against {other.scale}"] = other.contributions
        heading = " ".join(f"{name:>12}" for name in columns)
        told.append(f"{'log odds that it suffices':26} {heading}")
        for group in self.contributions[self.scale]:
            numbers = [column.get(group, 0.0) for column in columns.values()]
            told.append(f"  {group:24} " + " ".join(f"{number:+12.2f}" for number in numbers))
        return [*told, self.sentence]


def sentence(chose: str, price: float, below: Switch | None, at_or_above: Switch | None) -> str:
    """Return what was chosen, in the words of ``chose``, and what would have to change."""
    turns = []
    if below is not None:
        turns.append(f"{below.scale} if the price were below {below.price:.3g}")
    if at_or_above is not None:
        subject = "it" if turns else "the price"
        turns.append(f"{at_or_above.scale} if {subject} were {at_or_above.price:.3g} or above")
    if not turns:
        return f"{chose} at the price {price:.3g}; no other price changes that."
    return f"{chose} at the price {price:.3g}; it would be {', and '.join(turns)}."
