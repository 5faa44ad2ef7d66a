"""Quality against cost: which scale a request's pictures get, and at which price the fleet works.

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
    frontier,
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
    "even_shares",
    "frontier",
    "token_costs",
]
