"""`M3ForConditionalGeneration`: stock LLaVA at any number of visual tokens per picture.

The scale, or the focus, is an argument of every call and never kept on the object, so calls with
different ones may interleave. It knows no prompt text (see `processing`), no routing and no request
queue (see `engine`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForImageTextToText, LlavaForConditionalGeneration
from transformers.models.llava.modeling_llava import LlavaCausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from m3model.config import M3Config
from m3model.errors import refuse_mismatch
from m3model.prompt.expansion import ExpandedRows, expand_rows, holds_token, text_positions
from m3model.prompt.visual_tokens import (
    Scale,
    pool_pictures,
    refuse_foreign_pictures,
    token_counts,
)


@dataclass
class M3Output(LlavaCausalLMOutputWithPast):
    """LLaVA's output plus what the expansion of the rows made of them.

    `attention_mask` (B, L) goes with `logits` (B, L, V); `visual_tokens` (B,). Both None when
    nothing was expanded.
    """

    attention_mask: torch.Tensor | None = None
    visual_tokens: torch.Tensor | None = None


class M3ForConditionalGeneration(LlavaForConditionalGeneration):
    """A LLaVA model that reads each picture at the number of visual tokens named in the call.

    `input_ids` holds ONE image token (`config.image_token_id`) per picture; the model expands it.
    """

    config: M3Config
    config_class = M3Config

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str], *args: Any, **kwargs: Any
    ) -> Any:
        """The model in `pretrained_model_name_or_path`, every tensor accounted for.

        Takes what Hugging Face's `from_pretrained` takes.

        Raises:
            CheckpointMismatch: a key is missing, unexpected or of the wrong shape; the message
                names them.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        # Wrong shapes are collected too, and named with the rest, instead of the first raising.
        kwargs["ignore_mismatched_sizes"] = True
        model, info = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        refuse_mismatch(str(pretrained_model_name_or_path), info)
        return (model, info) if wants_info else model

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Projected features (B, G*G, D) of B pictures, unpooled: ONE pass of the vision tower.

        Args:
            pixel_values: (B, 3, H, W), any float dtype; cast to the tower's.

        Raises:
            ValueError: another shape.
        """
        size = int(self.config.vision_config.image_size)
        if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (3, size, size):
            raise ValueError(
                f"pixel_values must have shape (pictures, 3, {size}, {size}), "
                f"got {tuple(pixel_values.shape)}"
            )
        weight = self.model.multi_modal_projector.linear_1.weight
        pixels = pixel_values.to(device=weight.device, dtype=weight.dtype)
        return torch.stack(list(self.get_image_features(pixels, return_dict=True).pooler_output))

    @torch.inference_mode()
    def question_embedding(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """(D,) the mean input embedding of a question's tokens; zeros where there are none."""
        if not ids:
            return np.zeros(self.config.hidden_size, np.float32)
        mean: NDArray[np.float32] = self.embed_text(list(ids)).float().mean(dim=0).cpu().numpy()
        return mean

    def embed_text(self, ids: torch.Tensor | Sequence[int]) -> torch.Tensor:
        """Input embeddings of token ids: (n,) gives (n, D), (B, n) gives (B, n, D)."""
        table = self.get_input_embeddings()
        return table(torch.as_tensor(ids, dtype=torch.long, device=table.weight.device))

    def embed_prompt(
        self, prompt_ids: Sequence[int] | torch.Tensor, visual_tokens: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Input embeddings (L, D) of one prompt whose pictures were encoded and pooled elsewhere.

        Args:
            prompt_ids: (n,) ids with one image token per picture.
            visual_tokens: per picture (n_i, D), in order; any n_i, any float dtype.

        Raises:
            ValueError: pictures and image tokens differ in number, or a width is not D.
        """
        ids = torch.as_tensor(
            prompt_ids, dtype=torch.long, device=self.get_input_embeddings().weight.device
        )
        return self._embed(ids.unsqueeze(0), None, visual_tokens, None, pad_left=False)[0][0]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        scale: Scale | None = None,
        image_grids: torch.Tensor | Sequence[torch.Tensor] | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> M3Output:
        """Logits, and the loss when `labels` are given.

        Args:
            input_ids: (B, n) with one image token per picture.
            attention_mask: (B, n) over `input_ids`; rows stay padded on the side it shows (right
                if it shows none).
            pixel_values: (P, 3, H, W), pictures in row-major order of their image tokens; or else
            image_grids: (P, G*G, D), answers of `encode_images` (a sequence of (G*G, D) also does).
            scale: visual tokens per picture, or a `Focus`; one for all or one per picture.
                Required with pictures.
            labels: (B, n) over `input_ids`; -100 is ignored, image positions always are.
            logits_to_keep: as in Hugging Face; not together with `labels`.

        Returns:
            `logits` (B, L, V), added vocabulary rows and the image token at the dtype's minimum;
            `loss` the mean cross-entropy over label tokens in fp32; `attention_mask` and
            `visual_tokens` of the expanded rows.

        Raises:
            ValueError: unknown or missing scale, a focus whose levels are not scales of the model,
                or numbers of pictures, image tokens and scales that differ.
        """
        refuse_foreign_pictures(kwargs)
        expanded: ExpandedRows | None = None
        grids = self._grids(pixel_values, image_grids)
        if inputs_embeds is not None and (input_ids is not None or grids is not None):
            raise ValueError("inputs_embeds come alone: without input_ids and pictures")
        if input_ids is not None:
            if grids is not None and position_ids is not None:
                raise ValueError("with pictures the position_ids are the model's own")
            tokens = pool_pictures(self.config, grids, scale)
            decoding = past_key_values is not None and input_ids.shape[1] == 1
            if tokens or (
                not decoding and holds_token(input_ids, attention_mask, self.config.image_token_id)
            ):
                inputs_embeds, expanded = self._embed(
                    input_ids, attention_mask, tokens, labels, pad_left=None
                )
                input_ids = None
                attention_mask, position_ids = expanded.attention_mask, expanded.position_ids
                labels = expanded.labels
            elif position_ids is None and past_key_values is None:
                position_ids = text_positions(attention_mask)
        if labels is not None and not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
            raise ValueError("a loss needs every position's logits: no logits_to_keep with labels")

        items = kwargs.pop("num_items_in_batch", None)
        kwargs.pop("return_dict", None)
        out = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            logits_to_keep=logits_to_keep,
            return_dict=True,
            **kwargs,
        )
        logits = self._mask_added_rows(out.logits)
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=logits.shape[-1], num_items_in_batch=items
            )
        return M3Output(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
            attention_mask=None if expanded is None else expanded.attention_mask,
            visual_tokens=None if expanded is None else expanded.visual_tokens,
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: Any = None,
        *,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        scale: Scale | None = None,
        image_grids: torch.Tensor | Sequence[torch.Tensor] | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """ONLY the new ids, (B, new), padded on the right; with or without pictures.

        Pictures, scales and foci as in `forward`; everything else (`max_new_tokens`, `do_sample`,
        `num_beams`, `streamer`, `stopping_criteria`, `return_dict_in_generate`, ...) as in
        Hugging Face. Rows are padded on the left inside.

        Raises:
            ValueError: as `forward`.
        """
        refuse_foreign_pictures(kwargs)
        input_ids = inputs if input_ids is None else input_ids
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("generate needs input_ids, or else inputs_embeds")
        grids = self._grids(pixel_values, image_grids)
        if input_ids is not None:
            tokens = pool_pictures(self.config, grids, scale)
            inputs_embeds, rows = self._embed(
                input_ids, attention_mask, tokens, None, pad_left=True
            )
            attention_mask = rows.attention_mask
        elif grids is not None:
            raise ValueError("inputs_embeds come alone: without pictures")
        return super().generate(
            generation_config=generation_config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            **kwargs,
        )

    def _grids(
        self,
        pixel_values: torch.Tensor | None,
        image_grids: torch.Tensor | Sequence[torch.Tensor] | None,
    ) -> list[torch.Tensor] | None:
        """One (n, D) grid per picture, or None when the call has no pictures."""
        if pixel_values is not None and image_grids is not None:
            raise ValueError("give pixel_values or image_grids, not both")
        if pixel_values is not None:
            return list(self.encode_images(pixel_values))
        return None if image_grids is None else list(image_grids)

    def _embed(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        visual_tokens: Sequence[torch.Tensor],
        labels: torch.Tensor | None,
        *,
        pad_left: bool | None,
    ) -> tuple[torch.Tensor, ExpandedRows]:
        """Input embeddings (B, L, D) with each picture's tokens in the place of its image token."""
        rows = expand_rows(
            input_ids,
            attention_mask,
            token_counts(self.config, visual_tokens),
            self.config.image_token_id,
            labels=labels,
            pad_left=pad_left,
        )
        embeds = self.get_input_embeddings()(rows.input_ids)
        if visual_tokens:
            source = torch.cat([tokens.to(embeds.device, embeds.dtype) for tokens in visual_tokens])
            embeds = embeds.masked_scatter(rows.image_mask.unsqueeze(-1), source)
        return embeds, rows

    def _mask_added_rows(self, logits: torch.Tensor) -> torch.Tensor:
        lowest = torch.finfo(logits.dtype).min
        # In place: these logits are large, and a linear layer's backward needs no output.
        logits[..., self.config.text_vocab_size :].fill_(lowest)
        logits[..., self.config.image_token_id].fill_(lowest)
        return logits


AutoModelForImageTextToText.register(M3Config, M3ForConditionalGeneration, exist_ok=True)
