"""What the router chooses between: uniform scales, and foci on the cells a question is about."""

from router.actions.cells import CellRule, cells_of_map, quantised
from router.actions.space import (
    Action,
    ActionSpace,
    Plan,
    Reading,
    default_space,
    uniform_space,
)

__all__ = [
    "Action",
    "ActionSpace",
    "CellRule",
    "Plan",
    "Reading",
    "cells_of_map",
    "default_space",
    "quantised",
    "uniform_space",
]
