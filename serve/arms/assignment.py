"""Which sessions a canary answers: by a hash, so every replica says the same, before and after.

Pure functions; knows neither routers nor the registry. The salt is the canary's own name: who is
drawn at a share is drawn at a larger one too, and another canary draws others.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

LIVE, CANARY = "live", "canary"  # the arms, as metrics and the log name them


def session_of(
    tenant: str,
    group_id: str | None,
    prompt: Sequence[dict[str, Any]],
    picture_ids: Sequence[str],
) -> str:
    """Return what the turns of one conversation have in common, and those of a group.

    That is the group, where the caller gave one, else how the conversation began: its first picture
    and the user's first words. Of two tenants nothing is the same.

    Args:
        prompt: the conversation as the processor takes it.
        picture_ids: of its pictures, in order.
    """
    if group_id is not None:
        return json.dumps(["group", tenant, group_id])
    said = next((_text(turn) for turn in prompt if turn["role"] == "user"), "")
    return json.dumps(["conversation", tenant, picture_ids[0] if picture_ids else "", said])


def is_drawn(session: str, salt: str, share: float) -> bool:
    """Return whether a session is among the share that is drawn."""
    digest = hashlib.sha256(f"m3-router arms 1:{salt}:{session}".encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def _text(turn: dict[str, Any]) -> str:
    content = turn["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")
