"""Answers many questions at once through the engine that serves: one prompt path, offline.

Knows the engine, the encoder and what is read; knows nothing of tasks or files.
"""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

from m3model.engine.interface import Sampling
from m3model.engine.local import LocalEngine
from m3model.engine.recipe import cut_after
from m3model.errors import EngineError, PromptTooLong
from router.actions import Reading
from training.lmms.conversation import Asked
from training.lmms.deciding import Chooser
from training.lmms.encoding import PictureEncoder, SeenPicture
from training.lmms.told import Told


@dataclass(frozen=True)
class Answered:
    """An answer, the tokens of its prompt and of itself, and what is told with it.

    After a second look text and confidence are the second answer's, tokens those of both looks.
    """

    text: str
    prompt_tokens: int
    answer_tokens: int
    told: Told


@dataclass(frozen=True)
class _Said:
    text: str
    n_tokens: int
    confidence: float


class Answerer:
    """A checkpoint that answers, reading pictures as its chooser says."""

    def __init__(self, encoder: PictureEncoder, chooser: Chooser) -> None:
        self.encoder, self.chooser = encoder, chooser
        self._engine = LocalEngine(encoder.model, encoder.processor)

    def answer(self, asked: Sequence[Asked]) -> list[Answered]:
        """Return the answers; all questions are in flight together.

        Raises:
            TrainingError, RoutingError: a question that cannot be read as was wished.
            EngineError: a prompt that does not fit the context, or an engine that failed.
        """
        shown = self.encoder.encode([rgb for each in asked for rgb in each.pictures])
        pictures, at = [], 0
        for each in asked:
            pictures.append(shown[at : at + len(each.pictures)])
            at += len(each.pictures)
        return asyncio.run(self._together(asked, pictures))

    def close(self) -> None:
        """Stop the engine."""
        self._engine.close()

    async def _together(
        self, asked: Sequence[Asked], pictures: Sequence[Sequence[SeenPicture]]
    ) -> list[Answered]:
        return list(await asyncio.gather(*map(self._answer, asked, pictures)))

    async def _answer(self, asked: Asked, pictures: Sequence[SeenPicture]) -> Answered:
        prompt = self.encoder.processor.prompt_ids(asked.messages)
        text_tokens = len(prompt) - len(pictures)
        most = self._engine.max_length - 1  # one token is left to answer with
        greedy = asked.sampling.temperature == 0.0
        chosen = self.chooser.choose(
            self.encoder, pictures, asked.question, most - text_tokens, greedy
        )
        readings = chosen.readings
        said = await self._ask(prompt, pictures, readings, asked.sampling)
        visual_tokens = sum(reading.visual_tokens for reading in readings)
        prompt_tokens, answer_tokens = text_tokens + visual_tokens, said.n_tokens
        finer = None if chosen.look is None else chosen.look.escalate(said.confidence)
        if finer is not None and text_tokens + finer.visual_tokens <= most:
            readings = (finer,)
            said = await self._ask(prompt, pictures, readings, asked.sampling)
            visual_tokens += finer.visual_tokens
            prompt_tokens += text_tokens + finer.visual_tokens
            answer_tokens += said.n_tokens
        recipe = cut_after(self.encoder.recipe, asked.sampling.max_new_tokens)
        told = Told(
            wish=self.chooser.name,
            actions=tuple(reading.action for reading in readings),
            visual_tokens=visual_tokens,
            picture_ids=tuple(picture.picture_id for picture in pictures),
            confidence=said.confidence,
            recipe=str(recipe),
            messages=asked.messages,
        )
        return Answered(said.text, prompt_tokens, answer_tokens, told)

    async def _ask(
        self,
        prompt: list[int],
        pictures: Sequence[SeenPicture],
        readings: Sequence[Reading],
        sampling: Sampling,
    ) -> _Said:
        tokens = [
            self.encoder.tokens(picture, reading)
            for picture, reading in zip(pictures, readings, strict=True)
        ]
        said = _Said("", 0, 1.0)
        log_p = 0.0
        try:
            async for event in self._engine.submit(uuid.uuid4().hex, prompt, tokens, sampling):
                log_p += event.logprob
                said = replace(said, text=said.text + event.text_delta, n_tokens=said.n_tokens + 1)
        except PromptTooLong as error:
            raise EngineError(f"{error}; --limit and --offset leave documents out") from error
        return replace(said, text=said.text.strip(), confidence=math.exp(log_p))
