"""A model and its pool of keys and values: one pass over chunks of rows, packed end to end, and one
next token for each row whose prompt is read.

Linear layers see one row per token that is really there. It knows rows; nothing of threads and
queues.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface

from m3model.engine.kv_pool import pool_for
from m3model.engine.passes.attention import Step, VarlenStep, best_step, on_device
from m3model.engine.passes.captured import FixedStep, FixedSteps, Outcome
from m3model.engine.passes.layers import LlamaLayers, fits
from m3model.engine.passes.products import TORCH, Product, best_product
from m3model.engine.passes.sampling import Choices
from m3model.engine.request import Row
from m3model.model import M3ForConditionalGeneration

LOG = logging.getLogger(__name__)
NAME = "m3_packed"
NOTHING = torch.empty(0)
DEPENDENT_ROPE = {"dynamic", "longrope"}
CHANGES_SCORES = ("sliding_window", "softcap", "s_aux", "sinks", "position_bias")


class PackedModel:
    """The language half of an M3 model.

    Args:
        model: shared with other readers. Its weights may be laid side by side (`LlamaLayers`); else
            nothing is kept on it.
        kv_tokens: capacity of the pool; None: what memory allows (`pool_for`).
        longest: longest prompt plus answer.
        most: rows that a pass may have.
        beat: called before each layer of a pass: a slow pass is no silence.

    Raises:
        ValueError: a model that packed passes would get wrong.
    """

    def __init__(
        self,
        model: M3ForConditionalGeneration,
        *,
        kv_tokens: int | None,
        longest: int,
        most: int,
        beat: Callable[[], None],
    ) -> None:
        text = model.config.text_config
        language = model.model.language_model
        check_readable(text)
        self.model = model
        self._heads = int(text.num_attention_heads)
        on_gpu = model.lm_head.weight.is_cuda
        self.pool = pool_for(
            language, text, tokens=kv_tokens, longest=longest, spare=2 * most if on_gpu else 0
        )
        own = fits(language)
        self.product = best_product(model.lm_head.weight, size_of(language)) if own else TORCH
        self._layers = LlamaLayers(language, longest, beat, self.product) if own else None
        self._twin = None if self._layers is not None else packed_language_model(language, beat)
        self.step = best_step(self.pool, self._heads)
        self._head = head_in_32_bits(model, self.product)
        self._fixed: FixedSteps | None = None
        if on_gpu and self._layers is not None and self.step is VarlenStep:
            self._fixed = self.fixed_steps(longest, most)
            try:
                self._fixed.capture()
            except Exception:  # the same steps run without
                LOG.exception("decode steps cannot be captured here")
                self._fixed = None
        self._again: _Again | None = None

    @torch.no_grad()
    def launch(self, chunks: Sequence[tuple[Row, int]]) -> Said:
        """Reads the chunks; what every row says whose prompt is read is there to be read later.

        A GPU may still be at it. Rows advance only when all of the pass was begun. Rows that each
        read one token, and the same ones did so in the pass before, read what that pass said:
        nothing of it need be read here first.
        """
        again = self._again if self.goes_on(chunks) else None
        if again is None:
            packed = sorted(chunks, key=lambda item: self.step.order(item[0].chunk(item[1])))
            step = self.step(self.pool, [row.chunk(new) for row, new in packed], self._heads)
            hidden = self._hidden(self._embeds(packed), step)
            speaking, last, at = [], [], -1
            for row, new in packed:
                at += new
                if new >= row.left:
                    speaking.append(row)
                    last.append(at)
            choices = Choices(
                [row.draw for row in speaking],
                [row.job.sampling.top_logprobs for row in speaking], hidden.device,
            )  # fmt: skip
            if len(speaking) == len(hidden):  # all of them answer, in this order
                again = _Again([row for row, _ in packed], step, choices)
            elif speaking:
                hidden = hidden.index_select(0, on_device(last, hidden.device))
            found = self._outcome(hidden) if speaking else None
        else:
            packed = [(row, 1) for row in again.rows]
            speaking, choices = again.rows, again.choices
            if again.fixed is not None:
                found = again.fixed.run().of(len(speaking))
            else:
                found = self._read_again(again.ids, again.step)
        said = Said([]) if found is None else _said(speaking, found, choices)
        if again is not None:
            again.advance(said, self._fixed)
        self._again = again
        for row, new in packed:
            row.read += new
            if not row.left:
                row.embeds = None
        return said

    def goes_on(self, chunks: Sequence[tuple[Row, int]]) -> bool:
        """Whether these chunks go on from the last pass, whatever it says."""
        return self._again is not None and self._again.goes_on(chunks)

    @torch.no_grad()
    def embed(
        self, prompt_ids: Sequence[int], pictures: Sequence[torch.Tensor], skipped: int
    ) -> torch.Tensor:
        """(L - skipped, D) embeddings of a prompt but for its first tokens.

        Args:
            prompt_ids: with one image token per picture.
            pictures: the visual tokens of each, (n_i, D).
            skipped: tokens, visual ones counted.
        """
        table = self.model.get_input_embeddings()
        weight, image = table.weight, self.model.config.image_token_id
        words, parts, each = list[int](), list[torch.Tensor | int](), iter(pictures)
        for token in prompt_ids:
            if token != image:
                if skipped:
                    skipped -= 1
                    continue
                words.append(token)
                if parts and isinstance(parts[-1], int):
                    parts[-1] += 1
                else:
                    parts.append(1)
            else:
                picture = next(each)
                parts.append(picture[skipped:].to(weight.device, weight.dtype, non_blocking=True))
                skipped = max(skipped - len(picture), 0)
        said = table(on_device(words, weight.device)) if words else weight[:0]
        text = iter(said.split([part for part in parts if isinstance(part, int)]))
        return torch.cat([next(text) if isinstance(part, int) else part for part in parts])

    def fixed_steps(self, longest: int, most: int) -> FixedSteps:
        """Steps of single tokens in buffers that never move, of 1 to `most` rows."""
        return FixedSteps(self._read_again, self.pool, self._heads, longest, most)

    def close(self) -> None:
        """Gives the memory of keys, values, packed weights and captured steps back."""
        self._again = self._fixed = self._layers = None
        self._head = nn.Identity()
        self.pool.free()

    def forget(self) -> None:
        """Lets the next pass be laid out anew, as after one that failed."""
        self._again = None

    def _hidden(self, embeds: torch.Tensor, step: Step) -> torch.Tensor:
        if self._layers is not None:
            return self._layers(embeds, step)
        found: torch.Tensor = self._twin(  # type: ignore[misc]
            inputs_embeds=embeds.unsqueeze(0),
            position_ids=step.positions.unsqueeze(0),
            use_cache=False,
            step=step,
        ).last_hidden_state[0]
        return found

    def _embeds(self, packed: Sequence[tuple[Row, int]]) -> torch.Tensor:
        """(T, D): prompts have theirs, answer tokens are looked up, all in one go."""
        last = [row.ids[-1] for row, _ in packed if not row.left]
        table = self.model.get_input_embeddings()
        said = iter(table(on_device(last, table.weight.device)).split(1)) if last else iter(())
        return torch.cat(
            [next(said) if row.embeds is None else row.next_embeds(new) for row, new in packed]
        )

    def _read_again(self, ids: torch.Tensor, step: Step) -> Outcome:
        """What one token of each row says."""
        return self._outcome(self._hidden(self.model.get_input_embeddings()(ids), step))

    def _outcome(self, hidden: torch.Tensor) -> Outcome:
        logits = self.model._mask_added_rows(self._head(hidden)).float()
        return Outcome(logits, logits.argmax(dim=-1), logits.logsumexp(dim=-1))


def _said(rows: Sequence[Row], found: Outcome, choices: Choices) -> Said:
    ids = choices.choose(found.logits, found.best)
    logprobs = found.logits.gather(1, ids.unsqueeze(1)).squeeze(1) - found.totals
    top = choices.most_probable(found.logits, found.totals)
    asking = [(rows[at], wanted) for at, wanted in choices.asking]
    return Said(rows, ids, logprobs, top, asking).on_its_way()


def head_in_32_bits(
    model: M3ForConditionalGeneration, product: Product
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The language model's head; of 16 bits with logits in 32 where a device can do that.

    A bf16 logit of 16 to 32 has a grain of 0.125: probabilities, and what is decided by them, would
    be as coarse.
    """
    head = model.lm_head
    weight = head.weight
    if weight.is_cuda and weight.element_size() == 2 and head.bias is None:
        try:
            torch.mm(weight[:1], weight[:1].t(), out_dtype=torch.float32)
        except (RuntimeError, TypeError) as error:
            LOG.info("logits in %s: %s", weight.dtype, error)
        else:
            return lambda hidden: torch.mm(hidden, weight.t(), out_dtype=torch.float32)
    if product is TORCH or type(head) is not nn.Linear or head.bias is not None:
        return head
    packed = product.packed(weight)
    return lambda hidden: product.of(hidden, packed)


def size_of(module: nn.Module) -> int:
    """Bytes of its weights."""
    return sum(each.numel() * each.element_size() for each in module.parameters())


class _Again:
    """A pass in which every row read one token or the rest of its prompt, and said one: the same
    rows may go on from what it left on the device."""

    def __init__(self, rows: list[Row], step: Step, choices: Choices) -> None:
        self.rows, self.step, self.choices = rows, step, choices
        self.ids = NOTHING  # what the last pass said
        self.fixed: FixedStep | None = None
        self._known = {id(row) for row in rows}

    def goes_on(self, chunks: Sequence[tuple[Row, int]]) -> bool:
        """Whether these are the same rows, and the layout has room for their next token."""
        return (
            self.step.left > 0
            and len(chunks) == len(self.rows)
            and all(id(row) in self._known for row, _ in chunks)
        )

    def advance(self, said: Said, fixed: FixedSteps | None) -> None:
        """Makes it the pass that reads what is said."""
        self.ids = said.ids
        if self.fixed is None:
            self.step.advance()
            if fixed is not None and isinstance(self.step, VarlenStep):
                self.fixed = fixed.of(len(self.rows))
                self.fixed.load(self.ids, self.step)
        else:
            self.step.left -= 1
            if self.choices.drawing:  # the step took the best ones
                self.fixed.ids[: len(self.rows)].copy_(self.ids)


@dataclass(frozen=True)
class Said:
    """What a pass says: of each of `rows` (n,) token ids and their log-probabilities, and of the
    `asking` ones, who want so many, the most probable tokens."""

    rows: Sequence[Row]
    ids: torch.Tensor = NOTHING
    logprobs: torch.Tensor = NOTHING
    top: tuple[torch.Tensor, torch.Tensor] | None = None
    asking: Sequence[tuple[Row, int]] = ()
    sent: tuple[torch.cuda.Event, Sequence[torch.Tensor]] | None = None

    def on_its_way(self) -> Said:
        """Lets a GPU send what it says as soon as it has it, while this thread goes on."""
        if not self.ids.is_cuda:
            return self
        copies = [
            torch.empty_like(each, device="cpu", pin_memory=True).copy_(each, non_blocking=True)
            for each in (self.ids, self.logprobs, *(self.top or ()))
        ]
        there = torch.cuda.Event()
        there.record()
        return replace(self, sent=(there, copies))

    def read(self) -> list[tuple[Row, int, float]]:
        """Each row with its token and the token's log-probability; waits for them."""
        there = [self.ids, self.logprobs, *(self.top or ())]
        if self.sent is not None:
            self.sent[0].synchronize()
            there = list(self.sent[1])
        ids, logprobs, *top = (each.tolist() for each in there)
        if top:
            for (row, wanted), mine, values in zip(self.asking, *top, strict=True):
                row.top = tuple(zip(mine[:wanted], values[:wanted], strict=True))
        return list(zip(self.rows, ids, logprobs, strict=True))


def end_ids(model: M3ForConditionalGeneration) -> frozenset[int]:
    """The tokens that end an answer."""
    ends: int | Sequence[int] | None = model.generation_config.eos_token_id
    if ends is None:
        ends = model.config.text_config.eos_token_id
    if ends is None:
        return frozenset()
    return frozenset([ends] if isinstance(ends, int) else ends)


def check_readable(text_config: Any) -> None:
    """Refuse language models that packed passes would get wrong.

    Raises:
        ValueError: sliding windows; positions whose meaning depends on how long a pass is;
            attention with capped scores or sinks.
    """
    if getattr(text_config, "sliding_window", None) is not None or any(
        kind != "full_attention" for kind in getattr(text_config, "layer_types", None) or ()
    ):
        raise ValueError("language models with sliding-window attention are not supported")
    rope = getattr(text_config, "rope_parameters", None) or {}
    told = [rope, *(each for each in rope.values() if isinstance(each, dict))]
    kinds = {str(each.get("rope_type", each.get("type"))) for each in told}
    if found := sorted(kinds & DEPENDENT_ROPE):
        raise ValueError(
            f"rotary positions of the kind {found[0]!r} depend on the longest request of a pass, "
            "so requests that share one would get others' positions: not supported"
        )
    if getattr(text_config, "attn_logit_softcapping", None) is not None:
        raise ValueError("language models with capped attention scores are not supported")


def packed_language_model(language_model: nn.Module, beat: Callable[[], None]) -> nn.Module:
    """A twin that shares every weight and buffer but reads a `Step` instead of a cache.

    Call it with `inputs_embeds` (1, T, D), `position_ids` (1, T), `use_cache=False` and `step`.
    The given model's own configuration stays as it is.

    Args:
        language_model: as `check_readable` lets pass.
        beat: called before each layer.
    """
    AttentionInterface.register(NAME, _attention)
    tensors = [*language_model.parameters(), *language_model.buffers()]
    twin = copy.deepcopy(language_model, {id(tensor): tensor for tensor in tensors})
    twin.config._attn_implementation = NAME
    for layer in twin.layers:  # type: ignore[union-attr]
        layer.register_forward_pre_hook(lambda *_: beat())
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
    dropout: float = 0.0,
    **more: Any,
) -> tuple[torch.Tensor, None]:
    if unknown := sorted(name for name in CHANGES_SCORES if more.get(name) is not None):
        raise ValueError(f"attention with {', '.join(unknown)} is not supported")
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    out = step.attend(
        layer, query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), scaling
    )
    return out.unsqueeze(0), None
