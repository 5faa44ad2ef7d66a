"""Actions and the space of them: what may be read of a picture, and what that costs in tokens.

A uniform action reads the whole picture at one scale. A focus reads it at a coarse scale and then
the fine tokens of the cells that its rule finds in the relevance map, so its tokens depend on the
question. The anchor, against which accuracy and harm are told, is the finest uniform action; it is
always the last.
Knows levels, rules and token counts; knows nothing of features, prices or models.
Notation: A actions of a space.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from router.actions.cells import (
    CELL_SIDE,
    CELL_TOKENS,
    Around,
    CellRule,
    cell_sums,
    cells_of_map,
    quantised,
)

# (levels that the coarse and the fine one lie below the finest): rules as (share in thousandths,
# around, part of the fine level's tokens that are cells at most). See docs/experiments.md.
FOCI: dict[tuple[int, int], tuple[tuple[int, Around, int], ...]] = {
    (4, 1): ((500, "none", 24), (350, "row", 16)),
    (3, 0): ((150, "none", 24),),
    (2, 1): ((350, "row", 12),),
    (2, 0): ((150, "none", 18), (250, "ring", 21)),
}
MARKS: dict[Around, str] = {"none": "", "row": "w", "ring": "r"}  # in names
_NAME = r"[A-Za-z0-9+@._-]{1,64}"


@dataclass(frozen=True)
class Reading:
    """What is read of one picture: the decision as the model needs it.

    Attributes:
        action: name of the action.
        scale: the scale of the whole picture; of a focus the coarse one.
        fine: level of the fine tokens, None without a focus.
        cells: cells of ``fine`` that are read, ascending.
    """

    action: str
    scale: int
    fine: int | None = None
    cells: tuple[int, ...] = ()

    @classmethod
    def uniform(cls, scale: int) -> "Reading":
        """Return the whole picture at one scale."""
        return cls(str(scale), scale)

    @property
    def visual_tokens(self) -> int:
        """Tokens that reach the language model."""
        return self.scale + CELL_TOKENS * len(self.cells)

    @property
    def words(self) -> str:
        """What it is called in a sentence: "36", or "36 with 12 cells at 576"."""
        if self.fine is None:
            return str(self.scale)
        count = len(self.cells)
        return f"{self.scale} with {count} cell{'' if count == 1 else 's'} at {self.fine}"


@dataclass(frozen=True)
class Action:
    """One way to read a picture.

    Attributes:
        name: unique in its space; a uniform action's is its scale.
        coarse: the scale of the whole picture.
        fine: level that some cells are read at, None for a uniform action.
        rule: which cells.
        base: name of the action whose log odds the predictor starts from; "" from nothing.
    """

    name: str
    coarse: int
    fine: int | None = None
    rule: CellRule | None = None
    base: str = ""

    @property
    def is_uniform(self) -> bool:
        """Whether the whole picture is read at one scale."""
        return self.fine is None

    @property
    def key(self) -> int | str:
        """What it is called where scales and foci stand side by side: a scale by its number."""
        return self.coarse if self.is_uniform else self.name

    @property
    def most_tokens(self) -> int:
        """Visual tokens it can take at most."""
        return self.coarse if self.rule is None else self.coarse + CELL_TOKENS * self.rule.most


@dataclass(frozen=True)
class Plan:
    """What each action of a space would read of one picture for one question.

    Attributes:
        tokens: (A,) visual tokens.
        cells: (A,) cells read finely; empty for uniform actions.
    """

    tokens: tuple[int, ...]
    cells: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ActionSpace:
    """The actions a router chooses between, from cheap to dear, the anchor last.

    Raises:
        ValueError: names that repeat or are odd, uniform actions that do not ascend, no anchor at
            the end, a focus between levels that are no squares or that may take as many tokens as
            the anchor, or a base that is not there.
    """

    actions: tuple[Action, ...]
    _sums_of: tuple[int, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        uniform = [action.coarse for action in self.actions if action.is_uniform]
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"two actions of one name: {', '.join(self.names)}")
        if uniform != sorted(set(uniform)) or not self.actions or not self.actions[-1].is_uniform:
            raise ValueError("the uniform actions must ascend, and the finest must come last")
        for action in self.actions:
            self._check(action)
        cells = {a.fine // CELL_TOKENS for a in self.actions if a.fine is not None}
        object.__setattr__(self, "_sums_of", tuple(sorted(cells)))

    def _check(self, action: Action) -> None:
        if action.base and action.base not in self.names:
            raise ValueError(f"action {action.name} starts from {action.base!r}, which is not here")
        if action.is_uniform and (action.name != str(action.coarse) or action.rule is not None):
            raise ValueError(f"a uniform action is named by its scale and has no rule: {action}")
        if action.fine is None:
            return
        # Names stand in tables, labels and JSON keys, beside scales that are called by a number.
        if not re.fullmatch(_NAME, action.name) or action.name.isdecimal():
            raise ValueError(f"a focus needs a name of letters, digits and +-._@: {action.name!r}")
        if any(level < 1 or isqrt(level) ** 2 != level for level in (action.coarse, action.fine)):
            raise ValueError(f"the levels of {action.name} must be squares: {action}")
        side = isqrt(action.fine)
        if action.rule is None or action.fine <= action.coarse or side % CELL_SIDE:
            raise ValueError(f"a focus needs a rule and a finer level with whole cells: {action}")
        if action.most_tokens >= self.anchor.coarse:
            raise ValueError(
                f"{action.name} may take {action.most_tokens} tokens, as many as the anchor "
                f"({self.anchor.coarse}): allow it fewer cells"
            )

    def __len__(self) -> int:
        return len(self.actions)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the actions."""
        return tuple(action.name for action in self.actions)

    @property
    def anchor(self) -> Action:
        """The finest uniform action."""
        return self.actions[-1]

    @cached_property
    def scales(self) -> tuple[int, ...]:
        """The scales of the uniform actions, ascending."""
        return tuple(action.coarse for action in self.actions if action.is_uniform)

    @cached_property
    def uniform(self) -> tuple[int, ...]:
        """The indices of the uniform actions, in the order of ``scales``."""
        return tuple(i for i, action in enumerate(self.actions) if action.is_uniform)

    @property
    def is_uniform(self) -> bool:
        """Whether there is no focus in it."""
        return len(self.uniform) == len(self.actions)

    @cached_property
    def bases(self) -> tuple[int, ...]:
        """(A,) the index of each action's base, -1 for none."""
        return tuple(self.names.index(a.base) if a.base else -1 for a in self.actions)

    @cached_property
    def hash(self) -> str:
        """Short hash of everything that gives an action its meaning."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]

    def index(self, name: str) -> int:
        """Return the place of an action.

        Raises:
            ValueError: it is not here.
        """
        return self.names.index(name)

    def plan(self, relevance: NDArray[np.floating]) -> Plan:
        """Return what each action would read, given the relevance (N,) of the patches.

        Raises:
            ValueError: relevance that is not a square map in [0, 1], or cells that do not fit it.
        """
        whole = quantised(relevance)
        sums = {count: cell_sums(whole, count) for count in self._sums_of}
        cells = tuple(
            ()
            if action.fine is None or action.rule is None
            else cells_of_map(sums[action.fine // CELL_TOKENS], action.rule)
            for action in self.actions
        )
        tokens = tuple(
            action.coarse + CELL_TOKENS * len(own)
            for action, own in zip(self.actions, cells, strict=True)
        )
        return Plan(tokens, cells)

    def reading(self, index: int, plan: Plan | None = None) -> Reading:
        """Return what action ``index`` reads; a focus needs the plan.

        Raises:
            ValueError: a focus without a plan.
        """
        action = self.actions[index]
        if action.is_uniform:
            return Reading(action.name, action.coarse)
        if plan is None:
            raise ValueError(f"the focus {action.name} needs a plan")
        return Reading(action.name, action.coarse, action.fine, plan.cells[index])

    def to_json(self) -> list[dict[str, Any]]:
        """Return the space as plain JSON values."""
        return [asdict(action) for action in self.actions]

    @classmethod
    def from_json(cls, stored: Sequence[Mapping[str, Any]]) -> "ActionSpace":
        """Return the space of `to_json`.

        Raises:
            ValueError, KeyError, TypeError: it is damaged.
        """
        return cls(tuple(_action(dict(each)) for each in stored))


def uniform_space(scales: Sequence[int]) -> ActionSpace:
    """Return the space of the scales alone, each starting from the next coarser one."""
    names = [str(scale) for scale in scales]
    return ActionSpace(
        tuple(
            Action(name, int(scale), base=base)
            for name, scale, base in zip(names, scales, ["", *names], strict=False)
        )
    )


def default_space(scales: Sequence[int]) -> ActionSpace:
    """Return the scales and the foci that did best on m3-mini's validation pictures.

    Where the levels leave no room for a focus, as with a single scale, only the scales remain.
    """
    finest_first = list(scales)[::-1]
    foci: dict[str, Action] = {}  # on small grids several rules come down to the same
    for (coarse_below, fine_below), rules in FOCI.items():
        if max(coarse_below, fine_below) >= len(finest_first):
            continue
        coarse, fine = finest_first[coarse_below], finest_first[fine_below]
        if isqrt(fine) % CELL_SIDE:
            continue
        for share, around, part in rules:
            rule = CellRule(share, around, max(1, fine // part))
            name = f"{coarse}+{fine}@{share}{MARKS[around]}x{rule.most}"
            foci[name] = Action(name, int(coarse), int(fine), rule, str(coarse))
    fitting = [focus for focus in foci.values() if focus.most_tokens < scales[-1]]
    every = [*uniform_space(scales).actions, *fitting]
    return ActionSpace(tuple(sorted(every, key=lambda action: action.most_tokens)))


def _action(stored: dict[str, Any]) -> Action:
    rule = stored.pop("rule")
    made = Action(**stored, rule=None if rule is None else CellRule(**rule))
    numbers = [made.coarse] if made.fine is None else [made.coarse, made.fine]
    if made.rule is not None:
        numbers += [made.rule.share, made.rule.most]
    told = ((str, made.name, made.base), (int, *numbers))
    # JSON knows 36.0 and true, which equal what they are not.
    if any(type(value) is not kind for kind, *values in told for value in values):
        raise ValueError(f"an action of other types than it has: {made}")
    return made
