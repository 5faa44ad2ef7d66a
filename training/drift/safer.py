"""A safer price for a router that loses too much on fresh audits; the anchor where none is shown.

Knows routers and oracle data; knows nothing of registries.
"""

from __future__ import annotations

import numpy as np

from router.certificate.proof import betting_order, certified_member, picture_losses, price_family
from router.policy import calibrate_price, candidate_prices, row_costs
from router.registry import Restriction
from router.router import Router
from training.drift.audits import kept_share
from training.fitting.certify import most_costs
from training.fitting.fit import PRICING_AUDITS
from training.oracle.data import OracleData, check_fits

WORTH = 0.95  # of the anchor's cost: what saves less is not worth the risk
SAFETY = 2.0  # standard errors above the target: the audits have just shown that it was missed


def safer(router: Router, fresh: OracleData | None, why: str) -> Restriction:
    """Return what the router should be held to: a price at which one look keeps its target on the
    fresh audits, and its certificate's bound anew where it holds one; the anchor else.

    Args:
        fresh: None: there are none that could show anything.
        why: the reason, in words.
    """
    anchor = Restriction(None, why)
    if fresh is None or fresh.n_pictures < PRICING_AUDITS or router.policy.finest_only:
        return anchor
    on = check_fits(router, fresh)
    values = np.asarray(router.predict_values(on.features), dtype=np.float64)
    costs = row_costs(on.visual_tokens, router.scales, router.policy.costs)
    grid = candidate_prices(values, costs)
    grid = np.unique(np.append(grid[grid < router.price], [0.0, max(router.price, 0.0)]))
    units = betting_order(fresh.units)
    priced = calibrate_price(
        values, on.scores, costs, units, target=kept_share(router), z=SAFETY, prices=grid
    )
    if not priced.feasible or priced.cost > WORTH * costs[:, -1].mean():
        return anchor
    price, found = priced.price, router.held.certificate
    if found is not None:
        family = price_family(most_costs(router))
        losses = picture_losses(values, on.scores, costs, units, family, found.loss)
        member = certified_member(losses, found.bound, found.delta)
        if not member or family[member - 1] < 0.0:
            return anchor
        price = min(price, float(family[member - 1]))
    return Restriction(price, why)
