"""M3 on stock Hugging Face classes: one picture, any number of visual tokens.

The names below are loaded on first use, so importing `m3model` costs nothing: torch and
transformers arrive only with the first class that needs them. This package knows no router, no
server and no training loop.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m3model.config import M3Config
    from m3model.cost import RequestCost, request_cost
    from m3model.engine.interface import Engine, Sampling, TokenEvent
    from m3model.engine.local import LocalEngine
    from m3model.errors import CheckpointMismatch
    from m3model.focus import Focus, focus_visual_tokens
    from m3model.model import M3ForConditionalGeneration
    from m3model.pooling import pool_visual_tokens
    from m3model.processing import M3Processor
    from m3model.relevance.readout import RelevanceReadout

_HOME = {
    "CheckpointMismatch": "m3model.errors",
    "Engine": "m3model.engine",
    "Focus": "m3model.focus",
    "LocalEngine": "m3model.engine.local",
    "M3Config": "m3model.config",
    "M3ForConditionalGeneration": "m3model.model",
    "M3Processor": "m3model.processing",
    "RelevanceReadout": "m3model.relevance",
    "RequestCost": "m3model.cost",
    "Sampling": "m3model.engine",
    "TokenEvent": "m3model.engine",
    "focus_visual_tokens": "m3model.focus",
    "pool_visual_tokens": "m3model.pooling",
    "request_cost": "m3model.cost",
}

__all__ = [
    "CheckpointMismatch",
    "Engine",
    "Focus",
    "LocalEngine",
    "M3Config",
    "M3ForConditionalGeneration",
    "M3Processor",
    "RelevanceReadout",
    "RequestCost",
    "Sampling",
    "TokenEvent",
    "default_model_path",
    "focus_visual_tokens",
    "pool_visual_tokens",
    "request_cost",
]


def default_model_path() -> Path:
    """The folder of the embedded model m3-mini (a source tree may not have trained it yet)."""
    return Path(__file__).resolve().parent / "pretrained" / "m3-mini"


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
