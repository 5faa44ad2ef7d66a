"""Generated scenes asked about at any mix of levels: which tokens are read is the caller's to say.

Every picture is encoded once; questions that read the same tokens of a picture share one packed
sequence, and pictures read at equally many tokens share a pass. Knows the model, relevance maps and
exact match; knows nothing of rules, routers or reports.
Notation: Q questions of all pictures together, in order; N patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from m3model import M3ForConditionalGeneration, M3Processor, pool_visual_tokens
from m3model.focus import Focus, fine_positions
from m3model.relevance.choice import relevance_sources
from m3model.relevance.source import RelevanceSource
from router.actions import Reading
from training.oracle.packed import PackedQuestion, answer_packed
from training.scoring import exact_match
from training.sources.scenes import SceneSource
from training.sources.tasks import Ask

MOST_TOKENS = 6144  # padded tokens that a pass may hold on a CPU
Layer = tuple[int, tuple[int, ...] | None]  # a level and positions of its tokens; None: all of them
Cut = tuple[Layer, ...]  # what is read of a picture, layer behind layer


@dataclass(frozen=True)
class Asked:
    """One question about picture ``picture``, with its relevance map (N,) in [0, 1]."""

    picture: int
    ask: Ask
    packed: PackedQuestion
    relevance: NDArray[np.float32]


@dataclass(frozen=True)
class Answers:
    """Of Q questions whether each was answered rightly, and the visual tokens it read."""

    right: NDArray[np.float64]
    tokens: NDArray[np.float64]


class Reader:
    """A model folder that answers about what it is given of a picture."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = M3ForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32
        ).eval()
        self.processor: Any = M3Processor.from_pretrained(folder)
        self.sources = relevance_sources(self.model, folder)
        end = self.model.generation_config.eos_token_id
        self._ends = tuple(end) if isinstance(end, list) else (int(end),)

    def questions(
        self, grid: torch.Tensor, picture: int, asks: Iterable[Ask], source: RelevanceSource
    ) -> list[Asked]:
        """Return the questions about one encoded picture."""
        projected = source.project(grid.float().numpy(), None)
        found = []
        for ask in asks:
            ids = self.processor.question_ids(ask.question)
            packed = PackedQuestion(*self.processor.prompt_and_answer(ask.question, ask.reference))
            relevance = source.score(projected, ask.question, ids)
            found.append(Asked(picture, ask, packed, np.clip(relevance, 0.0, 1.0)))
        return found

    def answers(
        self, grids: Sequence[torch.Tensor], asked: Sequence[Asked], cuts: Sequence[Cut]
    ) -> Answers:
        """Return what came of reading each question's picture as its cut says."""
        together: dict[tuple[int, Cut], list[int]] = {}
        for number, (one, cut) in enumerate(zip(asked, cuts, strict=True)):
            together.setdefault((one.picture, cut), []).append(number)
        by_tokens: dict[int, list[tuple[int, Cut]]] = {}
        for key in together:
            by_tokens.setdefault(tokens_of(key[1]), []).append(key)
        right, tokens = np.zeros(len(asked)), np.zeros(len(asked))
        for count, keys in by_tokens.items():
            longest = max(sum(_length(asked[i]) for i in together[key]) for key in keys)
            step = max(1, MOST_TOKENS // (count + longest))
            for start in range(0, len(keys), step):
                rows = keys[start : start + step]
                said = self._said(grids, asked, rows, [together[key] for key in rows])
                for number, text in said:
                    right[number] = exact_match(text, asked[number].ask.reference or "")
                    tokens[number] = count
        return Answers(right, tokens)

    def _said(
        self, grids: Sequence[torch.Tensor], asked: Sequence[Asked],
        rows: Sequence[tuple[int, Cut]], members: Sequence[Sequence[int]],
    ) -> list[tuple[int, str]]:  # fmt: skip
        answers = answer_packed(
            self.model,
            torch.stack([visual_tokens(grids[picture].float(), cut) for picture, cut in rows]),
            [[asked[i].packed for i in row] for row in members],
            end_ids=self._ends,
        )
        return [
            (number, self.processor.decode(list(answer.answer_ids)))
            for row, given in zip(members, answers, strict=True)
            for number, answer in zip(row, given, strict=True)
        ]


@dataclass(frozen=True)
class Scenes:
    """Generated pictures as one model sees them, and their questions."""

    reader: Reader
    grids: list[torch.Tensor]
    asked: list[Asked]

    @classmethod
    def of(cls, folder: Path, count: int, seed: int, namespace: str) -> Scenes:
        """Return generated scenes, encoded by the model of a folder; says how far it is.

        Relevance is the model's own readout.
        """
        reader, source = Reader(folder), SceneSource(count, seed, namespace=namespace)
        grids: list[torch.Tensor] = []
        asked: list[Asked] = []
        for index in range(len(source)):
            task = source.load(index)
            pixels = reader.processor.pixel_values(Image.fromarray(task.rgb))
            with torch.inference_mode():
                grids.append(reader.model.encode_images(pixels)[0].clone())
            asked += reader.questions(grids[-1], index, task.asks, reader.sources["readout"])
            if index % 100 == 99:
                print(f"{index + 1} of {len(source)} scenes encoded", flush=True)
        return cls(reader, grids, asked)

    @property
    def pictures(self) -> NDArray[np.int64]:
        """Return (Q,) the picture of each question."""
        return np.array([one.picture for one in self.asked])

    def answers(self, cuts: Sequence[Cut]) -> Answers:
        """Return what came of reading each question's picture as its cut says."""
        return self.reader.answers(self.grids, self.asked, cuts)


def tokens_of(cut: Cut) -> int:
    """Return the visual tokens of a cut."""
    return sum(level if positions is None else len(positions) for level, positions in cut)


def visual_tokens(grid: torch.Tensor, cut: Cut) -> torch.Tensor:
    """Return the tokens (n, D) that a cut takes of a picture's grid (N, D)."""
    pooled = [(pool_visual_tokens(grid, level), positions) for level, positions in cut]
    return torch.cat([at if p is None else at[list(p)] for at, p in pooled])


def cut_of_reading(reading: Reading) -> Cut:
    """Return the cut that the service would read."""
    if reading.fine is None:
        return ((reading.scale, None),)
    return cut_of_focus(Focus(reading.scale, reading.fine, reading.cells))


def cut_of_focus(focus: Focus) -> Cut:
    """Return the coarse tokens and the fine ones of the cells."""
    if not focus.cells:
        return ((focus.coarse, None),)
    fine = tuple(fine_positions(focus.fine, focus.cells))
    return ((focus.coarse, None), (focus.fine, fine))


def _length(one: Asked) -> int:
    return len(one.packed.prompt_ids) + len(one.packed.reference_ids or ())
