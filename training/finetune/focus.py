"""One random cut for each picture of a batch: fine cells where its questions look.

Where they look is told by the checkpoint's relevance readout, or where it has none by the model's
own first layer as it stands at that step (``m3model.relevance``, choice "auto"). A cut follows from
seed, step and record alone, whatever shares the batch, so a resumed run draws what it would have.
Knows batches of conversations and a model's relevance; does not know losses or the Trainer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m3model import Focus, RelevanceReadout
from m3model.relevance.choice import ReadoutRelevance
from m3model.relevance.source import RelevanceSource
from m3model.relevance.untrained import AttentionRelevance
from training.cuts import CUT_STREAM, draw_cut
from training.finetune.conversations import IGNORED


@dataclass(frozen=True)
class CutDraw:
    """How the pictures of a run are cut.

    Attributes:
        readout: of the checkpoint that training began with; None: the model's attention.
        seed: of the run.
    """

    readout: RelevanceReadout | None
    seed: int

    @classmethod
    def of(cls, init: Path, seed: int) -> CutDraw:
        """Return the draw for a checkpoint's folder."""
        return cls(RelevanceReadout.from_pretrained(init), seed)

    def draw(
        self, model: Any, grids: torch.Tensor, batch: dict[str, Any], *, step: int
    ) -> tuple[list[Focus], torch.Tensor]:
        """Return a focus for each picture, and labels (B, n) on what the cuts are to answer.

        Questions that a picture's cells were not drawn for lose their labels: at every scale they
        are learnt anyway. Rows without a picture keep theirs.

        Args:
            grids: (P, N, D) projected patches, one picture for each row that has questions.
            batch: of ``collate``.
            step: of the run.
        """
        source = self._source(model)
        patches = iter(grids.detach().float().cpu().numpy())
        labels = batch["labels"].clone()
        turns = answer_turns(labels)
        foci = []
        for row, asked in enumerate(batch["asked"]):
            if asked is None:
                continue
            projected = source.project(next(patches), None)
            asked_here = range(int(turns[row].max()) + 1)  # later turns may have been cut off
            maps = np.stack(
                [source.score(projected, asked.texts[turn], asked.ids[turn]) for turn in asked_here]
            )
            rng = np.random.default_rng([CUT_STREAM, self.seed, step, asked.record])
            cut = draw_cut(maps, model.config.scales, rng)
            foci.append(cut.focus)
            served = torch.from_numpy(np.flatnonzero(cut.weights == 1.0)).to(labels.device)
            labels[row][~torch.isin(turns[row], served)] = IGNORED
        return foci, labels

    def _source(self, model: Any) -> RelevanceSource:
        # The attention anew every step: what it keeps of the weights would be of another step.
        if self.readout is None:
            return AttentionRelevance(model)
        return ReadoutRelevance(self.readout)


def answer_turns(labels: torch.Tensor) -> torch.Tensor:
    """Return (B, n) which turn's answer a place belongs to, from 0; -1 outside answers."""
    said = labels != IGNORED
    before = torch.nn.functional.pad(said, (1, 0))[:, :-1]
    return torch.where(said, (said & ~before).cumsum(1) - 1, -1)
