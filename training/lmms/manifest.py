"""What lmms-eval learns of this package by its entry point: the name of a model and its class.

lmms-eval loads it whenever it starts, so nothing heavy is imported here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

MODEL = "m3"
CLASS = "training.lmms.model.M3"


def manifest() -> ModelManifest:
    """Return the one model that is offered: `--model m3`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=MODEL, chat_class_path=CLASS)
