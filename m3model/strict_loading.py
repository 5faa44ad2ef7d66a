"""Turning Hugging Face's loading report into an error: a model is loaded whole or not at all."""

from __future__ import annotations

from typing import Any

from m3model.errors import CheckpointMismatch


def refuse_mismatch(where: str, info: dict[str, Any]) -> None:
    """Nothing, if every tensor of model and checkpoint found its counterpart.

    Args:
        where: the checkpoint, for the message.
        info: what `from_pretrained(..., output_loading_info=True)` reports.

    Raises:
        CheckpointMismatch: naming every key that is missing, unexpected or of the wrong shape.
    """
    found = {
        "missing": sorted(info.get("missing_keys", ())),
        "unexpected": sorted(info.get("unexpected_keys", ())),
        "wrong shape": sorted(str(entry) for entry in info.get("mismatched_keys", ())),
        "errors": [str(message) for message in info.get("error_msgs") or ()],
    }
    parts = [f"{label}: {', '.join(names)}" for label, names in found.items() if names]
    if parts:
        raise CheckpointMismatch(f"{where} does not hold this model's weights. {'; '.join(parts)}")
