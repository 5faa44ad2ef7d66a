"""A model and its pool of keys and values: one pass over chunks of rows, packed end to end, and one
next token for each row whose prompt is read.

Linear layers see one row per token that is really there. It knows rows; nothing of threads and
queues.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from m3model.engine.attention import Step, best_step
from m3model.engine.kv_pool import pool_for
from m3model.engine.request import Row
from m3model.model import M3ForConditionalGeneration

NAME = "m3_packed"


class PackedModel:
    """The language half of an M3 model.

    Args:
        model: shared with other readers; nothing is kept on it.
        kv_tokens: capacity of the pool; None: what memory allows (`pool_for`).
        longest: longest prompt plus answer.
        beat: called before each layer of a pass: a slow pass is no silence.
    """

    def __init__(
        self,
        model: M3ForConditionalGeneration,
        *,
        kv_tokens: int | None,
        longest: int,
        beat: Callable[[], None],
    ) -> None:
        text = model.config.text_config
        self.model = model
        self.pool = pool_for(model.model.language_model, text, tokens=kv_tokens, longest=longest)
        self._language = packed_language_model(model.model.language_model)
        for layer in self._language.layers:  # type: ignore[union-attr]
            layer.register_forward_pre_hook(lambda *_: beat())
        self._step = best_step(self.pool, int(text.num_attention_heads))

    @torch.no_grad()
    def run(self, chunks: Sequence[tuple[Row, int]]) -> list[tuple[Row, int, float]]:
        """Reads the chunks; (row, token id, log-probability) of every row whose prompt is read.

        Rows advance only when the whole pass has succeeded.
        """
        packed = sorted(chunks, key=lambda item: self._step.order(item[0].chunk(item[1])))
        step = self._step(self.pool, [row.chunk(new) for row, new in packed])
        hidden = self._language(
            inputs_embeds=self._embeds(packed).unsqueeze(0),
            position_ids=step.positions.unsqueeze(0),
            use_cache=False,
            step=step,
        ).last_hidden_state[0]
        speaking, last, at = [], [], -1
        for row, new in packed:
            at += new
            if new >= row.left:
                speaking.append(row)
                last.append(at)
        said = self._next_tokens(speaking, hidden[last]) if speaking else []
        for row, new in packed:
            row.read += new
            if not row.left:
                row.embeds = None
        return said

    def _embeds(self, packed: Sequence[tuple[Row, int]]) -> torch.Tensor:
        """(T, D): prompts have theirs, answer tokens are looked up, all in one go."""
        said = self.model.embed_text([row.ids[-1] for row, _ in packed if not row.left])
        each = iter(said.split(1))
        return torch.cat(
            [
                next(each) if row.embeds is None else row.embeds[row.read : row.read + new]
                for row, new in packed
            ]
        )

    def _next_tokens(
        self, rows: Sequence[Row], hidden: torch.Tensor
    ) -> list[tuple[Row, int, float]]:
        logits = self.model._mask_added_rows(self.model.lm_head(hidden)).float()
        ids = logits.argmax(dim=-1)
        for at, row in enumerate(rows):
            if row.draw:
                scores = logits[at : at + 1].clone()
                before = torch.tensor([row.ids], device=scores.device)
                for process in row.draw:
                    scores = process(before, scores)
                ids[at] = scores.argmax()
        totals = logits.logsumexp(dim=-1)
        chosen = logits.gather(1, ids.unsqueeze(1)).squeeze(1) - totals
        note_most_probable(rows, logits, totals)
        return list(zip(rows, ids.tolist(), chosen.tolist(), strict=True))


def note_most_probable(rows: Sequence[Row], logits: torch.Tensor, totals: torch.Tensor) -> None:
    """Gives rows that ask for them their most probable next tokens; costs the others nothing.

    Args:
        logits: (rows, vocabulary).
        totals: (rows,) the logarithms of the sums of their exponentials.
    """
    asking = [at for at, row in enumerate(rows) if row.job.sampling.top_logprobs]
    if not asking:
        return
    most = max(rows[at].job.sampling.top_logprobs for at in asking)
    found = logits[asking].topk(min(most, logits.shape[1]), dim=-1)
    logprobs = (found.values - totals[asking].unsqueeze(1)).tolist()
    for at, ids, values in zip(asking, found.indices.tolist(), logprobs, strict=True):
        wanted = rows[at].job.sampling.top_logprobs
        rows[at].top = tuple(zip(ids[:wanted], values[:wanted], strict=True))


def end_ids(model: M3ForConditionalGeneration) -> frozenset[int]:
    """The tokens that end an answer."""
    ends: int | Sequence[int] | None = model.generation_config.eos_token_id
    if ends is None:
        ends = model.config.text_config.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)


def packed_language_model(language_model: nn.Module) -> nn.Module:
    """A twin that shares every weight and buffer but reads a `Step` instead of a cache.

    Call it with `inputs_embeds` (1, T, D), `position_ids` (1, T), `use_cache=False` and `step`.
    The given model's own configuration stays as it is.

    Raises:
        ValueError: a model with sliding windows.
    """
    if getattr(language_model.config, "sliding_window", None) is not None:
        raise ValueError("language models with sliding-window attention are not supported")
    AttentionInterface.register(NAME, _attention)
    tensors = [*language_model.parameters(), *language_model.buffers()]
    twin = copy.deepcopy(language_model, {id(tensor): tensor for tensor in tensors})
    twin.config._attn_implementation = NAME
    return twin.eval()


def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: object,
    *,
    scaling: float,
    step: Step,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    out = step.attend(
        layer, query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), scaling
    )
    return out.unsqueeze(0), None
