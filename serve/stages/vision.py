"""The picture side of the model: from bytes to encoded pictures, to features and visual tokens.

Knows the vision tower, the relevance sources and the router's features; knows nothing of requests,
queues or decisions. Everything here blocks and is called in threads.
Notation: N patches of the grid, D their width, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from m3model import pool_visual_tokens
from m3model.engine.recipe import model_of
from m3model.focus import fine_positions
from m3model.pooling import as_sent
from m3model.relevance.source import encode_with_tower
from router.actions import Plan, Reading
from router.errors import FeatureMismatch, OtherModel
from router.features.schema import feature_schema
from router.features.vector import PictureFeatures, picture_features, question_features
from router.records import picture_id
from router.router import Router
from serve.received_pictures import decode_picture, pixels_in_memory
from serve.settings import PictureLimits
from serve.stages.checkpoint import Checkpoint

# What takes a millisecond or two is done on the event loop: a thread's turn costs as much.
DONE_AT_ONCE = 1_000_000  # bytes of encoded pictures: three of the embedded model, none of a 7B


@dataclass(frozen=True)
class PreparedPicture:
    """A decoded picture: its identity, and pixels (1, 3, H, W) as the vision tower wants them."""

    picture_id: str
    pixels: torch.Tensor


@dataclass(frozen=True)
class EncodedPicture:
    """A picture after the one vision pass: what every question and every scale is served from.

    ``features.patches`` is the projected grid (N, D) float32; ``projected`` what each relevance
    source in use makes of it; ``pooled`` the tokens at the coarser scales that were asked for.
    """

    picture_id: str
    features: PictureFeatures
    projected: Mapping[str, NDArray[np.float32]]
    pooled: dict[int, NDArray[np.float16]] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        """Memory held by the arrays, with all that may be pooled."""
        arrays = (self.features.patches, self.features.residual, *self.projected.values())
        coarser = sum(self.features.scales[:-1]) * self.features.patches.shape[1]
        return sum(array.nbytes for array in arrays) + coarser * np.dtype(np.float16).itemsize


def is_quick(pictures: Sequence[EncodedPicture]) -> bool:
    """Return whether features and tokens of the pictures are made in a millisecond or two."""
    return sum(picture.features.patches.nbytes for picture in pictures) <= DONE_AT_ONCE


class Vision:
    """Encodes pictures with one checkpoint."""

    def __init__(self, checkpoint: Checkpoint, limits: PictureLimits) -> None:
        self._model, self._processor = checkpoint.model, checkpoint.processor
        self._sources, self._limits, self._checkpoint = checkpoint.sources, limits, checkpoint
        # Sources whose part is made at once; a router that needs another adds it.
        self._in_use = {name for name, source in self._sources.items() if source.needs_tower}
        config = checkpoint.model.config
        self.scales: tuple[int, ...] = tuple(config.scales)
        self.most_characters = self._processor.most_characters(
            int(config.text_config.max_position_embeddings)
        )
        # CLIP reads a question with a language tower of its own.
        self.reads_quickly = not any(source.needs_tower for source in self._sources.values())
        self._unknown = self._processor.tokenizer.unk_token_id  # None where it knows every byte
        self._sizes = (config.grid_side, config.hidden_size)
        self._grid_shape = (config.grid_side**2, config.hidden_size)
        # Of a GPU: the engine has another, of a higher priority, and no token waits for a picture.
        on_gpu = checkpoint.model.get_input_embeddings().weight.is_cuda
        self._stream = torch.cuda.Stream() if on_gpu else None

    def tell_progress(self, beat: Callable[[], None]) -> None:
        """Have ``beat`` called before each layer of a pass of the vision tower."""
        for stack in self._model.model.vision_tower.modules():
            for layer in stack if isinstance(stack, nn.ModuleList) else ():
                layer.register_forward_pre_hook(lambda *_: beat())

    def count_pixels(self, data: bytes) -> int:
        """Return how many pixels the picture's header promises, as memory counts them.

        Raises:
            BadRequest: no picture, or a picture that is too large.
        """
        return pixels_in_memory(data, self._limits)

    def prepare(self, data: bytes) -> PreparedPicture:
        """Return the decoded picture.

        Raises:
            BadRequest: it cannot be decoded, or is too large.
        """
        rgb = decode_picture(data, self._limits)
        return PreparedPicture(picture_id(rgb), self._processor.pixel_values(Image.fromarray(rgb)))

    def encode(self, pictures: Sequence[PreparedPicture]) -> list[EncodedPicture]:
        """Return the encoded pictures, from one pass of the vision tower."""
        with torch.cuda.stream(self._stream), torch.inference_mode():
            return self._encode(pictures)

    def _encode(self, pictures: Sequence[PreparedPicture]) -> list[EncodedPicture]:
        pixels = torch.cat([picture.pixels for picture in pictures])
        in_use = [self._sources[name] for name in sorted(self._in_use)]
        towers: Sequence[torch.Tensor | None] = [None] * len(pictures)
        if any(source.needs_tower for source in in_use):
            encoded, towers = encode_with_tower(self._model, pixels)
        else:
            encoded = self._model.encode_images(pixels)
        grids = encoded.float().cpu().numpy()
        return [
            EncodedPicture(
                picture.picture_id,
                picture_features(grid, self.scales),
                {source.name: source.project(grid, tower) for source in in_use},
            )
            for picture, grid, tower in zip(pictures, grids, towers, strict=True)
        ]

    @torch.inference_mode()
    def features(
        self, pictures: Sequence[EncodedPicture], question: str, relevance: str
    ) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
        """Return (n_pictures, F) features of a question about each picture, and the relevance (N,)
        of each picture's patches that they were computed from.

        Args:
            relevance: name of the source the router was fitted on; `check_router` accepted it.
        """
        ids = self._processor.question_ids(question)
        embedding = self._model.question_embedding(ids)
        source = self._sources[relevance]
        rows, maps = [], []
        for picture in pictures:
            projected = picture.projected.get(relevance)
            if projected is None:  # encoded before the first router that needs it
                projected = source.project(picture.features.patches, None)
            r = source.score(projected, question, ids)
            rows.append(question_features(picture.features, r, question, embedding))
            maps.append(r)
        return np.stack(rows), maps

    def reads(self, question: str) -> bool:
        """Return whether the tokenizer knows at least half of what a question says."""
        ids, unknown = self._processor.question_ids(question), self._unknown
        return 2 * ids.count(unknown) <= len(ids)

    def tokens(self, picture: EncodedPicture, reading: Reading) -> NDArray[np.float16]:
        """Return the picture's visual tokens (n, D), which are not to be written to.

        Of a focus those of `m3model.focus_visual_tokens`, to the bit, from what is pooled already.
        """
        coarse = self._uniform(picture, reading.scale)
        if reading.fine is None or not reading.cells:
            return coarse
        inside = fine_positions(reading.fine, reading.cells)
        return np.concatenate([coarse, self._uniform(picture, reading.fine)[inside]])

    def _uniform(self, picture: EncodedPicture, scale: int) -> NDArray[np.float16]:
        if (known := picture.pooled.get(scale)) is not None:
            return known
        grid = torch.from_numpy(picture.features.patches)
        pooled: NDArray[np.float16] = as_sent(pool_visual_tokens(grid, scale)).numpy()
        if scale != self.scales[-1]:  # of the finest there is nothing to compute
            picture.pooled[scale] = pooled
        return pooled

    def check_router(self, router: Router) -> None:
        """Return if the router fits this model, whose answers it was fitted on, and decides on a
        made-up picture.

        Raises:
            FeatureMismatch: other scales, levels or features than this model gives.
            OtherModel: it was fitted on the answers of other weights, or of another tokenizer, chat
                template, preprocessing or generation config.
            ValueError: the router decides nothing sensible.
        """
        if tuple(router.scales) != self.scales:
            raise FeatureMismatch(
                f"the router knows the scales {tuple(router.scales)}, the model {self.scales}"
            )
        for action in router.space.actions:
            if action.fine is not None and not {action.coarse, action.fine} <= set(self.scales):
                raise FeatureMismatch(
                    f"the router's focus {action.name} reads levels {action.coarse} and "
                    f"{action.fine}, the model has {self.scales}"
                )
        name = router.schema.relevance
        if name not in self._sources:
            raise FeatureMismatch(
                f"the router was fitted on relevance {name!r}, this model gives "
                f"{', '.join(sorted(self._sources))}"
                + ("; give its CLIP folder with --text-encoder" if name[:4] == "clip" else "")
            )
        here = feature_schema(self.scales, *self._sizes, name).hash
        if router.schema.hash != here:
            raise FeatureMismatch(
                "the router was fitted on other features than this model gives "
                f"(schema {router.schema.hash}, here {here})"
            )
        self._check_identity(router)
        grid = np.random.default_rng(0).standard_normal(self._grid_shape, dtype=np.float32)
        tower = torch.zeros(len(grid), int(self._model.config.vision_config.hidden_size))
        source = self._sources[name]
        weight = self._model.model.multi_modal_projector.linear_1.weight
        projected = source.project(grid, tower.to(weight.device, weight.dtype))
        made_up = EncodedPicture("", picture_features(grid, self.scales), {name: projected})
        rows, maps = self.features([made_up], "What is in the picture?", name)
        decision = router.route(rows, plan=plan_of(router, maps))
        if decision.scale not in self.scales:
            raise ValueError(f"the router chose {decision.scale}, which is no scale of the model")
        self._in_use = self._in_use | {name}

    def _check_identity(self, router: Router) -> None:
        """Return if the router was fitted on this model's answers, as far as it says on whose.

        Number type and limit of the answers may differ: the model is the same on every device, and
        each request has a limit of its own.
        """
        advice = "fit one on its answers (m3-train collect, fit), or serve the model it is for"
        made_for = router.metadata.get("model_hash")
        if made_for is not None and made_for != (here := self._checkpoint.model_hash):
            raise OtherModel(
                f"the router was fitted for model {made_for}, the service's is {here}: {advice}"
            )
        recipe = router.metadata.get("label_recipe")
        if recipe is None:  # of before there were any
            return
        wanted, here = model_of(str(recipe)), model_of(self._checkpoint.label_recipe)
        if wanted != here:
            raise OtherModel(
                f"the router was fitted on answers of recipe {wanted}, the service's is {here}: "
                "its tokenizer, template, preprocessing or generation config is another; "
                f"{advice}"
            )


def plan_of(router: Router, maps: Sequence[NDArray[np.float32]]) -> Plan | None:
    """Return what each action of a router would read of the one picture; None where only scales
    can be chosen: of several pictures, and by a router without a focus.
    """
    if len(maps) != 1 or router.space.is_uniform:
        return None
    return router.space.plan(maps[0])
