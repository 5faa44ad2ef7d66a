"""`--model m3` of lmms-eval: any of its tasks about pictures, at a scale, at a focus or routed.

Made for lmms-eval 0.7 (`is_simple = False`: tasks tell whole conversations). Imported by lmms-eval
alone, once the model is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.api.registry import register_model

from m3model.terminal import bar, say
from training.errors import TrainingError
from training.lmms.answering import Answered
from training.lmms.conversation import Asked, asked_of
from training.lmms.manifest import MODEL
from training.lmms.told import Told
from training.lmms.wishes import answerer_of, batch_of


@dataclass
class ToldCounts(TokenCounts):
    """Token counts with all that is told of an answer: lmms-eval writes what `to_dict` returns."""

    told: Told | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the counts and what is told."""
        counts: dict[str, Any] = super().to_dict()
        return counts if self.told is None else {**counts, **self.told.to_json()}


@register_model(MODEL)
class M3(lmms):
    """An M3 checkpoint.

    Args:
        pretrained: model folder; the embedded m3-mini if left out.
        scale: visual tokens a picture, or "auto": a router decides.
        focus: name of a focus of the model's default actions, instead of a scale.
        router: folder of the router, with "auto"; the shipped one for the embedded model.
        device: torch device; a GPU where there is one, if left out.
        batch_size: questions in flight together.
        text_encoder: CLIP folder, where router or focus need relevance of that kind.

    Raises:
        TrainingError: wishes that contradict each other or the model.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str | None = None,
        scale: int | str | None = None,
        focus: str | None = None,
        router: str | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        text_encoder: str | None = None,
    ) -> None:
        super().__init__()
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise TrainingError("m3 runs in one process: start lmms-eval without a launcher")
        self.batch_size = batch_of(batch_size)
        self._answerer = answerer_of(
            pretrained, scale, focus, router, device=device, text_encoder=text_encoder
        )
        self.device = self._answerer.encoder.device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Return an answer to each request, with its tokens and what was read for it."""
        results: list[GenerationResult] = []
        visual_tokens, name = 0, f"m3 at {self._answerer.chooser.name}"
        with bar(name, "questions") as move:
            for batch in _batches(requests, self.batch_size):
                for answered in self._answer(batch):
                    visual_tokens += answered.told.visual_tokens
                    counts = ToldCounts(
                        input_tokens=answered.prompt_tokens,
                        output_tokens=answered.answer_tokens,
                        told=answered.told,
                    )
                    results.append(GenerationResult(answered.text, counts))
                move(len(results), len(requests))
        mean = visual_tokens / max(1, len(results))
        say(f"{name}: {mean:.1f} visual tokens a question over {len(results)} questions")
        return results

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Refuse: rounds that depend on answers are no questions about one picture."""
        raise NotImplementedError("m3 answers single questions, no rounds: choose another task")

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Refuse; lmms-eval asks this of models without conversations only."""
        raise NotImplementedError(
            "m3 gives answers, not likelihoods: choose the generate_until form of the task"
        )

    def clean(self) -> None:
        """Stop the engine and let the weights go."""
        self._answerer.close()
        del self._answerer
        super().clean()

    def _answer(self, batch: Sequence[Instance]) -> list[Answered]:
        asked = [self._asked(request) for request in batch]
        try:
            return self._answerer.answer(asked)
        except Exception as error:
            names = f"{batch[0].task_name} documents {batch[0].doc_id} to {batch[-1].doc_id}"
            raise TrainingError(f"{names}: {error}") from error

    def _asked(self, request: Instance) -> Asked:
        _, doc_to_messages, settings, doc_id, task, split = request.args
        try:
            return asked_of(doc_to_messages(self.task_dict[task][split][doc_id]), settings)
        except TrainingError as error:
            raise TrainingError(f"{task} document {doc_id}: {error}") from error


def _batches(requests: Sequence[Instance], size: int) -> Iterator[Sequence[Instance]]:
    for start in range(0, len(requests), size):
        yield requests[start : start + size]
