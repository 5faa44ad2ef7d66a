"""Runs every scale of a model on pictures with their questions: the rows of the oracle.

Each picture is encoded once and pooled to every scale; each scale answers all questions of several
pictures in one packed pass. Knows the model, relevance and the router's features; does not know
where the questions come from or where the rows go.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m3model import (
    M3ForConditionalGeneration,
    M3Processor,
    pool_visual_tokens,
)
from m3model.relevance.choice import relevance_name, relevance_sources
from m3model.relevance.source import encode_with_tower
from router.features.vector import picture_features, question_features
from router.records import OracleRecord, picture_id
from training.oracle.packed import PackedAnswer, PackedQuestion, answer_packed
from training.oracle.scoring import exact_match
from training.sources.tasks import Ask, PictureTask, SourceKind

MAX_PACKED_TOKENS = 6144  # padded tokens a language-model pass may hold on a CPU core
MAX_QUESTIONS = 24  # questions of one picture in one sequence


@dataclass(frozen=True)
class _Job:
    """One picture (or a part of its questions) ready for the language model."""

    task: PictureTask
    asks: tuple[Ask, ...]
    grid: torch.Tensor
    tower: torch.Tensor | None
    questions: tuple[PackedQuestion, ...]


class Labeller:
    """A loaded model folder that labels pictures.

    Args:
        model: folder of the checkpoint.
        device: torch device; None takes a GPU when there is one.
        max_new_tokens: answers longer than this (and than their reference) are cut.
        relevance, text_encoder: where relevance comes from, see `m3model.relevance.choice`.

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
    ) -> None:
        # A full name (of `relevance_name`) names its kind before the first dash.
        name = relevance_name(model, relevance.partition("-")[0], text_encoder)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float32 if self.device == "cpu" else torch.bfloat16
        self.model: Any = (
            M3ForConditionalGeneration.from_pretrained(
                model, dtype=dtype, attn_implementation="sdpa"
            )
            .to(self.device)
            .eval()
        )
        self.processor = M3Processor.from_pretrained(model)
        self.relevance = relevance_sources(self.model, model, text_encoder)[name]
        self.scales: tuple[int, ...] = tuple(self.model.config.scales)
        self.max_new_tokens = max_new_tokens
        end = self.model.generation_config.eos_token_id
        if end is None:
            end = self.processor.tokenizer.eos_token_id
        self.end_ids: tuple[int, ...] = tuple(end) if isinstance(end, list) else (int(end),)

    def label(
        self,
        tasks: Sequence[PictureTask],
        *,
        feature_schema: str,
        model_hash: str,
        source: SourceKind,
    ) -> list[OracleRecord]:
        """Return one record per question, in the order of the tasks."""
        jobs = [job for task in tasks for job in self._jobs(task)]
        answers: list[list[list[PackedAnswer]]] = [[] for _ in jobs]  # [job][question][scale]
        for number, scale in enumerate(reversed(self.scales)):
            # Finest first: without a reference, its answer becomes what the other scales are asked
            # for.
            packs = self._at_scale(jobs, scale)
            for job, at_scale in enumerate(packs):
                for question, answer in enumerate(at_scale):
                    if number == 0:
                        answers[job].append([])
                    answers[job][question].insert(0, answer)
            if number == 0:
                jobs = [self._with_finest(job, packs[i]) for i, job in enumerate(jobs)]
        records = []
        for job, answered in zip(jobs, answers, strict=True):
            features = self._features(job)
            name = picture_id(job.task.rgb)
            for ask, row, by_scale in zip(job.asks, features, answered, strict=True):
                texts = [self.processor.decode(list(answer.answer_ids)) for answer in by_scale]
                records.append(
                    OracleRecord(
                        picture_id=name,
                        question_id=ask.question_id,
                        question=ask.question,
                        kind=ask.kind,
                        dataset=ask.dataset,
                        reference=ask.reference,
                        source=source,
                        scales=self.scales,
                        answers=tuple(texts),
                        scores=scores_of(ask, texts, self.scales),
                        p_reference=tuple(
                            a.confidence if a.p_reference is None else a.p_reference
                            for a in by_scale
                        ),
                        confidence=tuple(a.confidence for a in by_scale),
                        visual_tokens=self.scales,
                        features=tuple(float(value) for value in row),
                        feature_schema=feature_schema,
                        model_hash=model_hash,
                        size_px=ask.size_px,
                        metadata=json.dumps(ask.metadata, sort_keys=True),
                    )
                )
        return records

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
        for start in range(0, len(task.asks), MAX_QUESTIONS):
            asks = task.asks[start : start + MAX_QUESTIONS]
            questions = tuple(self._question(ask) for ask in asks)
            yield _Job(task, asks, grid, tower, questions)

    def _question(self, ask: Ask) -> PackedQuestion:
        prompt, answer = self.processor.prompt_and_answer(ask.question, ask.reference)
        return PackedQuestion(prompt, answer)

    def _at_scale(self, jobs: Sequence[_Job], scale: int) -> list[list[PackedAnswer]]:
        results: list[list[PackedAnswer]] = []
        pack: list[_Job] = []
        longest = 0
        for job in [*jobs, None]:
            length = 0 if job is None else scale + sum(_length(q) for q in job.questions)
            fits = job is not None and max(longest, length) * (len(pack) + 1) <= MAX_PACKED_TOKENS
            if pack and not fits:
                results += answer_packed(
                    self.model,
                    torch.stack([pool_visual_tokens(j.grid, scale) for j in pack]),
                    [j.questions for j in pack],
                    end_ids=self.end_ids,
                    max_new_tokens=self.max_new_tokens,
                )
                pack, longest = [], 0
            if job is not None:
                pack.append(job)
                longest = max(longest, length)
        return results

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

    @torch.inference_mode()
    def _features(self, job: _Job) -> list[np.ndarray]:
        grid = job.grid.float().cpu().numpy()
        picture = picture_features(grid, self.scales)
        projected = self.relevance.project(grid, job.tower)
        rows = []
        for ask in job.asks:
            ids = self.processor.question_ids(ask.question)
            relevance = self.relevance.score(projected, ask.question, ids)
            rows.append(
                question_features(
                    picture, relevance, ask.question, self.model.question_embedding(ids)
                )
            )
        return rows


def scores_of(ask: Ask, answers: Sequence[str], scales: Sequence[int]) -> tuple[float, ...]:
    """Return how right each scale's answer is.

    With a reference: exact match. Without: agreement with the finest answer. A score that a user
    gave for the logged answer overrides it for every scale that answers the same; when it says that
    the finest is wrong, agreeing with the finest earns nothing.
    """
    if ask.reference is not None:
        return tuple(float(exact_match(answer, ask.reference)) for answer in answers)
    agrees = [float(exact_match(answer, answers[-1])) for answer in answers]
    if ask.score is None or ask.logged_scale is None or ask.logged_scale not in scales:
        return tuple(agrees)
    logged = answers[list(scales).index(ask.logged_scale)]
    if exact_match(logged, answers[-1]):
        return tuple(ask.score * agree for agree in agrees)
    return tuple(
        ask.score if exact_match(answer, logged) else agree
        for answer, agree in zip(answers, agrees, strict=True)
    )


def _length(question: PackedQuestion) -> int:
    return len(question.prompt_ids) + len(question.reference_ids or ())
