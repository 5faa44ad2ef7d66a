"""What may be read of one picture: every action's tokens and cost, and which of them are open.

Knows spaces, plans, costs and caps; knows nothing of features, pins or requests.
Notation: A actions of a space, K scales ascending.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from router.actions import ActionSpace, Plan
from router.policy.rule import Policy, costs_of_row


@dataclass(frozen=True)
class Offer:
    """What may be read of a picture, caps apart.

    Attributes:
        tokens: (A,) visual tokens of each action; of a focus that is not open the coarse ones.
        costs: (A,) relative, inf where an action is not open.
        open: (A,) whether it may be read.
        plan: what the foci read; None where none is open.
    """

    tokens: tuple[int, ...]
    costs: tuple[float, ...]
    open: tuple[bool, ...]
    plan: Plan | None = None

    @property
    def places(self) -> list[int]:
        """The indices of the open actions."""
        return [place for place, ok in enumerate(self.open) if ok]

    def choose(self, policy: Policy, values: Sequence[float], cap: int | None) -> tuple[int, bool]:
        """Return the index of the policy's action, and whether the cap forbade its free choice.

        Raises:
            ValueError: nothing fits the cap, or a value is NaN.
        """
        free = policy.choose(values, self.open, self.costs)
        if cap is None or self.tokens[free] <= cap:
            return free, False
        fits = [ok and count <= cap for ok, count in zip(self.open, self.tokens, strict=True)]
        return policy.choose(values, fits, self.costs), True


def scales_alone(space: ActionSpace, costs: Sequence[float]) -> Offer:
    """Return the offer of the scales at their costs (K,), the foci closed."""
    of_scales = dict(zip(space.uniform, costs, strict=True))
    return Offer(
        tokens=tuple(action.coarse for action in space.actions),
        costs=tuple(of_scales.get(place, math.inf) for place in range(len(space))),
        open=tuple(action.is_uniform for action in space.actions),
    )


def planned(space: ActionSpace, costs: Sequence[float], plan: Plan) -> Offer:
    """Return the offer of all actions by the plan of a question, the scales at their costs (K,).

    Raises:
        ValueError: a plan of other actions.
    """
    if not len(plan.tokens) == len(plan.cells) == len(space):
        raise ValueError(f"a plan of {len(plan.tokens)} actions for {len(space)}")
    if [plan.tokens[place] for place in space.uniform] != list(space.scales):
        raise ValueError(f"a plan of another space: it reads {plan.tokens} tokens")
    of_row = costs_of_row(plan.tokens, space.scales, costs)
    return Offer(plan.tokens, of_row, (True,) * len(of_row), plan)
