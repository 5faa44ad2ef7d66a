"""vLLM's LLaVA, for pictures of any number of visual tokens in one batch."""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.models.llava import LlavaForConditionalGeneration
from vllm.model_executor.models.utils import WeightsMapper


class M3LlavaForConditionalGeneration(LlavaForConditionalGeneration):  # type: ignore[misc]
    """Stock LLaVA with three differences.

    Its schema of visual tokens has one length for all of a batch and refuses others; rows of the
    vocabulary that were added for `<image>` are no answers, here as in our own engine; and weights
    may be named as transformers 5.23 saves them, not only as it reads them.
    """

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "model.language_model.model.": "language_model.model.",
            "model.language_model.lm_head.": "language_model.lm_head.",
            "model.language_model.": "language_model.model.",
            "model.vision_tower.": "vision_tower.",
            "model.multi_modal_projector.": "multi_modal_projector.",
            "lm_head.": "language_model.lm_head.",
        }
    )

    def embed_multimodal(self, **kwargs: object) -> Any:
        """Per picture (n_i, D): those that came, each of its own length."""
        embeds: Any = kwargs.get("image_embeds")
        if embeds is None:
            return super().embed_multimodal(**kwargs)
        return [tokens.reshape(-1, tokens.shape[-1]) for tokens in embeds]

    def compute_logits(self, hidden_states: torch.Tensor, *more: Any) -> torch.Tensor | None:
        """(rows, vocabulary); no added row and no image token ever wins."""
        logits: torch.Tensor | None = super().compute_logits(hidden_states, *more)
        if logits is not None:
            lowest = torch.finfo(logits.dtype).min
            logits[..., self.config.text_vocab_size :] = lowest
            logits[..., self.config.image_token_index] = lowest
        return logits
