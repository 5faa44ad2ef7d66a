"""Quality against cost: what a request's pictures are read at, and at which price the fleet works.

`rule` decides for one picture and finds prices, `budget` shares one cap among several pictures.
"""

from router.policy.budget import best_shares, even_shares
from router.policy.rule import (
    CalibratedPrice,
    Frontier,
    Policy,
    calibrate_price,
    candidate_prices,
    choose,
    choose_many,
    costs_of_row,
    frontier,
    row_costs,
    token_costs,
)

__all__ = [
    "CalibratedPrice",
    "Frontier",
    "Policy",
    "best_shares",
    "calibrate_price",
    "candidate_prices",
    "choose",
    "choose_many",
    "costs_of_row",
    "even_shares",
    "frontier",
    "row_costs",
    "token_costs",
]
