"""What a restricted router may still decide: the constraints of a request, and the words for it.

Knows the registry's restrictions and requests; knows nothing of how either comes about.
"""

from __future__ import annotations

from dataclasses import replace

from router.registry import Restriction
from serve.stages.messages import EncodeRequest


def under_restriction(request: EncodeRequest, restriction: Restriction | None) -> EncodeRequest:
    """Return the request, decided as the restriction has it; None: as the router would."""
    if restriction is None:
        return request
    constraints = replace(
        request.constraints, restricted=True, restricted_price=restriction.price, second_look=False
    )
    return replace(request, constraints=constraints)


def in_words(restriction: Restriction | None) -> str:
    """Return what a router is held to and why, "" if to nothing."""
    if restriction is None:
        return ""
    to = "the finest scale" if restriction.price is None else f"price {restriction.price:.5g}"
    return f"{to}: {restriction.why}" if restriction.why else to
