"""A router that holds its certificate: at which price it works, and what its card says of it.

Knows routers, certificates and the card's words; the proof is training.fitting.certify's.
"""

from __future__ import annotations

import re
from dataclasses import replace

from router.certificate.promise import Certificate
from router.router import Router

HEADING = "## Certificate"


def certified_router(router: Router, found: Certificate, *, keep_price: bool = False) -> Router:
    """Return the router holding the certificate, at the certified price unless that is kept.

    Without a certified price it takes always the finest scale.
    """
    made = router
    if not keep_price:
        price = found.rung.price
        policy = replace(router.policy, price=price or 0.0, finest_only=price is None)
        made = router.with_policy(policy, {"price_set_by": f"certificate of {found.created_utc}"})
    made = made.with_certificate(found)
    plain = re.split(rf"\n{HEADING}\n", router.card_text)[0].rstrip()
    made.card_text = f"{plain}\n\n{HEADING}\n\n{_card_section(found, keep_price)}"
    return made


def _card_section(found: Certificate, keep_price: bool) -> str:
    rows = "\n".join(
        f"| {rung.bound:g} | {price_in_words(rung.price)} | {rung.visual_tokens:.1f} |"
        for rung in found.ladder
    )
    price = "left as it was" if keep_price else f"set to {price_in_words(found.rung.price)} by it"
    return (
        f"{_promise(found)} Certified {found.created_utc} on {found.questions} questions about "
        f"{found.pictures} pictures ({found.method.replace('_', '-')}), of which the finest scale "
        f"answers {found.finest_right or 0:.1%} rightly; what is bounded: "
        f"{found.population}. Each bound holds by itself. The router's price was {price}.\n\n"
        f"| {found.loss} at most | price | visual tokens |\n| --- | --- | --- |\n{rows}\n"
    )


def _promise(found: Certificate) -> str:
    return f"{found.loss.capitalize()} of at most {found.bound:g}, {1 - found.delta:.4g} sure."


def price_in_words(price: float | None) -> str:
    """Return a certified price for people."""
    return "always the finest" if price is None else f"{price:.5g}"
