"""The entry point that vLLM runs in each of its processes, before it looks for model classes."""

from __future__ import annotations

ARCHITECTURE = "M3LlavaForConditionalGeneration"


def register() -> None:
    """Names the model class to vLLM; it is imported where a checkpoint asks for it."""
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, f"{__package__}.model:{ARCHITECTURE}")
