"""Pictures of the oracle encoded again: what peers that see patches or embeddings are given.

The oracle keeps features, not patches, so its scenes are drawn and encoded once more; a picture
whose pixels do not hash to the oracle's is left out. Knows scenes and the model, not routers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from m3model import M3ForConditionalGeneration, M3Processor, pool_visual_tokens
from router.records import picture_id
from training.oracle.data import OracleData
from training.oracle.manifest import read_manifest
from training.sources.scenes import SceneSource

COARSE = 9  # tokens of a picture that go into its embedding, beside their mean
AT_ONCE = 8


@dataclass(frozen=True)
class Encoded:
    """One picture: its grid (N, D) float16, its questions' rows in the oracle and token ids."""

    grid: torch.Tensor
    rows: NDArray[np.int64]
    question_ids: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Encoder:
    """The checkpoint that labelled the oracle; ``words`` (V, D) is its embedding table."""

    model: Any
    processor: Any
    words: torch.Tensor

    @classmethod
    def load(cls, folder: Path) -> Encoder:
        """Return the encoder of a model folder, float32 on the CPU."""
        model = M3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        table = model.get_input_embeddings().weight.detach()
        return cls(model, M3Processor.from_pretrained(folder), table)


def encode(
    data: OracleData, oracle: Path, encoder: Encoder, pictures: dict[str, int | None]
) -> dict[str, list[Encoded]]:
    """Return, by split, the encoded pictures.

    Args:
        pictures: how many of each split; None takes all.

    Raises:
        ValueError: the oracle is not of scenes, or this version draws other scenes.
    """
    manifest = read_manifest(oracle)
    parameters = dict(manifest["source"])
    if parameters.pop("source", None) != "scenes":
        raise ValueError(f"{oracle} was not labelled from scenes: its pictures cannot be redrawn")
    source = SceneSource(**parameters)
    rows_of: dict[str, list[int]] = {}
    for row, name in enumerate(data.picture_ids.tolist()):
        rows_of.setdefault(name, []).append(row)
    found: dict[str, list[Encoded]] = {name: [] for name in pictures}
    waiting: list[tuple[str, NDArray[np.uint8], NDArray[np.int64], dict[str, str]]] = []
    foreign = 0
    for index in range(len(source)):
        if all(
            most is not None and _count(found, waiting, s) >= most for s, most in pictures.items()
        ):
            break
        task = source.load(index)
        name = picture_id(task.rgb)
        if name not in rows_of:
            foreign += 1
            if foreign > 20 and not any(found.values()):
                raise ValueError(f"this version draws other scenes than those of {oracle}")
            continue
        rows = np.array(rows_of[name])
        split = str(data.splits[rows[0]])
        most = pictures.get(split, 0)
        if most is None or _count(found, waiting, split) < most:
            waiting.append((split, task.rgb, rows, {a.question_id: a.question for a in task.asks}))
        if len(waiting) == AT_ONCE:
            _flush(waiting, data, encoder, found)
    _flush(waiting, data, encoder, found)
    return found


def embeddings(pictures: list[Encoded], encoder: Encoder) -> NDArray[np.float32]:
    """Return (n, E): for each question the picture's mean and coarse tokens and its mean word.

    Rows follow the pictures' order, and within a picture its questions'.
    """
    made = []
    for picture in pictures:
        grid = picture.grid.float()
        image = torch.cat([grid.mean(dim=0), pool_visual_tokens(grid, COARSE).flatten()])
        for ids in picture.question_ids:
            made.append(torch.cat([image, encoder.words[list(ids)].mean(dim=0)]))
    return torch.stack(made).numpy()


def rows_in(pictures: list[Encoded]) -> NDArray[np.int64]:
    """Return (n,): the oracle's row of each question, in the order of `embeddings`."""
    return np.concatenate([picture.rows for picture in pictures])


def _count(found: dict[str, list[Encoded]], waiting: list[Any], split: str) -> int:
    return len(found[split]) + sum(item[0] == split for item in waiting)


@torch.inference_mode()
def _flush(
    waiting: list[Any], data: OracleData, encoder: Encoder, found: dict[str, list[Encoded]]
) -> None:
    from PIL import Image

    if not waiting:
        return
    pixels = [encoder.processor.pixel_values(Image.fromarray(rgb)) for _, rgb, _, _ in waiting]
    grids = encoder.model.encode_images(torch.cat(pixels))
    for (split, _, rows, texts), grid in zip(waiting, grids, strict=True):
        asked = [texts[name] for name in data.question_ids[rows].tolist()]
        ids = tuple(tuple(encoder.processor.question_ids(text)) for text in asked)
        found[split].append(Encoded(grid.to(torch.float16).clone(), rows, ids))
    waiting.clear()
