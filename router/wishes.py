"""The constraints of a request as JSON text and back: what its decision was held to, in a log.

Knows the fields of `Constraints`; knows nothing of records, routers or requests.
"""

import json
from dataclasses import asdict, fields
from typing import Any

from router.decision import Constraints, Reason

_KINDS: dict[str, tuple[type, ...]] = {
    "pinned": (int, type(None)),
    "max_visual_tokens": (int, type(None)),
    "reason": (str,),
    "explain": (bool,),
    "max_harm": (float, type(None)),
    "second_look": (bool,),
    "price_floor": (float,),
    "pins": (list,),
    "focus": (bool,),
    "restricted": (bool,),
    "restricted_price": (float, type(None)),
}


def constraints_to_json(constraints: Constraints) -> str:
    """Return the constraints as JSON text, every field in it; numbers come back to the bit."""
    return json.dumps(asdict(constraints), sort_keys=True, allow_nan=False)


def constraints_from_json(text: str) -> Constraints:
    """Return the constraints of `constraints_to_json`; a field that is missing has its default.

    Raises:
        ValueError: it is damaged, or names a wish that this program does not know: to leave it out
            would decide otherwise than was decided.
    """
    stored = json.loads(text)
    if not isinstance(stored, dict):
        raise ValueError(f"constraints are a JSON object, not {text[:60]}")
    unknown = sorted(set(stored) - {field.name for field in fields(Constraints)})
    if unknown:
        raise ValueError(f"constraints of a later version: {', '.join(unknown)} is unknown here")
    for name, value in stored.items():
        if type(value) not in _KINDS[name]:
            raise ValueError(f"constraints are damaged: {name} is {value!r}")
    if not all(pin is None or type(pin) is int for pin in stored.get("pins", ())):
        raise ValueError(f"constraints are damaged: pins is {stored['pins']!r}")
    made: dict[str, Any] = dict(stored)
    if "pins" in made:
        made["pins"] = tuple(made["pins"])
    if "reason" in made:
        made["reason"] = Reason(made["reason"])
    return Constraints(**made)
