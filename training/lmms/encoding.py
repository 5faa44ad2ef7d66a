"""Pictures through the vision tower, once each: visual tokens, relevance and router features.

What they are is `m3model`'s and `router`'s to say, as in the service and in labelling. Knows one
loaded checkpoint; knows nothing of tasks, decisions or answers.
Notation: N patches of the grid, D their width, F features.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers.utils.logging import disable_progress_bar

from m3model import (
    Focus,
    M3ForConditionalGeneration,
    M3Processor,
    focus_visual_tokens,
    pool_visual_tokens,
)
from m3model.config import hash_model
from m3model.engine.recipe import answering_device, answering_dtype, label_recipe_hash
from m3model.pooling import as_sent
from m3model.relevance.choice import relevance_sources
from m3model.relevance.source import RelevanceSource, encode_with_tower
from router.actions import Reading
from router.features.schema import FeatureSchema, feature_schema
from router.features.vector import PictureFeatures, picture_features, question_features
from router.records import picture_id
from training.errors import TrainingError

KEPT = 16  # pictures that questions may come back to: tasks ask several about one in a row


@dataclass(frozen=True)
class SeenPicture:
    """A picture after the one pass: its identity, grid (N, D) float32, and what features and
    relevance are made of (None where no relevance is wanted).
    """

    picture_id: str
    grid: torch.Tensor
    parts: PictureFeatures | None = None
    projected: NDArray[np.float32] | None = None


class PictureEncoder:
    """One loaded checkpoint.

    Args:
        folder: of the model.
        device: torch device; None takes a GPU where there is one.
        relevance: full name of the source of relevance; None where nothing asks for it.
        text_encoder: CLIP folder, for relevance of that kind.

    Raises:
        TrainingError: the model does not give that relevance.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: str | None = None,
        relevance: str | None = None,
        text_encoder: Path | None = None,
    ) -> None:
        disable_progress_bar()  # what is shown is progress with the questions
        self.folder, self.device = folder, answering_device(device)
        self.dtype = answering_dtype(self.device)
        self.model: Any = (
            M3ForConditionalGeneration.from_pretrained(
                folder, dtype=getattr(torch, self.dtype), attn_implementation="sdpa"
            )
            .to(self.device)
            .eval()
        )
        self.processor = M3Processor.from_pretrained(folder)
        self.scales: tuple[int, ...] = tuple(self.model.config.scales)
        self._source: RelevanceSource | None = None
        if relevance is not None:
            sources = relevance_sources(self.model, folder, text_encoder)
            if relevance not in sources:
                raise TrainingError(
                    f"{folder} gives relevance {', '.join(sorted(sources))}, not {relevance}"
                    + ("; give its CLIP folder" if relevance.startswith("clip") else "")
                )
            self._source = sources[relevance]
        self._kept: OrderedDict[str, SeenPicture] = OrderedDict()

    @cached_property
    def model_hash(self) -> str:
        """Of weights, configuration and readout."""
        return hash_model(self.folder)

    @cached_property
    def recipe(self) -> str:
        """Of answers that nothing cuts."""
        return label_recipe_hash(self.folder, self.dtype, weights=self.model_hash)

    @property
    def schema(self) -> FeatureSchema:
        """Of the features of a question.

        Raises:
            ValueError: no relevance is wanted, without which there are none.
        """
        config, source = self.model.config, self._wanted()
        return feature_schema(self.scales, config.grid_side, config.hidden_size, source.name)

    @torch.inference_mode()
    def encode(self, pictures: Sequence[NDArray[np.uint8]]) -> list[SeenPicture]:
        """Return the pictures seen, those not known yet in one pass of the vision tower."""
        names = [picture_id(rgb) for rgb in pictures]
        new = {
            name: rgb for name, rgb in zip(names, pictures, strict=True) if name not in self._kept
        }
        if new:
            seen = self._encode(list(new), list(new.values()))
            self._kept.update((each.picture_id, each) for each in seen)
        found = [self._kept[name] for name in names]
        for name in names:
            self._kept.move_to_end(name)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return found

    @torch.inference_mode()
    def relevance(self, picture: SeenPicture, question: str) -> NDArray[np.float32]:
        """Return how strongly each patch answers to a question, (N,) in [0, 1]."""
        source = self._wanted()
        if picture.projected is None:
            raise ValueError("the picture was seen without relevance")
        return source.score(picture.projected, question, self.processor.question_ids(question))

    @torch.inference_mode()
    def features(
        self, picture: SeenPicture, question: str, relevance: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return (F,) what a router decides a question about a picture from."""
        if picture.parts is None:
            raise ValueError("the picture was seen without relevance")
        embedding = self.model.question_embedding(self.processor.question_ids(question))
        return question_features(picture.parts, relevance, question, embedding)

    def tokens(self, picture: SeenPicture, reading: Reading) -> torch.Tensor:
        """Return the visual tokens (n, D) of a reading, rounded as the service sends them."""
        if reading.fine is None or not reading.cells:  # without cells it is its coarse level
            return as_sent(pool_visual_tokens(picture.grid, reading.scale))
        focus = Focus(reading.scale, reading.fine, reading.cells)
        return as_sent(focus_visual_tokens(picture.grid, focus))

    def reads(self, question: str) -> bool:
        """Return whether the tokenizer knows at least half of what a question says."""
        ids = self.processor.question_ids(question)
        return 2 * ids.count(self.processor.tokenizer.unk_token_id) <= len(ids)

    def _encode(
        self, names: Sequence[str], pictures: Sequence[NDArray[np.uint8]]
    ) -> list[SeenPicture]:
        shown = [Image.fromarray(rgb) for rgb in pictures]
        pixels = self.processor.pixel_values(shown).to(self.device)
        source, towers = self._source, None
        if source is not None and source.needs_tower:
            encoded, towers = encode_with_tower(self.model, pixels)
        else:
            encoded = self.model.encode_images(pixels)
        grids = encoded.float().cpu()
        if source is None:
            return [SeenPicture(*each) for each in zip(names, grids, strict=True)]
        return [
            SeenPicture(
                name, grid, picture_features(grid.numpy(), self.scales),
                source.project(grid.numpy(), None if towers is None else towers[place]),
            )
            for place, (name, grid) in enumerate(zip(names, grids, strict=True))
        ]  # fmt: skip

    def _wanted(self) -> RelevanceSource:
        if self._source is None:
            raise ValueError("no source of relevance was named")
        return self._source
