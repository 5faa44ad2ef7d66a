"""The model card of a router that was fitted here: what it learnt from and how it did.

Knows the facts that `fit` leaves in a router; the text is the template's. A router about which less
is known gets the card of router.folder.
"""

from __future__ import annotations

from pathlib import Path

from router.folder import card_data
from router.router import Router

TEMPLATE = Path(__file__).with_name("router_card.md.jinja")


def fitted_card(router: Router) -> str:
    """Return the router's README: what it is, what it was fitted on, how it did, how to use it."""
    from huggingface_hub import ModelCard

    facts, here = router.metadata, router.metadata["on_calibration"]
    look = facts.get("second_look", {})
    card = ModelCard.from_template(
        card_data(),
        template_path=str(TEMPLATE),
        facts=facts,
        here=here,
        look=router.second_look,
        price=router.price,
        single_target=look.get("single_look_target", facts["target"]),
        cost_unit=router.policy.cost_unit,
        scales=router.scales,
        n_foci=len(router.space) - len(router.scales),
        schema_hash=router.schema.hash,
        n_features=len(router.schema.names),
    )
    return f"{card}\n"
