"""What an overloaded service may take from a request: the floor of the price it is decided at.

The price rises through prices that the router's certificate was tested at, up to the dearest that
keeps the bound the operator set; without such a certificate nothing gives way but admission. Knows
constraints and routers; knows nothing of queues or of what the gateway measures.
"""

from __future__ import annotations

import math
from dataclasses import replace

from router.decision import Constraints
from router.router import Router


def under_pressure(
    constraints: Constraints, router: Router, pressure: float, max_harm: float | None
) -> Constraints:
    """Return the constraints with the floor of the price that the pressure asks for.

    A request that might look twice looks once from the first pressure on, at first at the certified
    price next below the one its first look would have started at: at the router's usual price one
    look reads more than two. The price of others rises from the usual one.

    Args:
        constraints: of a request about one picture; with wishes about tokens or harm they are kept,
            and so they are where it declines the foci that were certified along.
        router: in force.
        pressure: from 0, nothing, to 1, the dearest certified price.
        max_harm: share of the answers that may be lost; None: the price never rises.
    """
    wishes = (constraints.pinned, constraints.max_visual_tokens, constraints.max_harm)
    if constraints.restricted:
        return constraints  # what is certified does not hold
    if pressure <= 0.0 or max_harm is None or any(wish is not None for wish in wishes):
        return constraints
    if not (constraints.focus or router.space.is_uniform):
        return constraints  # certified is the choice that a focus is among
    prices = router.held.dearer_prices(router.policy, max_harm)
    look = router.second_look if constraints.second_look else None
    if look is not None:
        begun = sum(price <= look.start_price for price in prices)
        prices = prices[max(begun - 1, 0) :]
    if not prices:
        return constraints
    step = math.ceil(min(pressure, 1.0) * len(prices))
    return replace(constraints, price_floor=prices[step - 1])
