"""Runs every action of a space on pictures with their questions: the rows of the oracle.

Each picture is encoded once; what a question is answered from follows from the relevance map that
its features are computed from, as in the service. What was served is asked again whole, under the
limits it was served with, from visual tokens rounded as there. Actions that read the same are
computed once, and questions share packed passes. Knows the model, relevance and the router's
features; does not know where the questions come from or where the rows go.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m3model import (
    Focus,
    M3ForConditionalGeneration,
    M3Processor,
    focus_visual_tokens,
    pool_visual_tokens,
)
from m3model.engine.detokenise import text_until
from m3model.engine.recipe import answering_device, answering_dtype, cut_after
from m3model.pooling import as_sent
from m3model.relevance.choice import relevance_name, relevance_sources
from m3model.relevance.source import encode_with_tower
from router.actions import ActionSpace, Plan, Reading, uniform_space
from router.features.vector import picture_features, question_features
from router.records import OracleRecord, picture_id
from training.oracle.packed import PackedAnswer, PackedQuestion, answer_packed
from training.oracle.rows import Row, Seen, Segment, passes_of, rows_of
from training.scoring import Metric, agreement_of, exact_match, metric_of
from training.sources.tasks import Ask, PictureTask, SourceKind

MAX_QUESTIONS = 24  # questions of one picture in one sequence

Wanted = tuple[int, int, Seen]  # number of the job and of its question, and what is read


@dataclass(frozen=True)
class _Job:
    """One picture (or a part of its questions) ready for the language model."""

    picture_id: str
    asks: tuple[Ask, ...]
    grid: torch.Tensor
    questions: tuple[PackedQuestion, ...]
    features: tuple[np.ndarray, ...]  # one row a question, as all that follow
    plans: tuple[Plan, ...]
    seen: tuple[tuple[Seen, ...], ...]  # by action


class Labeller:
    """A loaded model folder that labels pictures.

    Args:
        model: folder of the checkpoint.
        device: torch device; None takes a GPU when there is one.
        max_new_tokens: answers longer than this (and than their reference) are cut, where the
            question tells no limit of its own.
        relevance, text_encoder: where relevance comes from, see `m3model.relevance.choice`.
        space: the actions to run, of all the model's scales; None for the scales alone.

    Raises:
        RelevanceUnavailable: the model cannot give this relevance.
    """

    def __init__(
        self,
        model: Path,
        *,
        device: str | None = None,
        max_new_tokens: int = 16,
        relevance: str = "auto",
        text_encoder: Path | None = None,
        space: ActionSpace | None = None,
    ) -> None:
        # A full name (of `relevance_name`) names its kind before the first dash.
        name = relevance_name(model, relevance.partition("-")[0], text_encoder)
        self.device = answering_device(device)
        self.model: Any = (
            M3ForConditionalGeneration.from_pretrained(
                model, dtype=getattr(torch, answering_dtype(self.device)),
                attn_implementation="sdpa",
            )
            .to(self.device)
            .eval()
        )  # fmt: skip
        self.processor = M3Processor.from_pretrained(model)
        self.relevance = relevance_sources(self.model, model, text_encoder)[name]
        self.scales: tuple[int, ...] = tuple(self.model.config.scales)
        self.space = uniform_space(self.scales) if space is None else space
        self.max_new_tokens = max_new_tokens
        self.max_length = int(self.model.config.text_config.max_position_embeddings)
        end = self.model.generation_config.eos_token_id
        if end is None:
            end = self.processor.tokenizer.eos_token_id
        self.end_ids: tuple[int, ...] = tuple(end) if isinstance(end, list) else (int(end),)

    def fitting(self, task: PictureTask) -> PictureTask:
        """Return the task without the questions that the finest scale could not be served for:
        their conversation leaves the context no room for it and for a token of the answer.
        """
        room = self.max_length - self.space.anchor.coarse
        asks = [ask for ask in task.asks if len(self._question(ask).prompt_ids) <= room]
        return replace(task, asks=tuple(asks))

    def label(
        self,
        tasks: Sequence[PictureTask],
        *,
        feature_schema: str,
        model_hash: str,
        source: SourceKind,
        recipe: str | None = None,
    ) -> list[OracleRecord]:
        """Return one record per question, in the order of the tasks.

        ``recipe`` is that of answers without a limit; each row names its own. On a CPU pictures are
        labelled one by one: several together save nothing there, and what a picture gives then does
        not depend, to the last bit, on which others are labelled with it.
        """
        if len(tasks) > 1 and self.device == "cpu":
            told: dict[str, Any] = {"feature_schema": feature_schema, "model_hash": model_hash}
            told |= {"source": source, "recipe": recipe}
            return [record for task in tasks for record in self.label([task], **told)]
        jobs = [job for task in tasks for job in self._jobs(task)]
        finest = self.space.anchor.coarse
        asked = [(j, q) for j, job in enumerate(jobs) for q in range(len(job.asks))]
        # Finest first: without a reference, its answer becomes what the others are asked for.
        answers = self._answers(jobs, [(*at, finest) for at in asked])
        jobs = [
            self._with_finest(job, [answers[j, q, finest] for q in range(len(job.asks))])
            for j, job in enumerate(jobs)
        ]
        others = [(j, q, seen) for j, q in asked for seen in dict.fromkeys(jobs[j].seen[q])]
        answers |= self._answers(jobs, [each for each in others if each not in answers])
        return [
            self._record(
                jobs[j], q, [answers[j, q, seen] for seen in jobs[j].seen[q]],
                feature_schema=feature_schema, model_hash=model_hash, source=source, recipe=recipe,
            )
            for j, q in asked
        ]  # fmt: skip

    def _record(
        self,
        job: _Job,
        question: int,
        by_action: Sequence[PackedAnswer],
        *,
        feature_schema: str,
        model_hash: str,
        source: SourceKind,
        recipe: str | None,
    ) -> OracleRecord:
        ask, plan = job.asks[question], job.plans[question]
        measure = measure_of(ask)
        texts = [self._text(ask, answer) for answer in by_action]
        told: dict[str, Any] = {}
        if self.space != uniform_space(self.scales):
            told = {
                "actions": self.space.names, "action_space": self.space.hash, "cells": plan.cells,
            }  # fmt: skip
        return OracleRecord(
            picture_id=job.picture_id,
            question_id=ask.question_id,
            question=ask.question,
            kind=ask.kind,
            dataset=ask.dataset,
            reference=ask.reference,
            source=source,
            scales=self.scales,
            answers=tuple(texts),
            scores=scores_of(ask, texts, self.space),
            p_reference=tuple(
                a.confidence if a.p_reference is None else a.p_reference for a in by_action
            ),
            confidence=tuple(a.confidence for a in by_action),
            visual_tokens=plan.tokens,
            features=tuple(float(value) for value in job.features[question]),
            feature_schema=feature_schema,
            model_hash=model_hash,
            size_px=ask.size_px,
            metadata=json.dumps(ask.metadata, sort_keys=True),
            metric=measure.name,
            threshold=measure.threshold,
            group_id=ask.group_id,
            label_recipe=cut_after(recipe, ask.max_tokens or self.max_new_tokens),
            **told,
        )

    def _text(self, ask: Ask, answer: PackedAnswer) -> str:
        if not ask.stop:
            return self.processor.decode(list(answer.answer_ids))
        return text_until(self.processor.tokenizer, answer.answer_ids, ask.stop)[0].strip()

    @torch.inference_mode()
    def _jobs(self, task: PictureTask) -> Iterator[_Job]:
        from PIL import Image

        pixels = self.processor.pixel_values(Image.fromarray(task.rgb)).to(self.device)
        tower = None
        if self.relevance.needs_tower:
            grids, towers = encode_with_tower(self.model, pixels)
            grid, tower = grids[0], towers[0]
        else:
            grid = self.model.encode_images(pixels)[0]
        name, patches = picture_id(task.rgb), grid.float().cpu().numpy()
        picture = picture_features(patches, self.scales)
        projected = self.relevance.project(patches, tower)
        image_id = self.processor.image_token_id
        for asks, questions in _together(task.asks, map(self._question, task.asks), image_id):
            features, plans = [], []
            for ask in asks:
                ids = self.processor.question_ids(ask.question)
                relevance = self.relevance.score(projected, ask.question, ids)
                embedding = self.model.question_embedding(ids)
                features.append(question_features(picture, relevance, ask.question, embedding))
                plans.append(self.space.plan(relevance))
            yield _Job(
                name, asks, grid, questions, tuple(features), tuple(plans),
                tuple(self._seen(plan) for plan in plans),
            )  # fmt: skip

    def _seen(self, plan: Plan) -> tuple[Seen, ...]:
        readings = [self.space.reading(index, plan) for index in range(len(self.space))]
        return tuple(_as_the_model_knows_it(reading) for reading in readings)

    def _question(self, ask: Ask) -> PackedQuestion:
        prompt, answer = self.processor.prompt_and_answer(
            ask.messages or ask.question, ask.reference
        )
        stops = partial(_says, self.processor.tokenizer, ask.stop) if ask.stop else None
        return PackedQuestion(prompt, answer, limit=ask.max_tokens, stops=stops)

    @torch.inference_mode()
    def _answers(
        self, jobs: Sequence[_Job], wanted: Sequence[Wanted]
    ) -> dict[Wanted, PackedAnswer]:
        segments = [
            Segment(j, q, seen, _length(jobs[j].questions[q], seen)) for j, q, seen in wanted
        ]
        found: dict[Wanted, PackedAnswer] = {}
        for rows in passes_of(rows_of(segments, self.model.config.hidden_size)):
            answered = answer_packed(
                self.model,
                [_visual(jobs[row.picture].grid, row.coarse) for row in rows],
                [self._packed(jobs[row.picture], row) for row in rows],
                end_ids=self.end_ids,
                max_new_tokens=self.max_new_tokens,
            )
            for row, answers in zip(rows, answered, strict=True):
                for each, answer in zip(row.segments, answers, strict=True):
                    found[each.picture, each.question, each.seen] = answer
        return found

    def _packed(self, job: _Job, row: Row) -> list[PackedQuestion]:
        """Return the questions of a row, each with its own fine tokens, ended by the context."""
        asked = []
        for each in row.segments:
            question, seen = job.questions[each.question], each.seen
            if isinstance(seen, Focus):
                question = replace(question, own=_visual(job.grid, seen)[seen.coarse :])
            if question.limit is not None:
                tokens = seen.visual_tokens if isinstance(seen, Focus) else seen
                room = self.max_length - (len(question.prompt_ids) - 1 + tokens)
                question = replace(question, limit=min(question.limit, room))
            asked.append(question)
        return asked

    def _with_finest(self, job: _Job, finest: Sequence[PackedAnswer]) -> _Job:
        """Return the job with the finest answer standing in for every missing reference."""
        filled = tuple(
            question
            if question.reference_ids is not None
            else replace(
                question,
                reference_ids=(*answer.answer_ids, *(self.end_ids[:1] if answer.finished else ())),
            )
            for question, answer in zip(job.questions, finest, strict=True)
        )
        return replace(job, questions=filled)


def scores_of(ask: Ask, answers: Sequence[str], space: ActionSpace) -> tuple[float, ...]:
    """Return how right each action's answer is.

    With a reference: by the metric of the question. Without: agreement with the finest answer. A
    score that a user gave for the logged answer overrides it for every action that answers the
    same, if the action that gave it gives it again: what a user never saw has no score. When it
    says that the finest is wrong, agreeing with the finest earns nothing.
    """
    measure = measure_of(ask)
    if ask.reference is not None:
        return tuple(measure.score(answer, ask.references, ask.question) for answer in answers)
    agrees = [measure.score(answer, answers[-1:], ask.question) for answer in answers]
    if ask.score is None or not given_again(ask, answers, space):
        return tuple(agrees)
    logged = str(ask.logged_answer)
    if exact_match(logged, answers[-1]):
        return tuple(ask.score * agree for agree in agrees)
    return tuple(
        ask.score if exact_match(answer, logged) else agree
        for answer, agree in zip(answers, agrees, strict=True)
    )


def given_again(ask: Ask, answers: Sequence[str], space: ActionSpace) -> bool | None:
    """Return whether the action that answered when served gives that answer again; None where
    nothing was logged, or by an action that is not among these.
    """
    at = _logged(ask, space)
    if at is None or ask.logged_answer is None:
        return None
    return exact_match(answers[at], ask.logged_answer)


def measure_of(ask: Ask) -> Metric:
    """Return how the answers of a question are scored: its metric, or agreement by it."""
    return agreement_of(ask.metric) if ask.reference is None else metric_of(ask.metric)


def _logged(ask: Ask, space: ActionSpace) -> int | None:
    """Return the action whose answer was logged; None where this space has none that is it.

    The name of a focus means something in its own space only; a scale is the same everywhere.
    """
    name = ask.logged_action or str(ask.logged_scale)
    if name not in space.names:
        return None
    at = space.index(name)
    return at if space.actions[at].is_uniform or ask.logged_space == space.hash else None


def _as_the_model_knows_it(reading: Reading) -> Seen:
    if reading.fine is None or not reading.cells:  # without cells it is its coarse level
        return reading.scale
    return Focus(reading.scale, reading.fine, reading.cells)


def _together(
    asks: Sequence[Ask], questions: Iterable[PackedQuestion], image_id: int
) -> Iterator[tuple[tuple[Ask, ...], tuple[PackedQuestion, ...]]]:
    """Yield the asks with their questions, in order, those together that may share a sequence:
    the same stands before their picture.
    """

    def before(asked: tuple[Ask, PackedQuestion]) -> list[int]:
        ids = list(asked[1].prompt_ids)
        return ids[: ids.index(image_id)]

    for _, alike in groupby(zip(asks, questions, strict=True), key=before):
        pairs = list(alike)
        for start in range(0, len(pairs), MAX_QUESTIONS):
            part = pairs[start : start + MAX_QUESTIONS]
            yield tuple(ask for ask, _ in part), tuple(question for _, question in part)


def _says(tokenizer: Any, stop: Sequence[str], token_ids: Sequence[int]) -> bool:
    """Return whether an answer has said one of the strings that end it."""
    return text_until(tokenizer, token_ids, stop)[1]


def _visual(grid: torch.Tensor, seen: Seen) -> torch.Tensor:
    """Return a picture's tokens as the service's language model would get them."""
    told = grid.float()
    tokens = (
        focus_visual_tokens(told, seen)
        if isinstance(seen, Focus)
        else pool_visual_tokens(told, seen)
    )
    return as_sent(tokens).to(grid.dtype)


def _length(question: PackedQuestion, seen: Seen) -> int:
    own = seen.visual_tokens - seen.coarse if isinstance(seen, Focus) else 0
    return own + len(question.prompt_ids) + len(question.reference_ids or ())
