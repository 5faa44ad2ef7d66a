"""Ask one picture many questions in one sequence: likelihoods and greedy answers.

The sequence of a picture is [shared prompt start + shared visual tokens][own visual tokens and rest
of question 1 + its reference] [those of question 2 + its reference]...; a block mask lets every
question see the prefix and itself only, and its positions restart behind the prefix, so each gets
exactly what it would get alone. Where teacher forcing shows that the reference is what greedy
decoding gives, nothing is decoded; every other question goes on, from its first wrong token, out of
the same key-value cache.

Knows a language model's tensors; does not know scales, files, scoring or routing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

_SHARED, _HIDDEN = -1, -2  # owners of a column: everybody's, nobody's; q >= 0 is question q's


@dataclass(frozen=True)
class PackedQuestion:
    """One question: prompt ids with ONE image id, and the answer to score (end token included).

    ``own`` (m, D) are visual tokens that this question alone sees, behind the shared ones.
    ``limit``: its answer is cut after so many tokens, whatever the reference; None: as all others.
    ``stops``: whether an answer of these ids has said something that ends it.
    """

    prompt_ids: Sequence[int]
    reference_ids: Sequence[int] | None
    own: torch.Tensor | None = None
    limit: int | None = None
    stops: Callable[[Sequence[int]], bool] | None = None

    @property
    def n_own(self) -> int:
        """Visual tokens that no other question sees."""
        return 0 if self.own is None else len(self.own)


@dataclass(frozen=True)
class PackedAnswer:
    """The greedy answer (no end token), its probability, and the reference's (None without).

    ``finished``: by its end token, not by a limit or by what it said.
    """

    answer_ids: tuple[int, ...]
    confidence: float
    p_reference: float | None
    finished: bool


@dataclass
class _Decoding:
    """A question whose greedy answer is still being written."""

    row: int
    question: int
    position: int
    answer: list[int]
    log_p: float
    p_reference: float | None
    limit: int
    stops: Callable[[Sequence[int]], bool] | None = None
    finished: bool = False
    stopped: bool = False

    @property
    def done(self) -> bool:
        """Whether nothing follows."""
        return self.finished or self.stopped or len(self.answer) >= self.limit


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Return how many leading ids all prompts share, leaving each at least one id of its own."""
    shortest = min(len(prompt) for prompt in prompts) - 1
    for index in range(shortest):
        if len({prompt[index] for prompt in prompts}) > 1:
            return index
    return shortest


@torch.inference_mode()
def answer_packed(
    model: Any,
    visual_tokens: torch.Tensor | Sequence[torch.Tensor],
    questions: Sequence[Sequence[PackedQuestion]],
    *,
    end_ids: Sequence[int],
    max_new_tokens: int = 16,
) -> list[list[PackedAnswer]]:
    """Return, per picture and question, the greedy answer and the likelihoods.

    Args:
        model: an ``M3ForConditionalGeneration`` (its language model, head and embeddings are used).
        visual_tokens: B times (s, D), what all questions of a picture see; any s for each.
        questions: B non-empty sequences.
        end_ids: ids that end an answer.
        max_new_tokens: answers longer than this (and than their reference) are cut.
    """
    batch = PackedBatch(model, visual_tokens, questions)
    cache = DynamicCache()
    hidden = model.model.language_model(
        inputs_embeds=batch.embeds,
        attention_mask=batch.prefill_mask(),
        position_ids=batch.positions,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    log_probs = _log_probs(model, hidden[batch.read_rows, batch.read_columns])
    best_p, best = log_probs.max(dim=-1)
    best_ids, best_log_p = best.tolist(), best_p.tolist()

    results: list[list[PackedAnswer | None]] = [[None] * len(asked) for asked in questions]
    open_: list[_Decoding] = []
    for row, index, start, count in batch.spans:
        question = questions[row][index]
        expected = list(question.reference_ids or ())
        limit = question.limit or max(max_new_tokens, len(expected))
        greedy = best_ids[start : start + count]
        p_reference, right = None, 0
        if expected:
            chosen = log_probs[range(start, start + count), expected]
            p_reference = float(chosen.sum().exp())
            right = next((i for i in range(count) if greedy[i] != expected[i]), count)
            whole = right == count and expected[-1] in end_ids
            if whole and question.stops is None and count <= limit:
                results[row][index] = PackedAnswer(
                    tuple(expected[:-1]), p_reference, p_reference, True
                )
                continue
            right = min(right, count - 1)
        # Greedy agrees with the reference before `right`, and says something else there.
        batch.hide_behind(row, index, right)
        state = _Decoding(
            row=row,
            question=index,
            position=batch.answer_position(row, index) + right,
            answer=[],
            log_p=0.0,
            p_reference=p_reference,
            limit=limit,
            stops=question.stops,
        )
        for place in range(right + 1):
            _take(state, greedy[place], best_log_p[start + place], end_ids)
            if state.done:
                break
        if state.done:
            results[row][index] = _answer(state)
        else:
            open_.append(state)

    for state in _decode(model, cache, batch, open_, end_ids):
        results[state.row][state.question] = _answer(state)
    return [[answer for answer in row if answer is not None] for row in results]


def _decode(
    model: Any,
    cache: DynamicCache,
    batch: PackedBatch,
    states: list[_Decoding],
    end_ids: Sequence[int],
) -> list[_Decoding]:
    """Return the states, each carried to its end token or limit, one token of each a step."""
    if not states:
        return []
    # Pictures with nothing left to say leave the cache.
    rows = sorted({state.row for state in states})
    cache.batch_select_indices(torch.tensor(rows, device=batch.embeds.device))
    slot = {row: i for i, row in enumerate(rows)}
    owners = batch.owners[rows]
    width = max(sum(state.row == row for state in states) for row in rows)
    lane: dict[int, int] = {}
    used = dict.fromkeys(rows, 0)
    for key, state in enumerate(states):
        lane[key], used[state.row] = used[state.row], used[state.row] + 1

    embedding, device = model.get_input_embeddings(), batch.embeds.device
    active = set(range(len(states)))
    while active:
        ids = torch.zeros((len(rows), width), dtype=torch.long)
        positions = torch.zeros_like(ids)
        asks = torch.full((len(rows), width), _HIDDEN)
        for key in active:
            state = states[key]
            at = slot[state.row], lane[key]
            ids[at], positions[at], asks[at] = state.answer[-1], state.position, state.question
        owners = torch.cat([owners, asks], dim=1)
        seen = (owners[:, None, :] == _SHARED) | (owners[:, None, :] == asks[:, :, None])
        seen &= (asks != _HIDDEN)[:, :, None] | (owners[:, None, :] == _SHARED)
        hidden = model.model.language_model(
            inputs_embeds=embedding(ids.to(device)).to(batch.embeds.dtype),
            attention_mask=_additive(seen, batch.embeds),
            position_ids=positions.to(device),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        best_p, best = _log_probs(model, hidden).max(dim=-1)
        best_p, best = best_p.cpu(), best.cpu()
        for key in sorted(active):
            state = states[key]
            at = slot[state.row], lane[key]
            state.position += 1
            _take(state, int(best[at]), float(best_p[at]), end_ids)
            if state.done:
                active.discard(key)
    return states


def _take(state: _Decoding, token: int, log_p: float, end_ids: Sequence[int]) -> None:
    state.log_p += log_p
    if token in end_ids:
        state.finished = True
        return
    state.answer.append(token)
    state.stopped = state.stops is not None and state.stops(state.answer)


def _answer(state: _Decoding) -> PackedAnswer:
    confidence = float(torch.tensor(state.log_p).exp())
    return PackedAnswer(tuple(state.answer), confidence, state.p_reference, state.finished)


def _log_probs(model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Return float32 log-probabilities over what may be said: no added row, no image token."""
    logits = model.lm_head(hidden).float()[..., : model.config.text_vocab_size]
    if model.config.image_token_id < logits.shape[-1]:
        logits[..., model.config.image_token_id] = float("-inf")
    return torch.log_softmax(logits, dim=-1)


def _additive(seen: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return the (B, 1, rows, columns) additive mask that every attention accepts."""
    mask = torch.zeros(seen.shape, dtype=like.dtype).masked_fill_(
        ~seen, torch.finfo(like.dtype).min
    )
    return mask[:, None].to(like.device)


class PackedBatch:
    """The packed tensors of a batch and where each question lies in them."""

    def __init__(
        self,
        model: Any,
        visual: torch.Tensor | Sequence[torch.Tensor],
        questions: Sequence[Sequence[PackedQuestion]],
    ) -> None:
        image_id = model.config.image_token_id
        embedding = model.get_input_embeddings()
        rows_ids: list[list[int]] = []
        owners: list[list[int]] = []
        positions: list[list[int]] = []
        reads: list[tuple[int, int]] = []
        self.spans: list[tuple[int, int, int, int]] = []  # row, question, first read, reads
        self._answers: dict[tuple[int, int], tuple[int, int]] = {}  # first column, first position
        for row, asked in enumerate(questions):
            count = len(visual[row])
            prompts = [_expand(q.prompt_ids, image_id, count + q.n_own) for q in asked]
            shared = shared_prefix(prompts)
            if any(question.n_own for question in asked):
                shared = min(shared, list(asked[0].prompt_ids).index(image_id) + count)
            ids = list(prompts[0][:shared])
            owner, position = [_SHARED] * shared, list(range(shared))
            for index, (question, prompt) in enumerate(zip(asked, prompts, strict=True)):
                reference = list(question.reference_ids or ())
                part = prompt[shared:] + reference[:-1]
                first_read = len(ids) + len(prompt) - shared - 1
                reads_here = max(1, len(reference))
                self.spans.append((row, index, len(reads), reads_here))
                reads.extend((row, first_read + i) for i in range(reads_here))
                self._answers[row, index] = (first_read + 1, len(prompt))
                ids += part
                owner += [index] * len(part)
                position += range(shared, shared + len(part))
            rows_ids.append(ids)
            owners.append(owner)
            positions.append(position)
        length = max(len(ids) for ids in rows_ids)

        def padded(lists: list[list[int]], fill: int) -> torch.Tensor:
            return torch.tensor([line + [fill] * (length - len(line)) for line in lists])

        shown = torch.cat(
            [tokens for row in zip(visual, questions, strict=True) for tokens in _shown(*row)]
        )
        ids = padded(rows_ids, 0).to(shown.device)
        self.owners = padded(owners, _HIDDEN)
        self.positions = padded(positions, 0).to(shown.device)
        is_image = ids == image_id
        if int(is_image.sum()) != len(shown):
            raise ValueError("the questions of one picture must share the prompt up to the picture")
        self.embeds = embedding(ids.masked_fill(is_image, 0)).to(shown.dtype)
        self.embeds[is_image] = shown
        self.read_rows = torch.tensor([r for r, _ in reads], device=shown.device)
        self.read_columns = torch.tensor([c for _, c in reads], device=shown.device)

    def prefill_mask(self) -> torch.Tensor:
        """Return the block mask: causal, and only the prefix and one's own question are seen."""
        owners, length = self.owners, self.owners.shape[1]
        own = owners[:, :, None] == owners[:, None, :]
        causal = torch.ones((length, length), dtype=torch.bool).tril()
        seen = (own | (owners[:, None, :] == _SHARED)) & causal
        return _additive(seen, self.embeds)

    def answer_position(self, row: int, question: int) -> int:
        """Return the position of the answer's first token."""
        return self._answers[row, question][1]

    def hide_behind(self, row: int, question: int, kept: int) -> None:
        """Hide the reference's tokens after the first ``kept`` from what is decoded next."""
        columns = torch.arange(self.owners.shape[1])
        late = (self.owners[row] == question) & (columns >= self._answers[row, question][0] + kept)
        self.owners[row, late] = _HIDDEN


def _shown(shared: torch.Tensor, asked: Sequence[PackedQuestion]) -> list[torch.Tensor]:
    """Return a picture's visual tokens in the order in which its sequence shows them."""
    return [shared, *(question.own for question in asked if question.own is not None)]


def _expand(prompt: Sequence[int], image_id: int, count: int) -> list[int]:
    """Return the ids with the one image id repeated once per visual token."""
    places = [index for index, token in enumerate(prompt) if token == image_id]
    if len(places) != 1:
        raise ValueError(f"a prompt must hold one image token, this one holds {len(places)}")
    at = places[0]
    return [*prompt[:at], *([image_id] * count), *prompt[at + 1 :]]
